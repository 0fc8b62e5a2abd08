//! TLS with clients and backends, by the program as it is run.

mod acceptor;
mod backends;
pub(crate) mod pki;
mod reload;

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use rcgen::date_time_ymd;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use self::pki::{Authority, Pair, TlsClient};
use crate::support::{
    client::{Client, address_of_client},
    homescar::{Homescar, SOON, WORKER, message},
};

/// A homescar whose listener `web` is encrypted, before workers.
pub(crate) struct Front {
    pub(crate) homescar: Homescar,
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) folder: TempDir,
    pub(crate) config: String,
}

impl Front {
    pub(crate) async fn new(workers: usize, options: &str) -> Self {
        Self::with_tls(workers, "", options).await
    }

    /// `tls` stands behind the pair, `options` below the listener.
    pub(crate) async fn with_tls(workers: usize, tls: &str, options: &str) -> Self {
        let authority = Authority::new();
        let folder = TempDir::new().unwrap();
        authority.pair(&["a.test"]).write(folder.path());
        fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let config = config(folder.path(), workers, tls, options);
        let homescar = Homescar::serve(&config);
        homescar.all_ready("app", workers).await;
        let address = homescar.address("web").await;
        Self {
            homescar,
            address,
            authority,
            folder,
            config,
        }
    }

    pub(crate) async fn record_of(&self, client: SocketAddr) -> Value {
        self.homescar.record_of(client).await
    }
}

fn config(folder: &std::path::Path, workers: usize, tls: &str, options: &str) -> String {
    let folder = folder.display();
    let tls = tls.replace("FOLDER", &folder.to_string());
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem"{tls} }}
        {options}
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = {workers} }}
        drain = {{ timeout = "300ms" }}
        "#
    )
}

