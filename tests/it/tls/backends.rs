//! TLS to backends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    pki::{Authority, Pair},
    reason,
};
use crate::support::{
    client::Client,
    homescar::{Homescar, SOON, message},
};

/// An encrypted server that echoes, as long as it is held, and counts resumed sessions.
async fn echo_server(
    config: Arc<ServerConfig>,
    resumed: Arc<AtomicU64>,
) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(config);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, resumed) = (acceptor.clone(), Arc::clone(&resumed));
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    resumed.fetch_add(1, Relaxed);
                }
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    stream.write_all(&bytes[..read]).await.unwrap();
                    stream.flush().await.unwrap();
                }
                let _gone = stream.shutdown().await;
            });
        }
    });
    (address, server)
}

struct Scene {
    homescar: Homescar,
    front: SocketAddr,
    folder: TempDir,
    /// Sessions that the backend resumed.
    resumed: Arc<AtomicU64>,
    /// Ends with the scene.
    server: Option<JoinSet<()>>,
}

/// A front before an encrypted backend that shows `pair`, of which `believed` is to vouch.
async fn scene(pair: &Pair, believed: &Authority, tls: &str, more: &str) -> Scene {
    let resumed = Arc::<AtomicU64>::default();
    let (backend, server) = echo_server(pair.server(), Arc::clone(&resumed)).await;
    let mut scene = scene_before(backend, believed, tls, more).await;
    scene.resumed = resumed;
    scene.server = Some(server);
    scene
}

async fn scene_before(backend: SocketAddr, believed: &Authority, tls: &str, more: &str) -> Scene {
    let folder = TempDir::new().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, believed.pem()).unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 1
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["{backend}"]
        tls = {{ ca = "{}"{tls} }}
        {more}
        "#,
        ca.display()
    ));
    let front = homescar.address("web").await;
    Scene {
        homescar,
        front,
        folder,
        resumed: Arc::default(),
        server: None,
    }
}

const NAMED: &str = ", name = \"app.internal\"";

#[tokio::test]
async fn a_backend_is_verified_and_spoken_to() {
    let authority = Authority::new();
    let by_name = authority.pair(&["app.internal"]);
    let by_address = authority.pair(&["127.0.0.1"]);
    for (pair, tls) in [(&by_name, NAMED), (&by_address, "")] {
        let scene = scene(pair, &authority, tls, "").await;
        let mut client = Client::connect(scene.front).await.unwrap();
        client.echo(b"hello").await.unwrap();
        client.echo(&vec![b'x'; 300_000]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.rest().await.unwrap(), b"");
        let record = scene.homescar.record_of(client.local_addr()).await;
        assert_eq!(reason(&record), ("client", "closed", ""), "{record}");
        assert_eq!(record["up"], 300_005, "{record}");
        // The tickets came with the first connection.
        let mut again = Client::connect(scene.front).await.unwrap();
        again.echo(b"hello").await.unwrap();
        assert_eq!(scene.resumed.load(Relaxed), 1);
    }
}

#[tokio::test]
async fn a_backend_that_is_another_is_not_spoken_to() {
    let authority = Authority::new();
    let pair = authority.pair(&["other.internal"]);
    let stranger = Authority::new();
    for (believed, tls, why) in [
        (
            &authority,
            NAMED,
            "is for other.internal, not for app.internal",
        ),
        (
            &stranger,
            ", name = \"other.internal\"",
            "authority that is not believed",
        ),
    ] {
        let scene = scene(&pair, believed, tls, "").await;
        let mut client = Client::connect(scene.front).await.unwrap();
        let _error = client.send("secret").await;
        client.rest().await.unwrap_err();
        let record = scene.homescar.record_of(client.local_addr()).await;
        assert_eq!(reason(&record), ("backend", "connect_failed", ""));
        let line = scene.homescar.message("no TLS with a backend").await;
        assert!(message(&line).contains(why), "{line}");
        assert!(line["slot"].is_string() && line["address"].is_string());
    }
}

#[tokio::test]
async fn an_authority_is_read_again_when_its_file_changes() {
    let authority = Authority::new();
    let pair = authority.pair(&["app.internal"]);
    let scene = scene(&pair, &Authority::new(), NAMED, "").await;
    let mut refused = Client::connect(scene.front).await.unwrap();
    refused.rest().await.unwrap_err();
    std::fs::write(scene.folder.path().join("ca.pem"), authority.pem()).unwrap();
    let line = scene.homescar.message("certificates read again").await;
    assert_eq!(message(&line), "cluster app: certificates read again");
    let mut client = Client::connect(scene.front).await.unwrap();
    client.echo(b"hello").await.unwrap();
}

