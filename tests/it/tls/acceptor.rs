//! The acceptor by itself, with what the program's configuration cannot easily bring about.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use homescar::{
    config::{CertPair, Tls, TlsVersion},
    tls::{Acceptor, HandshakeError, Pool, ServerMaterial, ServerStream},
};
use rustls::{ClientConfig, version::TLS12};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use super::pki::{Authority, Pair, TlsClient};
use crate::support::homescar::SOON;

/// The files of a listener.
struct Files {
    folder: TempDir,
    tls: Tls,
}

impl Files {
    fn new(pairs: &[&Pair]) -> Self {
        let folder = TempDir::new().unwrap();
        let write = |(index, pair): (usize, &&Pair)| {
            let folder = folder.path().join(index.to_string());
            fs::create_dir(&folder).unwrap();
            let (cert, key) = pair.write(&folder);
            CertPair { cert, key }
        };
        let certs = pairs.iter().enumerate().map(write).collect();
        Self {
            tls: Tls {
                certs,
                client_ca: None,
                client_optional: false,
                min_version: TlsVersion::V12,
                alpn: Vec::new(),
            },
            folder,
        }
    }

    fn believe(&mut self, authority: &Authority) {
        let file = self.folder.path().join("ca.pem");
        fs::write(&file, authority.pem()).unwrap();
        self.tls.client_ca = Some(file);
    }

