//! Contract `node`: unmodified Node applications, given their sockets by Node's own protocol.

mod crowd;
mod lag;
mod polling;
mod rolling;
mod upgrade;

use std::{net::SocketAddr, path::Path, time::Duration};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{
    client::{Client, address_of_client},
    homescar::{Homescar, SOON, free_port, message, pid},
};

pub(crate) fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    assert!(
        folder.join("node_modules/socket.io").is_dir(),
        "the npm packages are not installed in {0}: run tests/run, or npm ci --prefix {0}",
        folder.display()
    );
    folder.join(name).display().to_string()
}

/// Workers of tests/node/servers.mjs; `bind` is the listener's.
fn serve(bind: &str, arguments: &[&str], workers: &str, cluster: &str) -> Homescar {
    serve_in("tcp", bind, arguments, workers, cluster)
}

fn serve_in(mode: &str, bind: &str, arguments: &[&str], workers: &str, cluster: &str) -> Homescar {
    let mut command = vec!["node".to_owned(), script("servers.mjs")];
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let command = json!(command);
    Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "{bind}"
        cluster = "app"
        mode = "{mode}"
        [cluster.app]
        workers = {{ command = {command}, {workers} }}
        {cluster}
        "#
    ))
}

/// The JSON that a GET is answered with.
async fn get(client: usize, to: SocketAddr) -> std::io::Result<Value> {
    get_at(client, to, "/").await
}

async fn get_at(client: usize, to: SocketAddr, target: &str) -> std::io::Result<Value> {
    let mut client = Client::connect_from(address_of_client(client), to).await?;
    let request = format!("GET {target} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n");
    client.send(&request).await?;
    let answer = String::from_utf8_lossy(&client.rest().await?).into_owned();
    let body = answer
        .find('{')
        .and_then(|at| answer[at..].rfind('}').map(|end| &answer[at..=at + end]));
    let body = body.ok_or_else(|| std::io::Error::other(format!("no JSON in {answer:?}")))?;
    Ok(serde_json::from_str(body)?)
}

fn here(to: SocketAddr) -> SocketAddr {
    ([127, 0, 0, 1], to.port()).into()
}

/// Unmodified, on the public port of all addresses: everybody is served by one's own worker.
/// In mode tcp everybody comes through homescar; in direct mode nobody does.
async fn is_served(kind: &str, mode: &str) {
    let homescar = serve_in(mode, "0.0.0.0:0", &[kind], "count = 4", "");
    let pids = homescar.all_ready("app", 4).await;
    let to = here(homescar.address("web").await);
    let mut met = [false; 4];
    for client in 0..40 {
        let who = get(client, to).await.unwrap();
        let index = who["id"].as_u64().unwrap() as usize - 1;
        assert_eq!(who["slot"], format!("app/{index}"));
        assert_eq!(who["pid"], pids[index]);
        assert_eq!(who["isWorker"], true);
        let again = get(client, to).await.unwrap();
        assert_eq!(again, who);
        met[index] = true;
        if kind == "http" {
            assert_eq!(
                who["port"],
                to.port(),
                "the port that the application asked for"
            );
        }
    }
    assert_eq!(met, [true; 4]);
    if mode == "direct" {
        assert!(homescar.records().is_empty(), "nobody was relayed");
    } else {
        let relayed = |line: &Value| {
            message(line) == "connection"
                && line["client"].as_str().unwrap().starts_with("127.1.0.40:")
        };
        homescar.line("the last one", relayed).await;
    }
    let strays = homescar
        .log()
        .iter()
        .filter(|line| message(line).contains("contract port"))
        .count();
    assert_eq!(strays, 0);
}

#[tokio::test]
async fn unmodified_http() {
    is_served("http", "tcp").await;
    is_served("http", "direct").await;
}

#[tokio::test]
async fn unmodified_express() {
    is_served("express", "tcp").await;
    is_served("express", "direct").await;
}

#[tokio::test]
async fn unmodified_fastify() {
    is_served("fastify", "tcp").await;
    is_served("fastify", "direct").await;
}

#[tokio::test]
async fn unmodified_ws() {
    ws_is_served("tcp").await;
    ws_is_served("direct").await;
}

