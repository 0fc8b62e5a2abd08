//! The admin API: who may speak to it, what it says of itself and of homescar.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Output};

use homescar::admin::{client::Client, view::Status};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::support::homescar::{Homescar, SOON, WORKER, eventually, message};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn config(admin: &str) -> String {
    format!(
        "[listener.web]
         bind = \"127.0.0.1:0\"
         cluster = \"app\"
         [cluster.app]
         workers = {{ command = [\"{WORKER}\"], count = 2 }}
         {admin}"
    )
}

/// A command of the same program that speaks to this homescar.
async fn tell(homescar: &Homescar, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args(arguments);
    command.arg("--socket").arg(homescar.admin_socket());
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a stream answers to a request that is its last.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let request = format!("{request}\r\nHost: homescar\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn status_tells_listeners_clusters_and_slots() {
    let homescar = Homescar::serve(&config(""));
    let pids = homescar.all_ready("app", 2).await;
    let address = homescar.address("web").await;
    let _open = TcpStream::connect(address).await.unwrap();
    let mut client = Client::connect(&homescar.admin_socket()).await.unwrap();
    let status: Status = client.get("/status").await.unwrap();
    assert_eq!(status.pid, homescar.pid());
    assert_eq!((&*status.phase, status.listeners.len()), ("running", 1));
    assert_eq!(status.listeners[0].addresses, [address.to_string()]);
    let slots = &status.clusters[0].slots;
    assert_eq!(slots.len(), 2);
    for (slot, pid) in slots.iter().zip(pids) {
        let backend = slot.backend.as_ref().unwrap();
        assert_eq!((&*slot.state, backend.generation), ("ready", 1));
        assert_eq!(backend.pid, Some(pid));
        assert!(backend.rss.unwrap() > 100_000, "{backend:?}");
    }
    let page = tell(&homescar, &["status"]).await;
    assert!(page.status.success());
    let page = text(&page.stdout);
    for expected in ["app/0", "app/1", "ready", "web", &address.to_string()] {
        assert!(page.contains(expected), "no {expected} in\n{page}");
    }
    assert!(page.lines().all(|line| line.trim_end() == line), "{page}");
    let json = tell(&homescar, &["status", "--json"]).await;
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["clusters"][0]["slots"][1]["name"], "app/1");
}

#[tokio::test]
async fn only_its_own_user_may_open_the_socket() {
    let homescar = Homescar::serve(&config(""));
    homescar.all_ready("app", 2).await;
    let mode = fs::metadata(homescar.admin_socket()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[tokio::test]
async fn over_tcp_only_whoever_has_the_token_is_answered() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = {file:?}");
    let homescar = Homescar::serve(&config(&admin));
    homescar.all_ready("app", 2).await;
    let line = homescar.message("answers to").await;
    let to = line["tcp"].as_str().unwrap().to_owned();
    let shown = |token: &str| format!("GET /status HTTP/1.1\r\nAuthorization: Bearer {token}");
    let of = async |request: &str| ask(TcpStream::connect(&to).await.unwrap(), request).await;
    assert!(of(&shown(TOKEN)).await.starts_with("HTTP/1.1 200 "));
    for request in ["GET /status HTTP/1.1", &shown("x"), "POST /stop HTTP/1.1"] {
        let answer = of(request).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{request}: {answer}");
        assert!(!answer.contains("app/0"), "{answer}");
    }
    // Whoever asks these has no secrets.
    assert!(of("GET /live HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
    assert!(of("GET /ready HTTP/1.1").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn what_cannot_be_offered_is_told_at_the_start() {
    let folder = TempDir::new().unwrap();
    let (file, token) = (folder.path().join("file"), folder.path().join("token"));
    fs::write(&file, "not a socket").unwrap();
    fs::write(&token, "short").unwrap();
    let nowhere = folder.path().join("nowhere/admin.sock");
    for (admin, expected) in [
        (format!("socket = {file:?}"), "is there and no socket"),
        (format!("socket = {nowhere:?}"), "No such file or directory"),
        (
            format!("listen = \"127.0.0.1:0\"\ntoken_file = {token:?}"),
            "has 5 of at least 16 characters",
        ),
    ] {
        let mut homescar = Homescar::serve(&config(&format!("[admin]\n{admin}")));
        assert_eq!(homescar.exit().await.code(), Some(69), "{admin}");
        let tail = homescar.tail();
        assert!(tail.contains(expected), "{expected}: {tail}");
    }
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_taken_and_one_that_answers_is_not() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let admin = format!("[admin]\nsocket = {path:?}");
    let first = Homescar::serve(&config(&admin));
    first.all_ready("app", 2).await;
    let mut second = Homescar::serve(&config(&admin));
    assert_eq!(second.exit().await.code(), Some(69));
    assert!(second.tail().contains("another homescar answers at"));
    assert!(path.exists(), "the first one's socket was removed");
    // Where nobody chose the path, both get one.
    let socket = path.to_str().unwrap();
    let file = folder.path().join("third.toml");
    fs::write(&file, config("")).unwrap();
    let arguments = [
        "serve",
        "--log-format",
        "json",
        "-c",
        file.to_str().unwrap(),
    ];
    let third = Homescar::command(&arguments, &[("HOMESCAR_SOCKET", socket)]);
    let line = third.message("answers to").await;
    let own = PathBuf::from(line["socket"].as_str().unwrap());
    let mut client = Client::connect(&own).await.unwrap();
    let status: Status = client.get("/status").await.unwrap();
    assert_eq!(status.pid, third.pid());
}

#[tokio::test]
async fn reload_says_what_came_of_it() {
    let homescar = Homescar::serve(&config(""));
    homescar.all_ready("app", 2).await;
    let told = tell(&homescar, &["reload"]).await;
    assert!(told.status.success());
    assert_eq!(text(&told.stdout), "reloaded\n");
    fs::write(homescar.config_file(), config("[cluster.app.nonsense]")).unwrap();
    let told = tell(&homescar, &["reload"]).await;
    assert_eq!(told.status.code(), Some(1));
    assert!(
        text(&told.stderr).contains("cluster.app.nonsense"),
        "{told:?}"
    );
    let mut client = Client::connect(&homescar.admin_socket()).await.unwrap();
    let status: Status = client.get("/status").await.unwrap();
    assert_eq!((status.reloads.succeeded, status.reloads.failed), (1, 1));
    assert!(
        status
            .reloads
            .error
            .unwrap()
            .contains("cluster.app.nonsense")
    );
}

#[tokio::test]
async fn stop_drains_and_whoever_comes_later_is_told() {
    let mut homescar = Homescar::serve(&config(""));
    homescar.all_ready("app", 2).await;
    let mut open = TcpStream::connect(homescar.address("web").await)
        .await
        .unwrap();
    open.write_all(b"whoami\n").await.unwrap();
    let mut byte = [0];
    open.read_exact(&mut byte).await.unwrap();
    let socket = homescar.admin_socket();
    let ready = "GET /ready HTTP/1.1";
    let of = async |request: &str| ask(UnixStream::connect(&socket).await.unwrap(), request).await;
    assert!(of(ready).await.starts_with("HTTP/1.1 200 "));
    assert!(tell(&homescar, &["stop"]).await.status.success());
    homescar.message("draining").await;
    let answer = of(ready).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let refused = tell(&homescar, &["reload"]).await;
    assert!(
        text(&refused.stderr).contains("homescar is ending"),
        "{refused:?}"
    );
    // Again: it does not wait for the connection.
    assert!(tell(&homescar, &["stop"]).await.status.success());
    assert!(homescar.exit().await.success());
    eventually("the socket is removed", SOON, || !socket.exists()).await;
    let nobody = tell(&homescar, &["status"]).await;
    assert_eq!(nobody.status.code(), Some(69));
    assert!(text(&nobody.stderr).contains("no homescar answers at"));
    assert!(message(homescar.log().last().unwrap()).contains("stopped"));
}

#[tokio::test]
async fn its_description_names_all_that_there_is() {
    let homescar = Homescar::serve(&config(""));
    homescar.all_ready("app", 2).await;
    let socket = homescar.admin_socket();
    let of = async |request: &str| ask(UnixStream::connect(&socket).await.unwrap(), request).await;
    let answer = of("GET /openapi.json HTTP/1.1").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    let described = document["paths"].as_object().unwrap();
    let unknown = of("GET /nonsense HTTP/1.1").await;
    let (_, listed) = unknown.split_once("there are ").unwrap();
    let mut listed: Vec<&str> = listed.trim_end_matches("\"}").split(", ").collect();
    listed.sort_unstable();
    let mut known: Vec<_> = described.keys().map(String::as_str).collect();
    known.sort_unstable();
    assert_eq!(known, listed);
    for (path, methods) in described {
        let wrong = match methods.get("get") {
            Some(_) => "DELETE",
            None => "GET",
        };
        let answer = of(&format!("{wrong} {path} HTTP/1.1")).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{path}: {answer}");
    }
}
