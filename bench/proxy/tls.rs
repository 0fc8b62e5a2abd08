//! TLS at both ends of the benchmark: one certificate for all proxies, and clients that leave no
//! choice of version, cipher and group, so that every proxy does the same cryptography.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, HandshakeKind, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{Outcome, backend::Acceptor, stream::Stream};

/// The name that clients ask for.
const NAME: &str = "bench.example";

/// A certificate with a key on P-256, which signs itself.
#[derive(Debug)]
pub(crate) struct Certificate {
    der: CertificateDer<'static>,
    key: KeyPair,
    pem: String,
}

impl Certificate {
    pub(crate) fn new() -> Outcome<Self> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([NAME.to_owned()])?.self_signed(&key)?;
        Ok(Self {
            der: certificate.der().clone(),
            key,
            pem: certificate.pem(),
        })
    }

    /// Writes `cert.pem` and `key.pem`, and `both.pem` for haproxy.
    pub(crate) fn write_to(&self, folder: &Path) -> Outcome {
        let key = self.key.serialize_pem();
        fs::write(folder.join("cert.pem"), &self.pem)?;
        fs::write(folder.join("key.pem"), &key)?;
        fs::write(folder.join("both.pem"), format!("{}{key}", self.pem))?;
        Ok(())
    }

    /// What a backend does where there is no proxy.
    pub(crate) fn acceptor(&self) -> Outcome<Acceptor> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
    }
}

/// How clients use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// What they offer to speak.
    pub(crate) alpn: Option<&'static str>,
    /// Whether they come back with the session of the last time.
    pub(crate) resumes: bool,
}

/// What one client shakes hands with.
#[derive(Clone, Debug)]
pub(crate) struct Hands {
    config: Arc<ClientConfig>,
    tls: Tls,
    has_ticket: bool,
}

impl Hands {
    pub(crate) fn new(tls: Tls, certificate: &Certificate) -> Outcome<Self> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned(certificate.der.clone())))
            .with_no_client_auth();
        config.alpn_protocols = tls
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            tls,
            has_ticket: false,
        })
    }

    /// For another client, who has sessions of its own.
    pub(crate) fn of_another(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        if self.tls.resumes {
            config.resumption = Resumption::in_memory_sessions(8);
        }
        Self {
            config: Arc::new(config),
            tls: self.tls,
            has_ticket: false,
        }
    }

    /// Shakes hands; fails when the session should have been resumed and was not.
    pub(crate) async fn shake(&mut self, tcp: TcpStream) -> io::Result<Stream> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(name, tcp).await?;
        let session = stream.get_ref().1;
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        if resumed != self.has_ticket {
            return Err(io::Error::other(
                "a session was not resumed, or one was that should not be",
            ));
        }
        if session.alpn_protocol() != self.tls.alpn.map(str::as_bytes) {
            return Err(io::Error::other("another protocol was agreed on"));
        }
        self.has_ticket = self.tls.resumes;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}

/// One cipher and one group, which all proxies have.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

/// Takes the one certificate, byte by byte, and no other. It leaves out what only costs the client:
/// the load must not be what a handshake waits for.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *shown == self.0 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("another certificate was shown".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is wanted".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
