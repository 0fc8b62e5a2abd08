//! Under a service manager: what homescar says to it, the sockets that it takes from it, and that
//! workers see nothing of either.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::{
    client::Client,
    homescar::{Homescar, SOON, WORKER, message},
};

/// What receives on `NOTIFY_SOCKET`, as systemd does.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { socket, folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("notify").display().to_string()
    }

    /// The next datagram that begins so.
    fn next(&self, start: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let Ok(len) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            if text.starts_with(start) {
                return text;
            }
        }
        panic!("nobody said {start}");
    }
}

fn config(bind: &str, options: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "{bind}"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}", "--print-env"], count = 1, contract = "fd"{options} }}
        drain = {{ timeout = "5s" }}
        "#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_how_we_are_and_workers_hear_nothing_of_it() {
    let manager = Manager::new();
    let env = [
        ("NOTIFY_SOCKET", &*manager.path()),
        ("WATCHDOG_USEC", "200000"),
    ];
    let mut homescar = Homescar::serve_with(&config("127.0.0.1:0", ""), &env);
    let ready = manager.next("READY=1\n");
    let pid = format!("MAINPID={}\n", homescar.pid());
    assert!(ready.contains(&pid), "{ready}");
    let web = homescar.address("web").await;
    assert!(ready.contains(&format!("STATUS=serving {web}")), "{ready}");
    for _ in 0..3 {
        assert_eq!(manager.next("WATCHDOG=1"), "WATCHDOG=1\n");
    }

    homescar.reload(&config("127.0.0.1:0", "")).await;
    let reloading = manager.next("RELOADING=1\n");
    let at = reloading.split_once("MONOTONIC_USEC=").unwrap().1;
    let at: u64 = at.lines().next().unwrap().parse().unwrap();
    assert!(at > 0, "{reloading}");
    manager.next("READY=1\n");

    homescar.signal(Signal::SIGUSR2);
    let upgrading = manager.next("RELOADING=1\n");
    assert!(upgrading.contains("STATUS=upgrading"), "{upgrading}");
    let ready = manager.next("READY=1\n");
    assert!(ready.contains(&pid), "{ready}");
    assert_eq!(manager.next("WATCHDOG=1"), "WATCHDOG=1\n");

    homescar.ready("app/0").await;
    let printed = |name: &str| {
        let log = homescar.log();
        let lines = log.iter().filter(|line| line["target"] == "worker");
        let found = lines.map(message).find(|line| line.starts_with(name));
        found.map(str::to_owned)
    };
    homescar
        .line("its environment", |line| {
            message(line).starts_with("NOTIFY_SOCKET=")
        })
        .await;
    let socket = printed("NOTIFY_SOCKET=").unwrap();
    assert!(!socket.contains(&manager.path()), "{socket}");
    assert_eq!(printed("WATCHDOG_USEC="), None);

    homescar.signal(Signal::SIGTERM);
    manager.next("STOPPING=1\n");
    assert!(homescar.exit().await.success());
}

/// Runs `homescar` as a service with these sockets as its descriptors 3 and 4.
fn with_sockets(config: &str, first: &TcpListener, second: &TcpListener) -> Homescar {
    let shell = r#"LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:stray exec "$0" "$@" 3<&0 4<&1 </dev/null >/dev/null"#;
    let sockets: [OwnedFd; 2] = [
        first.try_clone().unwrap().into(),
        second.try_clone().unwrap().into(),
    ];
    Homescar::serve_through(&["sh", "-c", shell], config, sockets)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passed_socket_is_listened_on_and_a_stray_one_told() {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (web, stray) = (bind(), bind());
    let at = |socket: &TcpListener| -> SocketAddr { socket.local_addr().unwrap() };
    // It waits in the socket before there is a homescar.
    let mut early = Client::connect(at(&web)).await.unwrap();
    let config = config(&at(&web).to_string(), "");
    let homescar = with_sockets(&config, &web, &stray);
    assert_eq!(homescar.address("web").await, at(&web));
    let warning = homescar.message("the service manager has passed").await;
    let told = message(&warning);
    assert!(told.contains(&at(&stray).to_string()), "{told}");
    homescar.ready("app/0").await;
    assert_eq!(early.whoami().await.unwrap().slot, "app/0");
    // Both threads have it.
    for _ in 0..20 {
        let mut client = Client::connect(at(&web)).await.unwrap();
        client.whoami().await.unwrap();
    }
    // The worker has its own socket, and no more.
    homescar
        .line("its environment", |line| message(line) == "LISTEN_FDS=1")
        .await;
    // Neither a reload nor an upgrade takes them for new.
    let answer = homescar.reload(&config).await;
    assert_eq!(message(&answer), "reloaded");
    homescar.signal(Signal::SIGUSR2);
    let receipt = homescar.message("upgraded").await;
    assert_eq!(message(&receipt), "upgraded");
    let mut client = Client::connect(at(&web)).await.unwrap();
    client.whoami().await.unwrap();
}

#[test]
fn the_units_are_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = TempDir::new().unwrap();
    let mut units = Vec::new();
    for name in ["homescar.service", "homescar.socket"] {
        let text = fs::read_to_string(root.join("config").join(name)).unwrap();
        let program = env!("CARGO_BIN_EXE_homescar");
        let text = text.replace("/usr/local/bin/homescar", program);
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        units.push(file);
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(&units)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let of_ours: Vec<_> = told
        .lines()
        .filter(|line| line.contains("homescar"))
        .collect();
    assert!(output.status.success() && of_ours.is_empty(), "{told}");
}
