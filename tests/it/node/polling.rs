//! socket.io by polling alone and without cookies, through a rolling restart: the ids that the old
//! generation gave lead to it for as long as it is there.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::script;
use crate::support::homescar::{Homescar, SOON, message};

const WORKERS: usize = 3;
const CLIENTS: usize = 30;

fn clients(port: u16) -> Child {
    let mut command = Command::new("node");
    command.arg(script("polling.mjs"));
    command.args([port.to_string(), CLIENTS.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_polling_session_stays_with_its_generation() {
    let command = json!(["node", script("servers.mjs"), "socket.io"]);
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        mode = "http"
        [cluster.app]
        affinity = {{ key = "query:sid" }}
        drain = {{ timeout = "8s", spread = "1s" }}
        [cluster.app.workers]
        command = {command}
        count = {WORKERS}
        stable = "200ms"
        "#
    ));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut clients = clients(to.port());
    let mut orders = clients.stdin.take().unwrap();
    let mut lines = BufReader::new(clients.stdout.take().unwrap()).lines();
    let mut count = async || -> Value {
        orders.write_all(b"count\n").await.unwrap();
        let line = timeout(2 * SOON, lines.next_line()).await.expect("in time");
        serde_json::from_str(&line.unwrap().unwrap()).unwrap()
    };
    let before = count().await;
    assert_eq!(before["connects"], CLIENTS, "{before}");
    assert_eq!(before["generations"], json!({ "1": CLIENTS }));

    let mark = homescar.mark();
    let mut restart = Command::new(env!("CARGO_BIN_EXE_homescar"));
    restart.args(["restart", "app", "--parallel", "3", "--socket"]);
    restart.arg(homescar.admin_socket()).stdout(Stdio::null());
    let mut restart = restart.spawn().unwrap();
    for slot in 0..WORKERS {
        let over = format!("app/{slot}: generation 2 has taken over");
        let is_over = |line: &Value| message(line).starts_with(&over);
        homescar.line_after(mark, &over, is_over).await;
    }
    // Longer than a client that is not there would be waited for.
    for _ in 0..6 {
        let now = count().await;
        assert_eq!(now["unknown"], 0, "{now}");
        assert_eq!(now["connects"], CLIENTS, "nobody had to come again: {now}");
        assert_eq!(now["generations"], json!({ "1": CLIENTS }), "{now}");
        sleep(Duration::from_millis(500)).await;
    }
    // At its deadline the old generation ends, and everybody comes again.
    assert!(
        timeout(2 * SOON, restart.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    let mut now = count().await;
    for _ in 0..100 {
        if now["generations"] == json!({ "2": CLIENTS }) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
        now = count().await;
    }
    assert_eq!(now["generations"], json!({ "2": CLIENTS }), "{now}");
}