    fn material(&self) -> ServerMaterial {
        ServerMaterial::load(&self.tls).unwrap()
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(&self.material(), Pool::start().unwrap())
    }
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to: SocketAddr = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(to), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// A handshake of both; afterwards a byte has gone each way, so that tickets have come.
async fn shake(
    acceptor: &Acceptor,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (
    Result<TlsClient, std::io::Error>,
    Result<ServerStream, HandshakeError>,
) {
    let (here, there) = pair().await;
    let serve = async {
        let deadline = Instant::now() + SOON;
        let mut stream = acceptor.handshake(there, &[], deadline).await?;
        let mut byte = [0];
        if stream.read(&mut byte).await.is_ok() {
            let _gone = stream.write_all(&byte).await;
            let _gone = stream.flush().await;
        }
        Ok(stream)
    };
    let visit = async {
        let mut client = TlsClient::over(here, client, name).await?;
        client.echo(b"x").await?;
        Ok(client)
    };
    tokio::join!(visit, serve)
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let authority = Authority::new();
    let first = authority.pair(&["first.test"]);
    let wild = authority.pair(&["*.w.test"]);
    let exact = authority.pair(&["a.w.test"]);
    let acceptor = Files::new(&[&first, &wild, &exact]).acceptor();
    let tls = authority.client();
    for (name, expected) in [
        ("first.test", &first),
        ("b.w.test", &wild),
        ("a.w.test", &exact),
    ] {
        let (client, _) = shake(&acceptor, &tls, name).await;
        assert_eq!(client.unwrap().certificate(), expected.der(), "{name}");
    }
    let (client, server) = shake(&acceptor, &tls, "other.test").await;
    let told = client.unwrap_err().to_string();
    assert!(told.contains("not valid for name"), "{told}");
    assert_eq!(server.unwrap_err().as_label(), "refused_by_client");
}

#[tokio::test]
async fn both_versions_are_spoken_unless_one_is_too_old() {
    let authority = Authority::new();
    let pair = authority.pair(&["a.test"]);
    let old = Arc::new(authority.client_with(None, &[&TLS12]));
    let mut files = Files::new(&[&pair]);
    let acceptor = files.acceptor();
    for _ in 0..2 {
        let (client, server) = shake(&acceptor, &old, "a.test").await;
        client.unwrap();
        server.unwrap();
    }
    let (client, _) = shake(&acceptor, &old, "a.test").await;
    assert!(client.unwrap().is_resumed());
    files.tls.min_version = TlsVersion::V13;
    let (client, server) = shake(&files.acceptor(), &old, "a.test").await;
    client.unwrap_err();
    assert_eq!(server.unwrap_err().as_label(), "no_common_version");
}

#[tokio::test]
async fn protocols_are_agreed_on_in_the_order_of_the_server() {
    let authority = Authority::new();
    let mut files = Files::new(&[&authority.pair(&["a.test"])]);
    files.tls.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    let acceptor = files.acceptor();
    let agreed = async |offered: &[&str]| {
        let mut tls = authority.client_with(None, rustls::ALL_VERSIONS);
        tls.alpn_protocols = offered.iter().map(|name| name.as_bytes().into()).collect();
        let (_, server) = shake(&acceptor, &tls.into(), "a.test").await;
        server.map(|stream| stream.alpn().map(<[u8]>::to_vec))
    };
    let some = |name: &str| Some(name.as_bytes().to_vec());
    assert_eq!(agreed(&["http/1.1", "h2"]).await.unwrap(), some("h2"));
    assert_eq!(agreed(&["http/1.1"]).await.unwrap(), some("http/1.1"));
    assert_eq!(agreed(&[]).await.unwrap(), None);
    let refused = agreed(&["imap"]).await.unwrap_err();
    assert_eq!(refused.as_label(), "no_common_protocol");
}

#[tokio::test]
async fn the_certificate_of_a_client_is_there_also_when_it_resumes() {
    let authority = Authority::new();
    let mut files = Files::new(&[&authority.pair(&["a.test"])]);
    files.believe(&authority);
    let acceptor = files.acceptor();
    let shown = authority.pair(&["client.test"]);
    let tls = Arc::new(authority.client_with(Some(&shown), rustls::ALL_VERSIONS));
    for is_resumed in [false, true] {
        let (client, server) = shake(&acceptor, &tls, "a.test").await;
        assert_eq!(client.unwrap().is_resumed(), is_resumed);
        let server = server.unwrap();
        assert_eq!(server.peer_certificate().unwrap(), &*shown.der());
    }
}

/// A client whose authority is no longer believed shall not come in by an old ticket.
#[tokio::test]
async fn tickets_are_forgotten_with_the_authority_that_vouched() {
    let (authority, next) = (Authority::new(), Authority::new());
    let mut files = Files::new(&[&authority.pair(&["a.test"])]);
    files.believe(&authority);
    let acceptor = files.acceptor();
    let shown = authority.pair(&["client.test"]);
    let tls = Arc::new(authority.client_with(Some(&shown), rustls::ALL_VERSIONS));
    shake(&acceptor, &tls, "a.test").await.1.unwrap();
    acceptor.replace(&files.material());
    let (client, _) = shake(&acceptor, &tls, "a.test").await;
    assert!(client.unwrap().is_resumed());
    files.believe(&next);
    acceptor.replace(&files.material());
    let (client, server) = shake(&acceptor, &tls, "a.test").await;
    client.unwrap_err();
    assert_eq!(server.unwrap_err().as_label(), "bad_certificate");
}

/// What was read behind a PROXY header belongs to the handshake: some of the hello, or all of it.
#[tokio::test]
async fn what_was_read_before_is_part_of_the_handshake() {
    let authority = Authority::new();
    let acceptor = Files::new(&[&authority.pair(&["a.test"])]).acceptor();
    for early in [1, 5, 100, 4096] {
        let (here, mut there) = pair().await;
        let tls = authority.client();
        let serve = async {
            there.readable().await.unwrap();
            let mut bytes = vec![0; early];
            let read = there.read(&mut bytes).await.unwrap();
            let deadline = Instant::now() + SOON;
            acceptor.handshake(there, &bytes[..read], deadline).await
        };
        let (client, server) = tokio::join!(TlsClient::over(here, &tls, "a.test"), serve);
        client.unwrap();
        server.unwrap();
    }
}

#[tokio::test]
async fn a_handshake_that_is_dropped_or_late_closes_its_connection() {
    let authority = Authority::new();
    let acceptor = Files::new(&[&authority.pair(&["a.test"])]).acceptor();
    // It has answered the hello and waits for the client's turn: it is in the pool.
    let (mut here, there) = pair().await;
    let hello = hello_of(&authority).await;
    here.write_all(&hello).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(3600);
    let mut handshake = Box::pin(acceptor.handshake(there, &[], deadline));
    let mut byte = [0];
    tokio::select! {
        _ = &mut handshake => panic!("nobody has finished it"),
        read = here.read_exact(&mut byte) => drop(read.unwrap()),
    }
    drop(handshake);
    let mut rest = Vec::new();
    let ended = timeout(SOON, here.read_to_end(&mut rest)).await;
    let _end_or_reset = ended.expect("the connection is closed");

    let (_here, there) = pair().await;
    let soon = Instant::now() + Duration::from_millis(50);
    let late = acceptor.handshake(there, &[], soon).await;
    assert!(matches!(late, Err(HandshakeError::Timeout)));
}

/// The first bytes of a client.
async fn hello_of(authority: &Authority) -> Vec<u8> {
    let (here, mut there) = pair().await;
    let tls = authority.client();
    let hello = async {
        let mut bytes = vec![0; 4096];
        let read = there.read(&mut bytes).await.unwrap();
        bytes.truncate(read);
        bytes
    };
    tokio::select! {
        hello = hello => hello,
        _ = TlsClient::over(here, &tls, "a.test") => panic!("nobody answers"),
    }
}
