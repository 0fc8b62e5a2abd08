//! Certificates change while clients come in.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::sleep;

use super::{Front, config, pki::TlsClient};
use crate::support::homescar::message;

impl Front {
    /// Waits for a line behind `mark`.
    async fn says(&self, mark: usize, part: &str) -> Value {
        let says = |line: &Value| message(line).contains(part);
        self.homescar.line_after(mark, part, says).await
    }
}

#[tokio::test]
async fn sessions_are_resumed_also_after_certificates_have_changed() {
    let front = Front::new(1, "").await;
    let tls = front.authority.client();
    let connect = async || {
        let mut client = TlsClient::connect(front.address, &tls).await.unwrap();
        // The tickets come with the first bytes.
        client.whoami().await.unwrap();
        client
    };
    assert!(!connect().await.is_resumed());
    assert!(connect().await.is_resumed());

    let mut established = connect().await;
    let new = front.authority.pair(&["a.test", "b.test"]);
    let mark = front.homescar.mark();
    new.write(front.folder.path());
    let line = front.says(mark, "certificates read again").await;
    assert!(
        message(&line).contains("for a.test, b.test, good until"),
        "{line}"
    );
    assert!(connect().await.is_resumed());
    let stranger = front.authority.client();
    let stranger = TlsClient::connect(front.address, &stranger).await.unwrap();
    assert_eq!(stranger.certificate(), new.der());

    let answer = front.homescar.reload(&front.config).await;
    assert_eq!(message(&answer), "reloaded");
    assert!(connect().await.is_resumed());
    established.whoami().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_while_certificates_change() {
    let front = Front::new(2, "").await;
    let done = Arc::new(AtomicBool::new(false));
    let handshakes = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (done, handshakes) = (Arc::clone(&done), Arc::clone(&handshakes));
        let (to, tls) = (front.address, front.authority.client());
        // Every other one is a full handshake.
        let full = front.authority.client_with(None, rustls::ALL_VERSIONS);
        clients.spawn(async move {
            while !done.load(Relaxed) {
                let mut full = full.clone();
                full.resumption = rustls::client::Resumption::disabled();
                for tls in [&tls, &Arc::new(full)] {
                    let mut client = TlsClient::connect(to, tls).await?;
                    client.whoami().await?;
                    handshakes.fetch_add(1, Relaxed);
                }
            }
            std::io::Result::Ok(())
        });
    }
    for _ in 0..10 {
        let before = handshakes.load(Relaxed);
        front.authority.pair(&["a.test"]).write(front.folder.path());
        let answer = front.homescar.reload(&front.config).await;
        assert_eq!(message(&answer), "reloaded");
        while handshakes.load(Relaxed) < before + 10 && clients.try_join_next().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    }
    let mark = front.homescar.mark();
    front.authority.pair(&["a.test"]).write(front.folder.path());
    front.says(mark, "certificates read again").await;
    done.store(true, Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap().unwrap();
    }
    assert!(handshakes.load(Relaxed) >= 100);
}

#[tokio::test]
async fn a_bad_pair_changes_nothing_and_is_told_once() {
    let front = Front::new(1, "").await;
    let served = async || {
        let tls = front.authority.client();
        let client = TlsClient::connect(front.address, &tls).await;
        client.unwrap().certificate()
    };
    let first = served().await;
    let mark = front.homescar.mark();
    let (new, other) = (
        front.authority.pair(&["a.test"]),
        front.authority.pair(&["a.test"]),
    );
    new.write(front.folder.path());
    fs::write(front.folder.path().join("key.pem"), &other.key).unwrap();
    let line = front.says(mark, "changed files are not used").await;
    assert_eq!(line["level"], "ERROR", "{line}");
    assert!(message(&line).contains("is not the key of"), "{line}");
    assert_eq!(served().await, first);

    let answer = front.homescar.reload(&front.config).await;
    assert!(
        message(&answer).contains("nothing has changed: listener web"),
        "{answer}"
    );
    assert_eq!(served().await, first);

    new.write(front.folder.path());
    front.says(mark, "certificates read again").await;
    assert_eq!(served().await, new.der());
    let log = front.homescar.log();
    let told = log.iter().filter(|line| message(line).contains("not used"));
    assert_eq!(told.count(), 1);
}

#[tokio::test]
async fn encryption_comes_and_goes_with_the_configuration() {
    let front = Front::new(1, "").await;
    let tls = front.authority.client();
    let mut before = TlsClient::connect(front.address, &tls).await.unwrap();
    before.whoami().await.unwrap();
    let plain: Vec<_> = front
        .config
        .lines()
        .filter(|line| !line.contains("tls ="))
        .collect();
    front.homescar.reload(&plain.join("\n")).await;
    let mut client = crate::support::client::Client::connect(front.address)
        .await
        .unwrap();
    client.whoami().await.unwrap();
    front
        .homescar
        .reload(&config(front.folder.path(), 1, "", ""))
        .await;
    let mut after = TlsClient::connect(front.address, &tls).await.unwrap();
    after.whoami().await.unwrap();
    client.whoami().await.unwrap();
    before.whoami().await.unwrap();
    front.homescar.signal(Signal::SIGTERM);
}
