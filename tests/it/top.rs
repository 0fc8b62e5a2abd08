//! `homescar top`, on a terminal and without one.

use std::process::Stdio;

use homescar::admin::view::Status;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::support::homescar::{Homescar, SOON, WORKER};

const PROGRAM: &str = env!("CARGO_BIN_EXE_homescar");

async fn two_workers() -> Homescar {
    let homescar = Homescar::serve(&format!(
        "[listener.web]
         bind = \"127.0.0.1:0\"
         cluster = \"app\"
         [cluster.app]
         workers = {{ command = [\"{WORKER}\"], count = 2 }}"
    ));
    homescar.all_ready("app", 2).await;
    homescar
}

/// A command with pipes at both ends, ended with the test.
fn start(program: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().unwrap()
}

#[tokio::test]
async fn a_terminal_gets_a_screen_until_it_has_seen_enough() {
    let homescar = two_workers().await;
    let socket = homescar.admin_socket();
    let command = format!(
        "stty cols 120 rows 30; {PROGRAM} top --socket {}",
        socket.display()
    );
    let mut top = start("script", &["-q", "-e", "-c", &command, "/dev/null"]);
    let (mut keys, mut screen) = (top.stdin.take().unwrap(), top.stdout.take().unwrap());
    let mut seen = Vec::new();
    let shown = async |seen: &mut Vec<u8>, screen: &mut tokio::process::ChildStdout, what: &str| {
        let look = async {
            while !String::from_utf8_lossy(seen).contains(what) {
                let read = screen.read_buf(seen).await.unwrap();
                assert!(read > 0, "it ended: {}", String::from_utf8_lossy(seen));
            }
        };
        let looked = timeout(SOON, look).await;
        looked.unwrap_or_else(|_| panic!("no {what} in {}", String::from_utf8_lossy(seen)));
    };
    for what in ["app/0", "app/1", "NEW/S", "quits"] {
        shown(&mut seen, &mut screen, what).await;
    }
    keys.write_all(b" ").await.unwrap();
    shown(&mut seen, &mut screen, "PAUSED").await;
    keys.write_all(b"q").await.unwrap();
    let end = timeout(SOON, top.wait()).await.expect("the end").unwrap();
    assert!(end.success(), "{end:?}");
}

#[tokio::test]
async fn without_a_terminal_it_is_a_line_at_every_look() {
    let homescar = two_workers().await;
    let address = homescar.address("web").await;
    let socket = homescar.admin_socket();
    let socket = socket.to_str().unwrap();
    let mut top = start(
        PROGRAM,
        &["top", "--json", "--interval", "100ms", "--socket", socket],
    );
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = timeout(SOON, lines.next_line()).await.expect("a line");
        serde_json::from_str::<Status>(&line.unwrap().expect("not the end")).unwrap()
    };
    let first = next().await;
    assert_eq!((first.pid, first.connections), (homescar.pid(), 0));
    let backend = first.clusters[0].slots[0].backend.as_ref().unwrap();
    assert!(backend.cpu.is_some(), "{backend:?}");
    let _open = TcpStream::connect(address).await.unwrap();
    let seen = async { while next().await.connections == 0 {} };
    timeout(SOON, seen).await.expect("the connection is seen");

    let refused = Command::new(PROGRAM)
        .args(["top", "--socket", socket])
        .output()
        .await
        .unwrap();
    assert_eq!(refused.status.code(), Some(64));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("homescar status"), "{said}");
}
