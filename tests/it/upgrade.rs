//! Upgrade in place: the process stays, with its workers and connections, and is another program.

mod encrypted;
mod requests;
mod retired;
mod signals;
mod websockets;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::support::{
    client::{Client, address_of_client},
    homescar::{Homescar, SOON, WORKER, eventually, is_alive, message},
};

const UPGRADES: usize = 20;

/// A homescar whose program can be replaced.
pub(crate) struct Replaceable {
    pub(crate) homescar: Homescar,
    folder: TempDir,
}

impl Replaceable {
    pub(crate) fn serve(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("homescar");
        copy(Path::new(env!("CARGO_BIN_EXE_homescar")), &program);
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self {
            homescar: Homescar::serve_by(command, config),
            folder,
        }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("homescar")
    }

    /// Puts another file in the place of the program, as an installer does.
    fn replace_by(&self, file: &Path) {
        let new = self.folder.path().join("new");
        copy(file, &new);
        fs::rename(new, self.program()).unwrap();
    }

    fn replace_by_script(&self, text: &str) {
        let draft = self.folder.path().join("draft");
        fs::write(&draft, text).unwrap();
        self.replace_by(&draft);
    }

    /// Asks for an upgrade, and waits for its receipt.
    async fn upgrade(&self) -> Value {
        let mark = self.homescar.mark();
        self.homescar.signal(Signal::SIGUSR2);
        let is_receipt =
            |line: &Value| message(line) == "upgraded" || message(line).starts_with("not upgraded");
        self.homescar.line_after(mark, "receipt", is_receipt).await
    }

    pub(crate) async fn must_upgrade(&self) -> Value {
        let receipt = self.upgrade().await;
        assert_eq!(message(&receipt), "upgraded", "{}", self.homescar.tail());
        receipt
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.homescar.pid());
        fs::read_dir(folder).unwrap().count()
    }

    /// KiB of private memory.
    fn memory(&self) -> usize {
        let file = format!("/proc/{}/status", self.homescar.pid());
        let status = fs::read_to_string(file).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }
}

/// Copies a program, by another process: what this one writes to, processes that it starts may have
/// open for a moment, and a file that is written to cannot be executed.
fn copy(from: &Path, to: &Path) {
    let arguments = ["-m", "755", "-T"];
    let mut command = Command::new("install");
    let copied = command.args(arguments).args([from, to]).status().unwrap();
    assert!(copied.success());
}

fn config(mode: &str, contract: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = 3, contract = "{contract}", stop_timeout = "2s" }}
        drain = {{ timeout = "5s", spread = "100ms" }}
        "#
    )
}

