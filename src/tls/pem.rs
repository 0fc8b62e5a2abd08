//! Certificates and keys as they lie in PEM files (RFC 7468), and why they may be of no use.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

/// The longest file that is read; bundles of authorities have some 250 KiB.
const MAX_SIZE: u64 = 4 << 20;

/// Why a file cannot be used: which one, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}{trouble}", Prefix(path.as_deref()))]
pub struct LoadError {
    path: Option<PathBuf>,
    trouble: Trouble,
}

struct Prefix<'a>(Option<&'a Path>);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, "{}: ", path.display()),
            None => Ok(()),
        }
    }
}

/// What is wrong that no file is to blame for.
impl From<Trouble> for LoadError {
    fn from(trouble: Trouble) -> Self {
        Self {
            path: None,
            trouble,
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("does not exist; check the path")]
    Missing,
    #[error("cannot be read: permission denied; let the user that homescar runs as read it")]
    Denied,
    #[error("is a directory; write the path of the file in it")]
    Directory,
    #[error("is larger than 4 MiB: this is no certificate or key")]
    TooLarge,
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("is not valid PEM: {0}; was it copied whole?")]
    BadPem(&'static str),
    #[error("holds no certificate; one begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    #[error("holds a key, not a certificate; are `cert` and `key` swapped?")]
    KeyForCertificate,
    #[error("holds no private key; one begins with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    #[error("holds a certificate, not a key; are `cert` and `key` swapped?")]
    CertificateForKey,
    #[error(
        "is protected by a passphrase, which nobody types here; write it without one: `openssl \
         pkey -in FILE -out FILE.new`"
    )]
    Passphrase,
    #[error("holds a key that cannot be used: {0}")]
    BadKey(rustls::Error),
    #[error(
        "is not the key of the certificate in {}; they come in pairs, one of them is of another \
         time or name", cert.display()
    )]
    KeyMismatch { cert: PathBuf },
    #[error("holds a certificate that cannot be understood: {0}")]
    BadCertificate(String),
    #[error("holds no authority that can be used: {0}")]
    BadAuthority(String),
    #[error(
        "there are no authorities on this machine to verify backends with; install them (package \
         ca-certificates), or set `ca`"
    )]
    NoAuthorities,
    #[error("`{0}` is not a name that a certificate could have")]
    BadName(String),
    #[error("not usable with this configuration: {0}")]
    Refused(rustls::Error),
}

impl LoadError {
    pub(super) fn new(path: &Path, trouble: Trouble) -> Self {
        Self {
            path: Some(path.to_owned()),
            trouble,
        }
    }
}

/// The certificates of a file, in its order; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let fault = |trouble| LoadError::new(path, trouble);
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| fault(Trouble::BadPem(damage(&error))))?;
    match found.is_empty() {
        true if contains(&text, "PRIVATE KEY-----") => Err(fault(Trouble::KeyForCertificate)),
        true => Err(fault(Trouble::NoCertificate)),
        false => Ok(found),
    }
}

/// The first private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let trouble = match error {
            // The old way to protect a key has headers where base64 should be.
            _ if contains(&text, "ENCRYPTED") => Trouble::Passphrase,
            pem::Error::NoItemsFound if contains(&text, "BEGIN CERTIFICATE") => {
                Trouble::CertificateForKey
            }
            pem::Error::NoItemsFound => Trouble::NoKey,
            error => Trouble::BadPem(damage(&error)),
        };
        LoadError::new(path, trouble)
    })
}

/// What is wrong with a text, without a byte of it, as it may be a key.
const fn damage(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a part has a beginning and no end",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a part is damaged",
        pem::Error::Base64Decode(_) => "a part is not base64",
        _ => "it cannot be understood",
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    let mut windows = text.windows(part.len());
    windows.any(|window| window == part.as_bytes())
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes));
    let trouble = match read {
        Ok(_) if bytes.len() as u64 <= MAX_SIZE => return Ok(bytes),
        Ok(_) => Trouble::TooLarge,
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Trouble::Missing,
            ErrorKind::PermissionDenied => Trouble::Denied,
            ErrorKind::IsADirectory => Trouble::Directory,
            _ => Trouble::Unreadable(error),
        },
    };
    Err(LoadError::new(path, trouble))
}
