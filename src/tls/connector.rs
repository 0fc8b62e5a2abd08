//! TLS of a cluster, to its backends.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    AlertDescription, CertificateError, Error, client::UnbufferedClientConnection,
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tracing::warn;

use super::{channel::Channel, material::ClientMaterial, stream::ClientStream};
use crate::config::Address;

/// Between two tellings of backends that could not be verified.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Encrypts connections to the backends of a cluster, and verifies who they are. Sessions are
/// resumed, so that of the many connections to a backend only the first costs a full handshake.
#[derive(Debug)]
pub struct Connector {
    material: ArcSwap<ClientMaterial>,
    complaints: Mutex<(u64, Option<Instant>)>,
}

/// Why there is no encrypted connection to a backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendTlsError {
    /// It is another, or nobody that we know vouches for it.
    #[error("{}", explain(.0))]
    Certificate(CertificateError),
    /// It is not content with whom we show ourselves to be.
    #[error("{}", explain_ours(*.0))]
    Ours(AlertDescription),
    /// One side refused the other, or what came is no TLS.
    #[error("{0}")]
    Refused(Error),
    /// The connection ended.
    #[error("the connection was lost in the handshake: {0}")]
    Lost(io::Error),
    /// It took longer than a connection to the backend may.
    #[error("the handshake was not done in time; does it speak TLS?")]
    Timeout,
    /// A Unix socket has no address that a certificate could be for.
    #[error("there is no name to verify at a Unix socket; set `name`")]
    NoName,
}

impl Connector {
    /// A connector with this material.
    #[must_use]
    pub fn new(material: &ClientMaterial) -> Self {
        Self {
            material: ArcSwap::from_pointee(material.clone()),
            complaints: Mutex::default(),
        }
    }

    /// Changes what new connections are made with.
    pub fn replace(&self, material: &ClientMaterial) {
        self.material.store(Arc::new(material.clone()));
    }

    /// Encrypts a connection to the backend at an address. It waits as long as it takes.
    ///
    /// # Errors
    /// Why the backend is not believed, or did not answer.
    pub async fn connect<S>(
        &self,
        stream: S,
        address: &Address,
    ) -> Result<ClientStream<S>, BackendTlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let material = self.material.load_full();
        let name = match (&material.name, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp(at) | Address::Probe { to: at, .. }) => name_of(*at),
            (None, Address::Unix(_)) => return Err(BackendTlsError::NoName),
        };
        let session = UnbufferedClientConnection::new(Arc::clone(&material.config), name)?;
        let mut channel = Box::new(Channel::new(stream, session, Vec::new()));
        let shaken = channel.shake(async || {}, |_| false).await;
        shaken.map_err(|error| match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => BackendTlsError::Lost(error),
        })?;
        Ok(ClientStream::new(channel))
    }

    /// The same to the backend in a slot; that it refuses our certificate is told whenever it says
    /// so.
    ///
    /// # Errors
    /// As of [`connect`](Self::connect).
    pub async fn reach<S>(
        self: &Arc<Self>,
        slot: &Arc<str>,
        address: &Address,
        stream: S,
    ) -> Result<ClientStream<S>, BackendTlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = self.connect(stream, address).await?;
        stream.listen_with(Unheard {
            connector: Arc::clone(self),
            slot: Arc::clone(slot),
            address: address.clone(),
        });
        Ok(stream)
    }

    /// Counts a failure; tells it unless one was told within the last second.
    pub fn complain(&self, slot: &str, address: &Address, what: &BackendTlsError) {
        let mut told = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (count, last) = &mut *told;
        *count += 1;
        if last.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
            *last = Some(Instant::now());
            warn!(slot, %address, "no TLS with a backend, {count} failures so far; this one: {what}");
        }
    }
}

impl From<Error> for BackendTlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(why) => Self::Certificate(why),
            Error::AlertReceived(alert) if is_about_ours(alert) => Self::Ours(alert),
            error => Self::Refused(error),
        }
    }
}

/// A connection of which the backend has said nothing yet. With TLS 1.3 a backend looks at our
/// certificate only when we take the handshake to be done (RFC 8446 §2): that it does not like it
/// is the first that it says.
#[derive(Debug)]
pub(super) struct Unheard {
    connector: Arc<Connector>,
    slot: Arc<str>,
    address: Address,
}

impl Unheard {
    /// The first word was an error: tells it, when it is about our certificate.
    pub(super) fn heard(&self, error: &io::Error) {
        let error = error.get_ref().and_then(|error| error.downcast_ref());
        if let Some(Error::AlertReceived(alert)) = error
            && is_about_ours(*alert)
        {
            let what = BackendTlsError::Ours(*alert);
            self.connector.complain(&self.slot, &self.address, &what);
        }
    }
}

/// Whether an alert is about the certificate of the one who gets it (RFC 8446 §6.2).
const fn is_about_ours(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// What our certificate lacks, and what to do.
fn explain_ours(alert: AlertDescription) -> impl fmt::Display {
    let what = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "it wants a certificate of homescar; set `cert` and `key`"
        }
        AlertDescription::UnknownCA => {
            "it does not know the authority of homescar's certificate; is `cert` for this backend?"
        }
        AlertDescription::CertificateExpired => {
            "homescar's certificate has expired; renew `cert` and `key`"
        }
        _ => "it refuses homescar's certificate; see `cert` and `key`",
    };
    format!("{what} (alert {alert:?})")
}

fn name_of(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.ip().to_canonical().into())
}

/// What a certificate lacks, and what to do.
fn explain(why: &CertificateError) -> impl fmt::Display {
    match why {
        // A signature is bad where two authorities have the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is from an authority that is not \
                                            believed; name that authority in `ca`"
                .to_owned()
        }
        CertificateError::NotValidForName => {
            "its certificate is for another name; name it in `name`".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            let presented = match presented.as_slice() {
                [] => "no name".to_owned(),
                names => {
                    let bare = |name: &String| {
                        let name = name.trim_start_matches("DnsName(\"");
                        name.trim_end_matches("\")").to_owned()
                    };
                    names.iter().map(bare).collect::<Vec<_>>().join(", ")
                }
            };
            format!("its certificate is for {presented}, not for {expected}; see `name`")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is the clock of this machine right?".to_owned()
        }
        why => format!("its certificate is not good: {why}"),
    }
}
