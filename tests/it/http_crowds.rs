//! HTTP mode and many clients of unmodified Node servers.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};

use crate::{http::soon, support::homescar::Homescar};

fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    assert!(
        folder.join("node_modules/socket.io").is_dir(),
        "the npm packages are not installed in {0}: run tests/run, or npm ci --prefix {0}",
        folder.display()
    );
    folder.join(name).display().to_string()
}

async fn serve(kind: &str, cluster: &str) -> (Homescar, u16) {
    let command = json!(["node", script("servers.mjs"), kind]);
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 4, contract = "port" }}
        {cluster}
        "#
    ));
    let port = homescar.address("web").await.port();
    homescar.all_ready("app", 4).await;
    (homescar, port)
}

/// A script, ended with the test, and what it prints.
struct Crowd {
    _child: tokio::process::Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Crowd {
    fn start(name: &str, port: u16, clients: usize, more: &[&str]) -> Self {
        let mut command = Command::new("node");
        command
            .arg(script(name))
            .args([port.to_string(), clients.to_string()])
            .args(more)
            .stdout(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            _child: child,
            lines,
        }
    }

    async fn line(&mut self) -> String {
        let within = std::time::Duration::from_secs(90);
        let line = tokio::time::timeout(within, self.lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("not the end")
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }
}

#[tokio::test]
async fn clients_that_roam_keep_their_sessions_by_cookie() {
    roam("cookie", &[]).await;
}

#[tokio::test]
async fn clients_that_roam_keep_their_sessions_by_the_id_that_they_were_given() {
    roam("query:sid", &["no-cookies"]).await;
}

async fn roam(key: &str, more: &[&str]) {
    const CLIENTS: usize = 300;
    let affinity = format!("affinity = {{ key = \"{key}\" }}");
    let (homescar, port) = serve("socket.io", &affinity).await;
    let seen = Crowd::start("roaming.mjs", port, CLIENTS, more)
        .json()
        .await;
    assert_eq!(seen["served"], CLIENTS, "{seen}");
    assert_eq!(seen["failures"], json!({}), "{seen}");
    assert_eq!(
        seen["transports"],
        json!({ "polling": CLIENTS / 2, "websocket": CLIENTS / 2 }),
        "{seen}"
    );
    assert_eq!(seen["pids"].as_object().unwrap().len(), 4, "{seen}");
    let log = homescar.log();
    let complaint = log
        .iter()
        .find(|line| line.to_string().contains("engine error"));
    assert_eq!(complaint, None);
}

#[tokio::test]
async fn two_thousand_websockets_are_told_to_go_one_after_the_other() {
    const CLIENTS: usize = 2000;
    let drain = "drain = { timeout = \"30s\", spread = \"5s\", reason = \"restart\" }";
    let (mut homescar, port) = serve("talks", drain).await;
    let mut crowd = Crowd::start("leaving.mjs", port, CLIENTS, &[]);
    assert_eq!(crowd.line().await, "open");
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    homescar.signal(Signal::SIGTERM);
    let seen = crowd.json().await;
    assert_eq!(seen["errors"], json!({}), "{seen}");
    assert_eq!(seen["codes"], json!({ "1012 restart": CLIENTS }), "{seen}");
    // A busy machine tells them late, never early: at no time have more been told than are due.
    let signal = u64::try_from(since_1970.as_millis() / 100).unwrap();
    let told = seen["tenths"].as_object().unwrap().iter();
    let told = told.map(|(tenth, count)| {
        let tenth: u64 = tenth.parse().unwrap();
        (tenth - signal, count.as_u64().unwrap())
    });
    let told: BTreeMap<u64, u64> = told.collect();
    let mut in_all = 0;
    for (tenth, count) in told {
        in_all += count;
        // Two threads, each with shares of its own.
        let due = (tenth + 1) * CLIENTS as u64 / 50 + 2;
        assert!(in_all <= due, "tenth {tenth}: {in_all} of {seen}");
    }
    soon("the end", homescar.exit()).await;
}