/// Requests share an encrypted connection, and none goes out unencrypted.
#[tokio::test]
async fn http_requests_share_an_encrypted_connection() {
    let authority = Authority::new();
    let acceptor = TlsAcceptor::from(authority.pair(&["app.internal"]).server());
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let ca = TempDir::new().unwrap();
    let ca_file = ca.path().join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 1
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        backends = ["{address}"]
        tls = {{ ca = "{}"{NAMED} }}
        "#,
        ca_file.display()
    ));
    let front = homescar.address("web").await;
    let mut client = Client::connect(front).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";
    client.send(ask).await.unwrap();
    let (stream, _) = timeout(SOON, backend.accept()).await.unwrap().unwrap();
    let stream = timeout(SOON, acceptor.accept(stream)).await.unwrap();
    let mut stream = BufReader::new(stream.unwrap());
    for request in 0..3 {
        if request > 0 {
            client.send(ask).await.unwrap();
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            let read = timeout(SOON, stream.read_line(&mut line)).await;
            assert!(read.unwrap().unwrap() > 0, "it ended the connection");
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        while client.line().await.unwrap() != "ok" {}
    }
}

#[tokio::test]
async fn checks_speak_tls_too() {
    let authority = Authority::new();
    let pair = authority.pair(&["app.internal"]);
    let health =
        "health = { tcp = true, interval = \"50ms\", timeout = \"10s\", rise = 1, fall = 1 }";
    let good = scene(&pair, &authority, NAMED, health).await;
    let mut client = Client::connect(good.front).await.unwrap();
    client.echo(b"hello").await.unwrap();

    let bad = scene(&pair, &Authority::new(), NAMED, health).await;
    let line = bad.homescar.message("unhealthy").await;
    let why = line["why"].as_str().unwrap();
    assert!(why.contains("authority that is not believed"), "{line}");
}

#[tokio::test]
async fn a_backend_that_speaks_no_tls_is_given_up_with_a_reason() {
    let authority = Authority::new();
    // It accepts, and is silent.
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let more = "timeouts = { connect = \"200ms\" }";
    let scene = scene_before(address, &authority, NAMED, more).await;
    let mut client = Client::connect(scene.front).await.unwrap();
    client.rest().await.unwrap_err();
    let record = scene.homescar.record_of(client.local_addr()).await;
    assert_eq!(reason(&record), ("backend", "connect_failed", ""));
    scene.homescar.message("does it speak TLS?").await;
}

/// A server that wants a certificate of this authority.
fn strict(pair: &Pair, of: &Authority, version: &'static SupportedProtocolVersion) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    roots.add(of.der()).unwrap();
    let provider = Arc::new(default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build();
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(vec![pair.der()], pair.key_der())
        .unwrap()
}

/// With TLS 1.2 the handshake fails; with 1.3 it seems to be done, and the first word is a refusal.
#[tokio::test]
async fn a_backend_that_refuses_our_certificate_is_told_of() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.pair(&["app.internal"]);
    for version in [&TLS12, &TLS13] {
        for (shown, why) in [
            (
                None,
                "it wants a certificate of homescar; set `cert` and `key`",
            ),
            (Some(&stranger), "homescar's certificate"),
            (Some(&authority), ""),
        ] {
            let shown = shown.map(|by| by.pair(&["homescar.internal"]));
            let folder = TempDir::new().unwrap();
            let tls = shown.as_ref().map_or_else(String::new, |pair| {
                let (cert, key) = pair.write(folder.path());
                format!(
                    ", cert = \"{}\", key = \"{}\"",
                    cert.display(),
                    key.display()
                )
            });
            let config = strict(&pair, &authority, version);
            let (backend, _server) = echo_server(Arc::new(config), Arc::default()).await;
            let tls = format!("{NAMED}{tls}");
            let scene = scene_before(backend, &authority, &tls, "on_down = \"next\"").await;
            let mut client = Client::connect(scene.front).await.unwrap();
            if why.is_empty() {
                client.echo(b"hello").await.unwrap();
                continue;
            }
            let _error = client.send("secret").await;
            client.rest().await.unwrap_err();
            let line = scene.homescar.message("no TLS with a backend").await;
            let told = message(&line);
            // A server of TLS 1.2 has no alert that says that one is missing.
            let is_unclear = *version == TLS12 && shown.is_none();
            assert!(told.contains(why) || is_unclear, "{version:?}: {line}");
            assert_eq!(line["address"], backend.to_string(), "{line}");
            let record = scene.homescar.record_of(client.local_addr()).await;
            assert_eq!(record["by"], "backend", "{record}");
        }
    }
}
