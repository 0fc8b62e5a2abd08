//! A certificate with its key, and the choice of one by the name that a client asks for.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use ahash::HashMap;
use rustls::{
    Error, InconsistentKeys, SignatureScheme,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{
    pem::{self, LoadError, Trouble},
    provider,
};
use crate::config::CertPair;

/// A certificate chain and its key, which belong together.
#[derive(Debug)]
pub struct Identity {
    file: PathBuf,
    names: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    certified: Arc<CertifiedKey>,
}

/// Whether a certificate is good at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Clients that verify it accept it, as far as the time goes.
    Valid,
    /// Its time has not come; more often, the clock of this machine is wrong.
    NotYet,
    /// It must be renewed.
    Expired,
}

impl Identity {
    /// Reads and verifies a pair. Its time is not verified: an expired certificate is still better
    /// than no answer on the port, so it is for the caller to warn of [`validity`](Self::validity).
    ///
    /// # Errors
    /// The first thing that makes the pair useless.
    pub fn load(pair: &CertPair) -> Result<Self, LoadError> {
        let chain = pem::certificates(&pair.cert)?;
        let key = pem::private_key(&pair.key)?;
        let of_key = |trouble| LoadError::new(&pair.key, trouble);
        let (names, not_before, not_after) = describe(&chain[0], &pair.cert)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            of_key(match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Trouble::KeyMismatch {
                    cert: pair.cert.clone(),
                },
                error => Trouble::BadKey(error),
            })
        })?;
        Ok(Self {
            file: pair.cert.clone(),
            names,
            not_before,
            not_after,
            certified: Arc::new(certified),
        })
    }

    /// The file of the certificate.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The DNS names that it is for, lower case, as in the certificate.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The last moment of its time.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it is good at this time.
    #[must_use]
    pub fn validity(&self, now: SystemTime) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// Whether both are the same certificate.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.certified.cert[0] == other.certified.cert[0]
    }

    /// Whether its key is of the kinds that sign in some hundredths of a millisecond.
    pub(super) fn signs_fast(&self) -> bool {
        let fast = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
        ];
        self.certified.key.choose_scheme(&fast).is_some()
    }

    pub(super) const fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// The certificate's names and until when it is good, for the log.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = match self.names.as_slice() {
            [] => "no DNS name".to_owned(),
            names => names.join(", "),
        };
        let until = humantime::format_rfc3339_seconds(self.not_after);
        write!(f, "{} for {names}, good until {until}", self.file.display())
    }
}

/// The names and the time of a certificate.
fn describe(
    der: &CertificateDer<'_>,
    file: &Path,
) -> Result<(Vec<String>, SystemTime, SystemTime), LoadError> {
    let bad = |why: String| LoadError::new(file, Trouble::BadCertificate(why));
    let (_, certificate) = X509Certificate::from_der(der).map_err(|why| bad(why.to_string()))?;
    let names = match certificate.subject_alternative_name() {
        Ok(Some(names)) => &names.value.general_names[..],
        Ok(None) => &[],
        Err(why) => return Err(bad(why.to_string())),
    };
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let time = certificate.validity();
    Ok((
        dns.collect(),
        time_of(time.not_before.timestamp()),
        time_of(time.not_after.timestamp()),
    ))
}

/// A time in seconds since 1970, which some certificates begin before; the display knows no year
/// past 9999, which is how a certificate says "for ever".
fn time_of(timestamp: i64) -> SystemTime {
    const END_OF_9999: u64 = 253_402_300_799;
    let seconds = u64::try_from(timestamp).unwrap_or(0).min(END_OF_9999);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Chooses the certificate for the name that a client asks for (SNI, RFC 6066 §3): one that has
/// exactly this name, else one with a wildcard for its first label, else the first.
#[derive(Debug)]
pub(super) struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    /// Of two certificates with the same name the one that comes first is taken. `None` when
    /// there is none.
    pub(super) fn new(identities: &[Identity]) -> Option<Self> {
        let first = Arc::clone(identities.first()?.certified());
        let mut names = HashMap::default();
        for identity in identities {
            for name in identity.names() {
                let certified = || Arc::clone(identity.certified());
                names.entry(name.clone()).or_insert_with(certified);
            }
        }
        Some(Self { names, first })
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let found = name.and_then(|name| {
            // The root's dot is no part of a name in SNI, but is seen.
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            self.names.get(&name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.names.get(&format!("*.{parent}"))
            })
        });
        Arc::clone(found.unwrap_or(&self.first))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.find(hello.server_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(names: &[&str]) -> Identity {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pair = CertPair {
            cert: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        std::fs::write(&pair.cert, made.cert.pem()).unwrap();
        std::fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
        Identity::load(&pair).unwrap()
    }

    #[test]
    fn an_exact_name_beats_a_wildcard_and_a_wildcard_the_first() {
        let identities = [
            identity(&["first.test"]),
            identity(&["*.example.test", "example.test"]),
            identity(&["A.example.test"]),
            identity(&["a.example.test"]),
        ];
        let by_name = ByName::new(&identities).unwrap();
        let index = |name: Option<&str>| {
            let found = by_name.find(name);
            let mut all = identities.iter();
            all.position(|identity| Arc::ptr_eq(identity.certified(), &found))
        };
        assert_eq!(index(Some("a.example.test")), Some(2), "of two, the first");
        assert_eq!(index(Some("A.EXAMPLE.TEST.")), Some(2));
        assert_eq!(index(Some("b.example.test")), Some(1));
        assert_eq!(index(Some("example.test")), Some(1));
        assert_eq!(index(Some("x.b.example.test")), Some(0), "one label only");
        assert_eq!(index(Some("other.test")), Some(0));
        assert_eq!(index(Some("test")), Some(0));
        assert_eq!(index(None), Some(0));
    }

    #[test]
    fn the_time_of_a_certificate_has_two_ends() {
        let identity = identity(&["a.test"]);
        let second = Duration::from_secs(1);
        let at = |time| identity.validity(time);
        assert_eq!(at(identity.not_before), Validity::Valid);
        assert_eq!(at(identity.not_before - second), Validity::NotYet);
        assert_eq!(at(identity.not_after), Validity::Valid);
        assert_eq!(at(identity.not_after + second), Validity::Expired);
    }

    #[test]
    fn a_time_that_no_calendar_has_is_cut() {
        assert_eq!(time_of(-1), SystemTime::UNIX_EPOCH);
        let last = humantime::format_rfc3339_seconds(time_of(i64::MAX)).to_string();
        assert_eq!(last, "9999-12-31T23:59:59Z");
    }
}
