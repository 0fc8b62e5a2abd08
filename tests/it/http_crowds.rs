//! HTTP mode and many clients of unmodified Node servers.

use std::{
    path::Path,
    process::{Command, Stdio},
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
    homescar.signal(Signal::SIGTERM);
    let seen = crowd.json().await;
    assert_eq!(seen["errors"], json!({}), "{seen}");
    assert_eq!(seen["codes"], json!({ "1012 restart": CLIENTS }), "{seen}");
    let tenths = seen["tenths"].as_object().unwrap();
    // A busy machine tells them late, never early: at no time have more been told than are due.
    let mut told = 0;
    for second in 0..5 {
        for tenth in 0..10 {
            let count = tenths.get(&(second * 10 + tenth).to_string());
            told += count.and_then(Value::as_u64).unwrap_or(0);
        }
        let due = (second + 1) * 400;
        assert!(told <= due + 200, "second {second}: {told} of {seen}");
    }
    soon("the end", homescar.exit()).await;
}