async fn ws_is_served(mode: &str) {
    let homescar = serve_in(mode, "127.0.0.1:0", &["ws"], "count = 2", "");
    homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    for client in 0..10 {
        let http = get(client, to).await.unwrap();
        let stream = Client::connect_from(address_of_client(client), to)
            .await
            .unwrap();
        let stream = stream.stream.into_inner();
        let (mut socket, _) = tokio_tungstenite::client_async("ws://app/", stream)
            .await
            .unwrap();
        use futures_util::{SinkExt as _, StreamExt as _};
        socket.send("who".into()).await.unwrap();
        let answer = timeout(SOON, socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let who: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
        assert_eq!(who, http);
    }
}

/// Killed again and again: who connects right after waits, and the next generation serves it.
#[tokio::test]
async fn a_killed_workers_clients_wait_for_the_next_generation() {
    clients_wait("tcp").await;
    clients_wait("direct").await;
}

async fn clients_wait(mode: &str) {
    let homescar = serve_in(
        mode,
        "127.0.0.1:0",
        &["http"],
        "count = 2",
        "on_down = \"hold 10s\"",
    );
    homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    let mut victim = None;
    for client in 0..20 {
        let who = get(client, to).await.unwrap();
        if who["slot"] == "app/1" {
            victim = Some(client);
        }
    }
    let victim = victim.expect("somebody at home in app/1");
    for generation in 1..=3 {
        let who = get(victim, to).await.unwrap();
        assert_eq!(
            (&who["slot"], &who["generation"]),
            (&json!("app/1"), &json!(generation))
        );
        let mark = homescar.mark();
        let process = u32::try_from(who["pid"].as_u64().unwrap()).unwrap();
        kill(pid(process), Signal::SIGKILL).unwrap();
        let killed = |line: &Value| message(line).contains("ended: signal KILL");
        homescar.line_after(mark, "its death", killed).await;
        let who = get(victim, to).await.unwrap();
        assert_eq!(
            (&who["slot"], &who["generation"]),
            (&json!("app/1"), &json!(generation + 1))
        );
        homescar.ready_after(mark, "app/1").await;
    }
    let lost = |record: &Value| record["slot"] != "app/1" && record["slot"] != "app/0";
    assert!(!homescar.records().iter().any(lost));
}

#[tokio::test]
async fn another_port_than_the_listeners() {
    let port = free_port().to_string();
    let homescar = serve("127.0.0.1:0", &["other", &port], "count = 2", "");
    homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    assert_eq!(get(1, to).await.unwrap()["isWorker"], true);
    let direct: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    assert!(
        Client::connect(direct).await.is_err(),
        "reachable beside homescar"
    );
}

#[tokio::test]
async fn the_operators_port_is_shared_and_not_routed_to() {
    let port = free_port().to_string();
    let homescar = serve("127.0.0.1:0", &["several", &port], "count = 2", "");
    homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    for client in 0..10 {
        assert_eq!(get(client, to).await.unwrap()["admin"], false);
    }
    let admin = format!("127.0.0.1:{port}").parse().unwrap();
    assert_eq!(get(1, admin).await.unwrap()["admin"], true);
    homescar
        .message(&format!("listens on port {port} too"))
        .await;
}

#[tokio::test]
async fn who_never_listens_is_told_so() {
    let workers = "count = 1, ready_timeout = \"2s\", stop_timeout = \"1s\"";
    let homescar = serve("127.0.0.1:0", &["never"], workers, "");
    let line = homescar.message("has not listened on any port").await;
    assert_eq!(line["slot"], "app/0");
}

#[tokio::test]
async fn ready_is_what_the_application_says() {
    let homescar = serve(
        "127.0.0.1:0",
        &["slow", "1500"],
        "count = 1, ready = \"notify\"",
        "",
    );
    let began = Instant::now();
    homescar.ready("app/0").await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
}

#[tokio::test]
async fn the_application_is_told_to_shut_down() {
    let mut homescar = serve("127.0.0.1:0", &["shutdown"], "count = 1", "");
    homescar.ready("app/0").await;
    homescar.signal(Signal::SIGTERM);
    assert_eq!(homescar.exit().await.code(), Some(0));
    homescar.message("app/0 stopped: exit code 7").await;
}

#[tokio::test]
async fn a_child_of_the_application_is_its_own() {
    let homescar = serve("127.0.0.1:0", &["forks"], "count = 1", "");
    homescar.ready("app/0").await;
    let who = get(1, homescar.address("web").await).await.unwrap();
    assert_eq!(
        who["child"],
        json!({ "isWorker": false, "connected": true })
    );
}

#[tokio::test]
async fn who_disconnects_is_replaced() {
    let homescar = serve(
        "127.0.0.1:0",
        &["disconnects"],
        "count = 1",
        "on_down = \"hold 10s\"",
    );
    homescar.ready("app/0").await;
    let to = homescar.address("web").await;
    for generation in 1..=3 {
        let who = get(1, to).await.unwrap();
        assert_eq!(who["generation"], generation);
        let gone = format!("generation {generation}");
        let is_gone = |line: &Value| {
            line["generation"] == generation && message(line).contains("ended: exit code 0")
        };
        homescar.line(&gone, is_gone).await;
    }
    homescar.message("says that it is stopping").await;
}

#[tokio::test]
async fn a_flood_costs_only_its_worker() {
    let homescar = serve("127.0.0.1:0", &["floods"], "count = 1", "");
    homescar
        .message("sends more to its primary than homescar takes")
        .await;
    let before = crate::support::homescar::resident_kib(homescar.pid());
    assert!(before < 100_000, "{before} KiB");
}

#[tokio::test]
async fn a_unix_path_is_refused_in_a_clear_line() {
    let homescar = serve("127.0.0.1:0", &["unix"], "count = 1", "");
    homescar.ready("app/0").await;
    let who = get(1, homescar.address("web").await).await.unwrap();
    assert_eq!(who["code"], "ENOTSUP");
    homescar.message("only on TCP ports").await;
}

/// The kernel cannot hand clients to a server on another port, so they are relayed.
#[tokio::test]
async fn in_direct_mode_another_port_is_relayed_to_and_said() {
    let port = free_port().to_string();
    let homescar = serve_in("direct", "127.0.0.1:0", &["other", &port], "count = 2", "");
    homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    let said = format!(
        "listens on port {port}, and its clients come to {}",
        to.port()
    );
    homescar.message(&said).await;
    for client in 0..20 {
        let who = get(client, to).await.unwrap();
        assert_eq!(get(client, to).await.unwrap(), who);
    }
    let relayed = |line: &Value| message(line) == "connection" && line["by"] != "proxy";
    homescar.line("a record", relayed).await;
}

/// A program that says nothing on the channel, and wants a port of its own.
#[tokio::test]
async fn who_does_not_speak_the_protocol_goes_on_with_port() {
    goes_on_with_port("tcp").await;
    goes_on_with_port("direct").await;
}

async fn goes_on_with_port(mode: &str) {
    let worker = crate::support::homescar::WORKER;
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        mode = "{mode}"
        [cluster.app]
        workers = {{ command = ["{worker}"], count = 1, contract = "node" }}
        "#
    ));
    homescar.message("it goes on with contract port").await;
    homescar.ready("app/0").await;
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    assert_eq!(client.whoami().await.unwrap().generation, 2);
}

/// Two homescars with the same port asked for by their applications do not meet.
#[tokio::test]
async fn two_homescars_do_not_meet() {
    let port = free_port().to_string();
    let first = serve("127.0.0.1:0", &["other", &port], "count = 2", "");
    let second = serve("127.0.0.1:0", &["other", &port], "count = 2", "");
    let mut pids = Vec::new();
    for homescar in [&first, &second] {
        pids.push(homescar.all_ready("app", 2).await);
    }
    for (homescar, pids) in [(&first, &pids[0]), (&second, &pids[1])] {
        let to = homescar.address("web").await;
        for client in 0..20 {
            let who = get(client, to).await.unwrap();
            let pid = u32::try_from(who["pid"].as_u64().unwrap()).unwrap();
            assert!(pids.contains(&pid), "{who} of {pids:?}");
        }
    }
}