/// Clients that come and go all the while.
struct Load {
    tasks: JoinSet<()>,
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Load {
    fn of_short_connections(to: SocketAddr) -> Self {
        let mut load = Self {
            tasks: JoinSet::new(),
            over: Arc::default(),
            served: Arc::default(),
        };
        for lane in 0..3_usize {
            let (over, served) = (Arc::clone(&load.over), Arc::clone(&load.served));
            load.tasks.spawn(async move {
                for index in (lane..).step_by(3) {
                    if over.load(Relaxed) {
                        return;
                    }
                    let from = address_of_client(index % 250);
                    let mut client = Client::connect_from(from, to).await.expect("connects");
                    client.whoami().await.expect("is served");
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        load
    }

    /// Requests on kept connections; a new one when the old one was closed between two of them.
    fn and_of_requests(mut self, to: SocketAddr) -> Self {
        for lane in 0..3_usize {
            let (over, served) = (Arc::clone(&self.over), Arc::clone(&self.served));
            self.tasks.spawn(async move {
                let mut kept: Option<TcpStream> = None;
                while !over.load(Relaxed) {
                    let fresh = kept.is_none();
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => connect(address_of_client(lane), to).await,
                    };
                    match request(&mut stream).await {
                        Some(stays) => {
                            served.fetch_add(1, Relaxed);
                            kept = stays.then_some(stream);
                        }
                        None => assert!(!fresh, "a new connection was closed without an answer"),
                    }
                }
            });
        }
        self
    }

    async fn end(mut self) -> usize {
        self.over.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no client failed");
        }
        self.served.load(Relaxed)
    }
}

async fn connect(from: std::net::IpAddr, to: SocketAddr) -> TcpStream {
    let client = Client::connect_from(from, to).await.expect("connects");
    client.stream.into_inner()
}

/// One GET; whether the connection stays, or `None` when it was closed before it was answered.
async fn request(stream: &mut TcpStream) -> Option<bool> {
    let sent = stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;
    sent.ok()?;
    let mut answer = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let len = timeout(SOON, stream.read(&mut buffer))
            .await
            .unwrap()
            .ok()?;
        if len == 0 {
            assert!(answer.is_empty(), "half an answer");
            return None;
        }
        answer.extend_from_slice(&buffer[..len]);
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.unwrap().parse::<usize>().unwrap() {
            return Some(!head.contains("connection: close"));
        }
    }
}

/// Connections that last, with bytes on their way.
async fn tunnels(to: SocketAddr, count: usize) -> Vec<Client> {
    let mut tunnels = Vec::new();
    for index in 0..count {
        let mut client = Client::connect_from(address_of_client(index), to)
            .await
            .unwrap();
        client.start_echo().await.unwrap();
        client.echo(b"begun").await.unwrap();
        tunnels.push(client);
    }
    tunnels
}

async fn twenty_upgrades_under_load(mode: &str, contract: &str) {
    let one = Replaceable::serve(&config(mode, contract));
    let workers = one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut tunnels = match mode {
        "http" => Vec::new(),
        _ => tunnels(web, 12).await,
    };
    let load = match mode {
        "http" => Load {
            tasks: JoinSet::new(),
            over: Arc::default(),
            served: Arc::default(),
        }
        .and_of_requests(web),
        _ => Load::of_short_connections(web),
    };
    let (mut descriptors, mut memory) = (Vec::new(), Vec::new());
    for round in 0..UPGRADES {
        let served = load.served.load(Relaxed);
        let receipt = one.must_upgrade().await;
        assert_eq!(receipt["cut"], 0, "{receipt}");
        let expected = if mode == "tcp" {
            tunnels.len() as u64
        } else {
            0
        };
        assert!(
            receipt["connections"].as_u64().unwrap() >= expected,
            "{receipt}"
        );
        eventually("the load goes on", SOON, || {
            load.served.load(Relaxed) > served + 20
        })
        .await;
        let large = vec![b'a' + round as u8; 100_000];
        for tunnel in &mut tunnels {
            tunnel.echo(&large).await.expect("a tunnel lives");
        }
        descriptors.push(one.descriptors());
        memory.push(one.memory());
    }
    let served = load.end().await;
    assert!(served > UPGRADES * 20);
    for pid in workers {
        assert!(is_alive(pid), "{}", one.homescar.tail());
    }
    let started = one.homescar.log();
    let started = started
        .iter()
        .filter(|line| message(line).contains("ready after"));
    assert_eq!(started.count(), 3, "workers were not replaced");
    // Some are those of clients who happen to be there.
    let (first, last) = (descriptors[1], descriptors[UPGRADES - 1]);
    assert!(last <= first + 20, "descriptors: {descriptors:?}");
    assert!(memory[UPGRADES - 1] < memory[1] * 2, "memory: {memory:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_times_under_load_in_mode_tcp() {
    twenty_upgrades_under_load("tcp", "port").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_times_under_load_in_mode_direct() {
    twenty_upgrades_under_load("direct", "fd").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_times_under_load_in_mode_http() {
    twenty_upgrades_under_load("http", "unix").await;
}

/// Whatever stands in the place of the program or of its configuration: all goes on, and it is said why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_take_over_does_not() {
    let good = config("tcp", "port");
    let one = Replaceable::serve(&good);
    let workers = one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut tunnel = tunnels(web, 1).await.remove(0);
    let stale = "#!/bin/sh\ncat >/dev/null; echo 'format 0 wanted' >&2; exit 78\n";
    for (new, why) in [
        ("no program at all", "cannot be executed"),
        ("#!/bin/sh\nexit 0\n", "no homescar that can take over"),
        (stale, "format 0 wanted"),
    ] {
        one.replace_by_script(new);
        let receipt = one.upgrade().await;
        let told = message(&receipt).to_owned();
        assert!(
            told.starts_with("not upgraded, all goes on") && told.contains(why),
            "{told}"
        );
        tunnel.echo(b"still here").await.unwrap();
    }
    one.replace_by(Path::new(env!("CARGO_BIN_EXE_homescar")));
    let mark = one.homescar.mark();
    fs::write(
        one.homescar.config_file(),
        good.replace("count = 3", "count = 0"),
    )
    .unwrap();
    let receipt = one.upgrade().await;
    assert!(message(&receipt).starts_with("not upgraded"), "{receipt}");
    let is_fault = |line: &Value| message(line).contains("count");
    one.homescar.line_after(mark, "the fault", is_fault).await;
    tunnel.echo(b"still here").await.unwrap();

    // And then it is good again, with a change that takes effect.
    let changed = good.replace("count = 3", "count = 4");
    fs::write(one.homescar.config_file(), changed).unwrap();
    one.must_upgrade().await;
    one.homescar.ready("app/3").await;
    tunnel.echo(b"still here").await.unwrap();
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    let mut client = Client::connect(web).await.unwrap();
    client.whoami().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_survives_an_upgraded_homescar_that_was_killed() {
    let one = Replaceable::serve(&config("tcp", "fd"));
    let workers = one.homescar.all_ready("app", 3).await;
    one.must_upgrade().await;
    one.must_upgrade().await;
    // One of them is started by the new image.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(workers[0] as i32),
        Signal::SIGKILL,
    )
    .unwrap();
    let is_new = |line: &Value| {
        line["slot"] == "app/0" && line["generation"] == 2 && message(line).contains("ready after")
    };
    let line = one.homescar.line("the next generation", is_new).await;
    let mut all = workers.clone();
    all.push(line["pid"].as_u64().unwrap() as u32);
    one.homescar.signal(Signal::SIGKILL);
    eventually("all are gone", Duration::from_secs(5), || {
        all.iter().all(|pid| !is_alive(*pid))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_homescar_drains_and_ends_as_any() {
    let mut one = Replaceable::serve(&config("tcp", "port"));
    let workers = one.homescar.all_ready("app", 3).await;
    one.must_upgrade().await;
    one.homescar.signal(Signal::SIGTERM);
    assert!(one.homescar.exit().await.success());
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
}

/// A new program that says it could take over, and then cannot: the state that it gets is of another
/// format. It executes the old one, which must find the state as it was: so what stands in the old
/// one's place puts it right first.
const FAILS_LATER: &str = r#"#!/usr/bin/env python3
import json, os, sys
REAL, BACK = "REAL_PROGRAM", "BACK_SCRIPT"
args = sys.argv[1:]
if args[0] == "__resume":
    with open(f"/proc/self/fd/{args[1]}") as memory:
        state = json.load(memory)
    state["format"] = 99
    with open(f"/proc/self/fd/{args[1]}", "w") as memory:
        json.dump(state, memory)
    old = state["old_image"]
    os.dup2(old, 200)
    os.dup2(os.open(BACK, os.O_RDONLY), old)
os.execv(REAL, ["homescar", *args])
"#;
const PUTS_RIGHT: &str = r#"#!/usr/bin/env python3
import json, os, sys
args = sys.argv[1:]
with open(f"/proc/self/fd/{args[1]}") as memory:
    state = json.load(memory)
state["format"] = 3
with open(f"/proc/self/fd/{args[1]}", "w") as memory:
    json.dump(state, memory)
os.dup2(200, state["old_image"])
os.close(200)
os.execv(f"/proc/self/fd/{state['old_image']}", ["homescar", *args])
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_fails_after_all_gives_everything_back() {
    let one = Replaceable::serve(&config("tcp", "fd"));
    let workers = one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut tunnels = tunnels(web, 4).await;
    let load = Load::of_short_connections(web);
    let (draft, back) = (
        one.folder.path().join("puts"),
        one.folder.path().join("back"),
    );
    fs::write(&draft, PUTS_RIGHT).unwrap();
    copy(&draft, &back);
    let text = FAILS_LATER
        .replace("REAL_PROGRAM", env!("CARGO_BIN_EXE_homescar"))
        .replace("BACK_SCRIPT", back.to_str().unwrap());
    one.replace_by_script(&text);
    for _ in 0..2 {
        let receipt = one.upgrade().await;
        let told = message(&receipt).to_owned();
        let why = "the new program failed";
        assert!(
            told.contains(why) && told.contains("of format 99"),
            "{told}"
        );
        for tunnel in &mut tunnels {
            tunnel.echo(b"still here").await.unwrap();
        }
    }
    one.replace_by(Path::new(env!("CARGO_BIN_EXE_homescar")));
    one.must_upgrade().await;
    for tunnel in &mut tunnels {
        tunnel.echo(b"still here").await.unwrap();
    }
    assert!(load.end().await > 0);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
}

/// What workers print is whole, also when half a line had come; a slot that waits for its next
/// generation does so in the new image too, and counts on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_lines_and_crash_loops_go_on() {
    let go = TempDir::new().unwrap();
    let go = go.path().join("go");
    let command = format!(
        "printf half >&2; while [ ! -e {} ]; do sleep 0.05; done; echo ' and half' >&2; exit 3",
        go.display()
    );
    let text = config("tcp", "port").replace(
        &format!("[\"{WORKER}\"], count = 3"),
        &format!("[\"sh\", \"-c\", \"{command}\"], count = 1"),
    );
    let one = Replaceable::serve(&text);
    one.homescar.address("web").await;
    let mark = one.homescar.mark();
    one.must_upgrade().await;
    one.must_upgrade().await;
    fs::create_dir_all(go.parent().unwrap()).unwrap();
    fs::write(&go, "").unwrap();
    let whole = |line: &Value| message(line) == "half and half" && line["generation"] == 1;
    one.homescar.line_after(mark, "the whole line", whole).await;
    let ended = |line: &Value| message(line).contains("app/0 ended: exit code 3");
    one.homescar.line_after(mark, "the end", ended).await;
    one.must_upgrade().await;
    let loops = |line: &Value| message(line).contains("crash-loops: 5 generations");
    let line = one.homescar.line_after(mark, "the crash loop", loops).await;
    assert_eq!(line["generation"], 5);
}

/// `homescar run` has no file: its configuration is handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_homescar_without_a_file_is_upgraded_too() {
    let listen = ["run", "--log-format", "json", "--listen", "127.0.0.1:0"];
    let workers = ["--workers", "2", "--", WORKER];
    let homescar = Homescar::command(&[&listen[..], &workers[..]].concat(), &[]);
    let workers = homescar.all_ready("app", 2).await;
    let web = homescar.address("web").await;
    let mut tunnel = tunnels(web, 1).await.remove(0);
    for _ in 0..2 {
        let mark = homescar.mark();
        homescar.signal(Signal::SIGUSR2);
        let receipt = |line: &Value| message(line).contains("upgraded");
        let receipt = homescar.line_after(mark, "receipt", receipt).await;
        assert_eq!(message(&receipt), "upgraded", "{}", homescar.tail());
        tunnel.echo(b"still here").await.unwrap();
    }
    assert!(workers.iter().all(|pid| is_alive(*pid)));
}

/// One that neither comes along nor goes, here a client that owes its PROXY header, holds up nobody for
/// longer than the drain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_go_is_cut_and_counted() {
    let text = config("tcp", "port")
        .replace(
            "mode = \"tcp\"",
            "accept_proxy = true\ntrusted = [\"127.0.0.0/8\"]",
        )
        .replace("timeout = \"5s\"", "timeout = \"300ms\"");
    let one = Replaceable::serve(&text);
    one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut silent = Client::connect(web).await.unwrap();
    let here = silent.local_addr();
    let greeted = async |client: &mut Client| {
        client
            .send("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
            .await?;
        client.whoami().await
    };
    let mut talks = Client::connect(web).await.unwrap();
    greeted(&mut talks).await.unwrap();
    let receipt = one.must_upgrade().await;
    let counts = (&receipt["cut"], &receipt["connections"]);
    assert_eq!(counts, (&1.into(), &1.into()));
    assert!(silent.rest().await.is_err());
    let record = one.homescar.record_of(here).await;
    assert_eq!(record["reason"], "cut");
    talks.whoami().await.unwrap();
    greeted(&mut Client::connect(web).await.unwrap())
        .await
        .unwrap();
}

/// Bytes that were read and not yet taken come along, in both directions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_on_their_way_arrive_whole() {
    const LENGTH: usize = 12 * 1024 * 1024;
    let one = Replaceable::serve(&config("tcp", "port"));
    one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let tunnel = tunnels(web, 1).await.remove(0);
    let (mut read, mut write) = tunnel.stream.into_inner().into_split();
    let sent: Vec<u8> = (0..LENGTH)
        .map(|index| (index / 7 + index / 251) as u8)
        .collect();
    let copy = sent.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { write.write_all(&copy).await.map(|()| drop(write)) });
    // Nobody reads meanwhile: everything on the way is full.
    for _ in 0..3 {
        one.must_upgrade().await;
    }
    let mut back = vec![0; LENGTH];
    timeout(SOON, read.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert!(back == sent, "other bytes came back");
    tasks.join_next().await.unwrap().unwrap().unwrap();
}

/// What an operator has said to the running homescar goes on, and the next program hears what comes.
#[tokio::test]
async fn what_an_operator_has_said_goes_on() {
    let front = Replaceable::serve(&config("tcp", "port"));
    let homescar = &front.homescar;
    homescar.all_ready("app", 3).await;
    let tell = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
        command.args(arguments);
        command.arg("--socket").arg(homescar.admin_socket());
        let output = command.output().await.unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(told).unwrap())
    };
    let slots = async || {
        let (_, json) = tell(&["status", "--json"]).await;
        let status: Value = serde_json::from_str(&json).unwrap();
        let slots = status["clusters"][0]["slots"].as_array().unwrap().clone();
        let told = |slot: Value| (slot["state"].clone(), slot["backend"]["pid"].clone());
        slots.into_iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(tell(&["scale", "app", "4"]).await.0, Some(0));
    homescar.ready("app/3").await;
    assert_eq!(tell(&["drain", "app/1"]).await.0, Some(0));
    let before = slots().await;
    assert_eq!((before.len(), &before[1].0), (4, &Value::from("draining")));

    front.replace_by_script("#!/bin/sh\necho no such thing >&2; exit 7\n");
    let (code, told) = tell(&["upgrade"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("no such thing"), "{told}");
    assert_eq!(slots().await, before);

    front.replace_by(Path::new(env!("CARGO_BIN_EXE_homescar")));
    let (code, told) = tell(&["upgrade"]).await;
    assert_eq!(code, Some(0), "{told}\n{}", homescar.tail());
    assert!(told.starts_with("upgraded from "), "{told}");
    assert_eq!(slots().await, before);
    // Also when the file is read again, which still says three.
    let same = fs::read_to_string(homescar.config_file()).unwrap();
    homescar.reload(&same).await;
    assert_eq!(slots().await, before);

    assert_eq!(tell(&["ready", "app/1"]).await.0, Some(0));
    let (code, told) = tell(&["restart", "app", "--parallel", "4"]).await;
    assert_eq!(code, Some(0), "{told}");
    let after = slots().await;
    for (was, is) in before.iter().zip(&after) {
        assert_eq!(is.0, "ready");
        assert_ne!(was.1, is.1, "{told}");
    }
}