fn reason(record: &Value) -> (&str, &str, &str) {
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    (text("by"), text("reason"), text("detail"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_stay_with_their_workers() {
    let front = Front::new(4, "").await;
    let tls = front.authority.client();
    let mut slots = std::collections::BTreeSet::new();
    for index in 0..24 {
        let from = address_of_client(index);
        let slot_of = async || {
            let client = TlsClient::connect_from(from, front.address, &tls).await;
            client.unwrap().whoami().await.unwrap().slot
        };
        let slot = slot_of().await;
        assert_eq!(slot_of().await, slot);
        slots.insert(slot);
    }
    assert_eq!(slots.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_is_carried_and_an_end_is_half_of_the_end() {
    let front = Front::new(1, "").await;
    let tls = front.authority.client();
    let mut client = TlsClient::connect(front.address, &tls).await.unwrap();
    client.start_echo().await.unwrap();
    for size in [1, 1000, 16 * 1024, 100_000] {
        client.echo(&vec![b'x'; size]).await.unwrap();
    }
    // More than all buffers on the way hold; the echo comes while it is sent, and after the end.
    let sent = vec![b'y'; 8 << 20];
    let (mut reader, mut writer) = tokio::io::split(client.stream);
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let read = reader.read_to_end(&mut back);
    let (_, read) = timeout(SOON, async { tokio::join!(write, read) })
        .await
        .unwrap();
    assert_eq!(read.unwrap(), sent.len());
    assert!(back == sent);
    let here = reader
        .unsplit(writer)
        .get_ref()
        .get_ref()
        .0
        .local_addr()
        .unwrap();
    let record = front.record_of(here).await;
    assert_eq!(reason(&record), ("client", "closed", ""), "{record}");
    assert!(record["up"].as_u64().unwrap() > 8 << 20, "{record}");
}

#[tokio::test]
async fn an_end_that_is_not_said_in_tls_is_an_end_in_order() {
    let front = Front::new(1, "").await;
    let tls = front.authority.client();
    let mut client = TlsClient::connect(front.address, &tls).await.unwrap();
    client.whoami().await.unwrap();
    let here = client.local_addr();
    let (mut socket, _session) = client.stream.into_inner().into_inner();
    socket.shutdown().await.unwrap();
    let record = front.record_of(here).await;
    assert_eq!(reason(&record), ("client", "closed", ""), "{record}");
}

#[tokio::test]
async fn a_reset_travels_through() {
    let front = Front::new(1, "").await;
    let tls = front.authority.client();
    let mut client = TlsClient::connect(front.address, &tls).await.unwrap();
    client.whoami().await.unwrap();
    let here = client.local_addr();
    let (socket, _session) = client.stream.into_inner().into_inner();
    socket2::SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
    let record = front.record_of(here).await;
    assert_eq!(reason(&record), ("client", "reset", ""), "{record}");
}

#[tokio::test]
async fn a_proxy_header_comes_before_tls() {
    let options = "accept_proxy = true\ntrusted = [\"127.0.0.1\"]";
    let front = Front::new(1, options).await;
    let tls = front.authority.client();
    let named = "192.0.2.7:4711";
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
    stream.write_all(header).await.unwrap();
    let mut client = TlsClient::over(stream, &tls, "a.test").await.unwrap();
    client.whoami().await.unwrap();
    client.shutdown().await.unwrap();
    client.rest().await.unwrap();
    let record = front.record_of(named.parse().unwrap()).await;
    assert_eq!(reason(&record), ("client", "closed", ""), "{record}");
}

#[tokio::test]
async fn http_speaks_either_version_as_agreed() {
    let front = Front::new(1, "mode = \"http\"").await;
    let agreed = async |offered: &[&str]| {
        let mut tls = front.authority.client_with(None, rustls::ALL_VERSIONS);
        tls.alpn_protocols = offered.iter().map(|name| name.as_bytes().into()).collect();
        let client = TlsClient::connect(front.address, &tls.into()).await;
        let client = client.unwrap();
        let protocol = client.stream.get_ref().get_ref().1.alpn_protocol();
        let protocol = protocol.map(|name| String::from_utf8(name.into()).unwrap());
        (client, protocol)
    };
    let (_, protocol) = agreed(&["h2", "http/1.1"]).await;
    assert_eq!(protocol.as_deref(), Some("h2"));
    let (mut client, protocol) = agreed(&["http/1.1"]).await;
    assert_eq!(protocol.as_deref(), Some("http/1.1"));
    let request = "GET /health HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    client.send(request).await.unwrap();
    let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_and_recorded() {
    let front = Front::new(1, "").await;
    let mut browser = Client::connect(front.address).await.unwrap();
    browser
        .send("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        .await
        .unwrap();
    let answer = String::from_utf8(browser.rest().await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("This port speaks TLS"), "{answer}");
    let record = front.record_of(browser.local_addr()).await;
    assert_eq!(reason(&record), ("client", "tls_handshake", "not_tls"));

    let mut other = Client::connect(front.address).await.unwrap();
    other.send("SSH-2.0-OpenSSH\r\n").await.unwrap();
    let _reset_or_end = other.rest().await;
    let record = front.record_of(other.local_addr()).await;
    assert_eq!(reason(&record), ("client", "tls_handshake", "not_tls"));

    let gone = Client::connect(front.address).await.unwrap();
    let here = gone.local_addr();
    drop(gone);
    let record = front.record_of(here).await;
    assert_eq!(reason(&record), ("client", "tls_handshake", "gone"));
}

#[tokio::test]
async fn who_is_silent_or_slow_is_cut_by_the_header_timeout() {
    let front = Front::new(1, "timeouts = { header = \"300ms\" }").await;
    let mut silent = Client::connect(front.address).await.unwrap();
    // A record of 512 bytes of which only these come.
    let mut slow = Client::connect(front.address).await.unwrap();
    slow.send([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
        .await
        .unwrap();
    for client in [&mut silent, &mut slow] {
        let _reset_or_end = client.rest().await;
        let record = front.record_of(client.local_addr()).await;
        assert_eq!(reason(&record), ("client", "tls_timeout", ""), "{record}");
        let ms = record["ms"].as_u64().unwrap();
        assert!(ms >= 300, "{record}");
    }
}

#[tokio::test]
async fn a_handshake_that_is_cut_has_one_record() {
    let front = Front::new(1, "timeouts = { header = \"1h\" }").await;
    let mut silent = Client::connect(front.address).await.unwrap();
    silent.send([22, 3, 1, 2, 0]).await.unwrap();
    let here = silent.local_addr();
    let mut homescar = front.homescar;
    homescar.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(homescar.exit().await.success());
    let ours = here.to_string();
    let records = homescar.records();
    let records: Vec<_> = records.iter().filter(|r| r["client"] == *ours).collect();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(reason(records[0]), ("proxy", "cut", ""));
}

#[tokio::test]
async fn clients_show_certificates_where_they_must() {
    let ca = ", client_ca = \"FOLDER/ca.pem\"";
    let front = Front::with_tls(1, ca, "").await;
    let ours = front.authority.pair(&["client.test"]);
    let others = Authority::new().pair(&["client.test"]);
    let connect = async |shown: Option<&Pair>| {
        let tls = front.authority.client_with(shown, rustls::ALL_VERSIONS);
        let stream = TcpStream::connect(front.address).await.unwrap();
        let here = stream.local_addr().unwrap();
        // A client of TLS 1.3 learns that it is refused only when it reads.
        let served = async {
            let mut client = TlsClient::over(stream, &tls.into(), "a.test").await?;
            client.whoami().await
        };
        (here, served.await)
    };
    let (_, served) = connect(Some(&ours)).await;
    served.unwrap();
    for (shown, detail) in [(None, "no_certificate"), (Some(&others), "bad_certificate")] {
        let (here, served) = connect(shown).await;
        served.unwrap_err();
        let record = front.record_of(here).await;
        assert_eq!(reason(&record), ("client", "tls_handshake", detail));
    }

    let optional = format!("{ca}, client_optional = true");
    let config = config(front.folder.path(), 1, &optional, "");
    assert_eq!(message(&front.homescar.reload(&config).await), "reloaded");
    for (shown, is_served) in [(None, true), (Some(&ours), true), (Some(&others), false)] {
        let (_, served) = connect(shown).await;
        assert_eq!(served.is_ok(), is_served);
    }
}

/// Nothing is timed here: only that those who are in do not suffer, and that all come in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_handshakes_harms_nobody() {
    let front = Front::new(2, "").await;
    let tls = front.authority.client();
    let mut established = TlsClient::connect(front.address, &tls).await.unwrap();
    established.start_echo().await.unwrap();
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..200 {
        // A client of its own each: none has a session to resume.
        let (to, tls) = (front.address, front.authority.client());
        storm.spawn(async move {
            let mut client = TlsClient::connect(to, &tls).await?;
            assert!(!client.is_resumed());
            client.whoami().await
        });
    }
    let mut done = 0;
    while done < 200 {
        established.echo(b"still here").await.unwrap();
        while let Some(client) = storm.try_join_next() {
            client.unwrap().unwrap();
            done += 1;
        }
    }
}

/// What `homescar` says of a configuration whose files are these: its exit code and standard error.
fn judged(command: &str, pair: &Pair, spoil: impl FnOnce(&std::path::Path)) -> (i32, String) {
    let folder = TempDir::new().unwrap();
    pair.write(folder.path());
    spoil(folder.path());
    let file = folder.path().join("homescar.toml");
    fs::write(&file, config(folder.path(), 1, "", "")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_homescar"))
        .args([command, "-c", file.to_str().unwrap()])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), told)
}

#[test]
fn files_that_cannot_be_used_are_faults_of_the_configuration() {
    let authority = Authority::new();
    let pair = authority.pair(&["a.test"]);
    let other = authority.pair(&["a.test"]);
    for command in ["serve", "check"] {
        let faults = |spoil: &dyn Fn(&std::path::Path), parts: &[&str]| {
            let (code, told) = judged(command, &pair, spoil);
            assert_eq!(code, 78, "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
            for part in parts {
                assert!(told.contains(part), "{part:?} is not in {told}");
            }
        };
        let put = |name: &'static str, text: String| {
            move |folder: &std::path::Path| fs::write(folder.join(name), &text).unwrap()
        };
        faults(
            &|folder| fs::remove_file(folder.join("key.pem")).unwrap(),
            &["listener web", "/key.pem: does not exist"],
        );
        faults(
            &put("key.pem", other.key.clone()),
            &[
                "/key.pem: is not the key of the certificate in /",
                "/cert.pem",
            ],
        );
        faults(
            &put("cert.pem", pair.key.clone()),
            &["/cert.pem: holds a key", "swapped"],
        );
        faults(
            &put("key.pem", pair.cert.clone()),
            &["/key.pem: holds a certificate", "swapped"],
        );
        faults(
            &put("cert.pem", "nothing".to_owned()),
            &["/cert.pem: holds no certificate"],
        );
        faults(
            &put("key.pem", String::new()),
            &["/key.pem: holds no private key"],
        );
        let locked = pair.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        faults(&put("key.pem", locked), &["/key.pem", "passphrase"]);
        let cut_short = pair.cert[..pair.cert.len() / 2].to_owned();
        faults(
            &put("cert.pem", cut_short),
            &["/cert.pem: is not valid PEM", "no end"],
        );
    }
}

#[tokio::test]
async fn an_expired_certificate_is_served_and_warned_of() {
    let pair = Authority::new().pair_with(&["old.test"], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let (code, told) = judged("check", &pair, |_| {});
    assert_eq!(code, 0, "{told}");
    let says = [
        "listener web",
        "cert.pem for old.test",
        "2002-01-01",
        "has expired",
    ];
    for part in says {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }

    let folder = TempDir::new().unwrap();
    pair.write(folder.path());
    let homescar = Homescar::serve(&config(folder.path(), 1, "", ""));
    let line = homescar.message("has expired").await;
    assert_eq!(line["level"], "WARN", "{line}");
    homescar.address("web").await;
}
