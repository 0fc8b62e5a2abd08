//! Authorities, certificates, and clients and servers that use them.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{client::Who, homescar::SOON};

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    /// One with a name of its own.
    pub(crate) fn new() -> Self {
        Self::named(&format!("authority {}", fastrand::u64(..)))
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for these names, good for ever.
    pub(crate) fn pair(&self, names: &[&str]) -> Pair {
        self.pair_with(names, |_| {})
    }

    pub(crate) fn pair_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair {
            cert: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A client that believes this authority, and shows a certificate.
    pub(crate) fn client_with(
        &self,
        shown: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match shown {
            None => config.with_no_client_auth(),
            Some(pair) => config
                .with_client_auth_cert(vec![pair.der()], pair.key_der())
                .unwrap(),
        }
    }

    /// A client that believes this authority.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::new(self.client_with(None, rustls::ALL_VERSIONS))
    }
}

impl Pair {
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap()
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// Writes both files into a folder; each appears whole, as a careful tool does it.
    pub(crate) fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            let new = folder.join(format!("{name}.new"));
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
            path
        };
        (put("cert.pem", &self.cert), put("key.pem", &self.key))
    }

    /// A server that shows this certificate.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], self.key_der())
            .unwrap();
        Arc::new(config)
    }
}

/// An encrypted connection that speaks the test worker's protocol.
#[derive(Debug)]
pub(crate) struct TlsClient {
    pub(crate) stream: BufReader<TlsStream<TcpStream>>,
}

impl TlsClient {
    /// From any address, to `a.test`.
    pub(crate) async fn connect(to: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = timeout(SOON, TcpStream::connect(to)).await??;
        Self::over(stream, config, "a.test").await
    }

    pub(crate) async fn connect_from(
        from: std::net::IpAddr,
        to: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = timeout(SOON, socket.connect(to)).await??;
        Self::over(stream, config, "a.test").await
    }

    pub(crate) async fn over(
        stream: TcpStream,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = timeout(SOON, connector.connect(name, stream)).await??;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.stream.get_ref().get_ref().0.local_addr().unwrap()
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.get_ref().get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What the server showed.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        let session = self.stream.get_ref().get_ref().1;
        session.peer_certificates().unwrap()[0].clone().into_owned()
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let stream = self.stream.get_mut();
        timeout(SOON, stream.write_all(bytes.as_ref())).await??;
        timeout(SOON, stream.flush()).await?
    }

    pub(crate) async fn whoami(&mut self) -> io::Result<Who> {
        self.send("whoami\n").await?;
        let mut line = String::new();
        timeout(SOON, self.stream.read_line(&mut line)).await??;
        serde_json::from_str(&line).map_err(|error| io::Error::other(format!("{error}: {line}")))
    }

    pub(crate) async fn start_echo(&mut self) -> io::Result<()> {
        self.send("echo\n").await
    }

    pub(crate) async fn echo(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes).await?;
        let mut back = vec![0; bytes.len()];
        timeout(SOON, self.stream.read_exact(&mut back)).await??;
        match back == bytes {
            true => Ok(()),
            false => Err(io::Error::other("other bytes came back")),
        }
    }

    /// All that comes until the end of the stream, which must be said in TLS.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        timeout(SOON, self.stream.read_to_end(&mut rest)).await??;
        Ok(rest)
    }

    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        timeout(SOON, self.stream.get_mut().shutdown()).await?
    }
}
