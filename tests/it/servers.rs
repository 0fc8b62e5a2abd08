//! Contract `fd` with the servers that people use, each as it comes, behind the real homescar.
//!
//! One story is told of all of them ([`serves_and_survives`]); `README.md` names the same commands.

mod processes;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::atomic::Ordering,
};

use nix::sys::signal::{Signal, kill, killpg};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use self::{
    processes::{group, listening, sockets},
    traffic::{Attempt, Traffic, visit},
};
use crate::support::{
    client::{Client, address_of_client},
    homescar::{Homescar, SOON, eventually, is_alive, message, pid},
    process::is_stopped,
};

const WORKERS: usize = 3;
const CLIENTS: usize = 30;
/// The slot whose worker is killed.
const VICTIM: &str = "app/1";

/// A server as somebody would configure it.
struct Server {
    /// As in the configuration, and in `README.md`.
    command: &'static str,
    /// Where its app is, below `tests`.
    folder: &'static str,
    /// Its own process and those that it starts.
    processes: usize,
    /// How it ends when it is told to.
    end: &'static str,
}

const GUNICORN: Server = Server {
    command: r#"["gunicorn", "wsgi:app"]"#,
    folder: "python",
    processes: 2,
    end: "exit code 0",
};

#[tokio::test]
async fn gunicorn() {
    serves_and_survives(GUNICORN).await;
}

/// Its sync workers accept nobody while a request takes its time, and are not taken for hung.
#[tokio::test]
async fn a_long_request_in_gunicorn_is_no_hang() {
    let (homescar, _folder) = start(&GUNICORN, "", "tcp");
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut client = Client::connect(to).await.unwrap();
    let request = "GET /slow/6 HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";
    client.send(request).await.unwrap();
    let answer = client.rest().await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
    let is_hang = |line: &Value| message(line).contains("takes no clients");
    assert!(!homescar.log().iter().any(is_hang), "{}", homescar.tail());
}

#[tokio::test]
async fn uvicorn() {
    let server = Server {
        command: r#"["uvicorn", "--fd", "3", "asgi:app"]"#,
        folder: "python",
        processes: 1,
        // In good order; the signal is raised again at the very end.
        end: "signal TERM",
    };
    serves_and_survives(server).await;
}

#[tokio::test]
async fn hypercorn() {
    let server = Server {
        command: r#"["hypercorn", "--bind", "fd://3", "asgi:app"]"#,
        folder: "python",
        // The one that serves, and Python's resource tracker.
        processes: 3,
        end: "exit code 0",
    };
    serves_and_survives(server).await;
}

#[tokio::test]
async fn puma() {
    let server = Server {
        command: r#"["puma", "--workers", "0", "--bind-to-activated-sockets", "only"]"#,
        folder: "ruby",
        processes: 1,
        // As uvicorn.
        end: "signal TERM",
    };
    serves_and_survives(server).await;
}

/// What `WEB_CONCURRENCY` makes of it: a master with one worker.
#[tokio::test]
async fn puma_in_cluster_mode() {
    let server = Server {
        command: r#"["puma", "--bind-to-activated-sockets", "only"]"#,
        folder: "ruby",
        processes: 2,
        end: "signal TERM",
    };
    serves_and_survives(server).await;
}

#[tokio::test]
async fn node_listens_on_a_descriptor() {
    let server = Server {
        command: r#"["node", "listen_fd.mjs"]"#,
        folder: "node",
        processes: 1,
        end: "exit code 0",
    };
    serves_and_survives(server).await;
}

#[tokio::test]
async fn a_program_for_systemd() {
    let server = Server {
        command: r#"["python3", "systemd_style.py"]"#,
        folder: "python",
        processes: 1,
        end: "exit code 0",
    };
    serves_and_survives(server).await;
}

/// The commands that are shown to people are those that are tested here.
#[test]
fn the_readme_shows_what_is_tested() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let (readme, tests) = (read("README.md"), read("tests/it/servers.rs"));
    let shown: Vec<_> = readme
        .lines()
        .skip_while(|line| !line.starts_with("| server | `command`"))
        .skip(2)
        .map_while(|line| line.strip_prefix("| "))
        .collect();
    assert!(shown.len() >= 5, "{shown:?}");
    for line in shown {
        let command = line.split('`').nth(1).unwrap();
        assert!(
            tests.contains(&format!("r#\"{command}\"#")),
            "{command} is not tested"
        );
    }
}

/// Slot by slot on the same socket, under constant connects: gunicorn finishes what it has, and
/// what waits is the next generation's.
#[tokio::test]
async fn gunicorn_is_replaced_and_nothing_is_lost() {
    for mode in ["tcp", "direct", "http"] {
        let (homescar, place) = start(&GUNICORN, "", mode);
        homescar.all_ready("app", WORKERS).await;
        let to = homescar.address("web").await;
        let clients: Vec<_> = (0..CLIENTS).map(address_of_client).collect();
        let mut homes = BTreeMap::new();
        for from in &clients {
            homes.insert(*from, visit(*from, to).await.answer.unwrap().slot);
        }
        let traffic = Traffic::start(&clients, to);
        traffic.is_answered_by(1).await;
        let file = place.path().join("homescar.toml");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            config + "env = { RELEASE = \"2\" }\nstable = \"200ms\"\n",
        )
        .unwrap();
        homescar.signal(Signal::SIGHUP);
        traffic.is_answered_by(2).await;
        for index in 0..WORKERS {
            let gone = format!("app/{index}: generation 1 ended: {}", GUNICORN.end);
            homescar.message(&gone).await;
        }
        for Attempt { from, answer, .. } in traffic.stop().await {
            let who = answer.unwrap_or_else(|error| panic!("{from}: {error}\n{}", homescar.tail()));
            assert_eq!(who.slot, homes[&from], "{from}");
        }
    }
}

/// Every client meets its own worker, which is killed twice: frozen, with clients in the queue of
/// its socket, and in the middle of its work. Then everything ends in good order.
///
/// Once with homescar as the relay, and once handed over by the kernel.
async fn serves_and_survives(server: Server) {
    serves_and_survives_in("tcp", &server).await;
    serves_and_survives_in("direct", &server).await;
}

async fn serves_and_survives_in(mode: &str, server: &Server) {
    // One that is frozen by the test is not to be ended by homescar.
    let patient = "health = { tcp = true, timeout = \"60s\" }";
    let (mut homescar, _folder) = start(server, patient, mode);
    let leaders = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let own = everybody_has_a_home(server, &leaders, to).await;
    for leader in &leaders {
        was_told_about_its_socket(*leader);
    }

    let mut seen: Vec<u32> = leaders.iter().flat_map(|leader| group(*leader)).collect();
    let second = a_frozen_one_is_killed(&homescar, leaders[1], &own, to).await;
    seen.extend(group(second));
    let third = a_busy_one_is_killed(&homescar, second, &own, to).await;
    assert_eq!(group(third).len(), server.processes);
    seen.extend(group(third));
    for index in 0..CLIENTS {
        let who = visit(address_of_client(index), to).await.answer.unwrap();
        let expected = if who.slot == VICTIM { 3 } else { 1 };
        assert_eq!(who.generation, expected, "{who:?}");
    }

    homescar.signal(Signal::SIGTERM);
    let status = homescar.exit().await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
    for index in 0..WORKERS {
        let expected = format!("app/{index} stopped: {}", server.end);
        let is_it = |line: &Value| message(line).starts_with(&expected);
        assert!(
            homescar.log().iter().any(is_it),
            "no {expected:?} in\n{}",
            homescar.tail()
        );
    }
    let left: Vec<_> = seen.into_iter().filter(|pid| is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?} live on");
    for leader in [leaders[0], second, third, leaders[2]] {
        assert!(group(leader).is_empty(), "{leader} has left some");
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// homescar with these workers, on a machine that wants seven of everything.
fn start(server: &Server, health: &str, mode: &str) -> (Homescar, TempDir) {
    let python = repository().join("target/python-venv/bin");
    assert!(
        python.join("gunicorn").exists(),
        "the Python servers are not installed in target/python-venv: run tests/run"
    );
    let Server {
        command, folder, ..
    } = server;
    let cwd = repository().join("tests").join(folder);
    let config = format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        mode = "{mode}"
        [cluster.app]
        on_down = "hold 20s"
        {health}
        [cluster.app.workers]
        command = {command}
        count = {WORKERS}
        contract = "fd"
        cwd = {cwd:?}
        "#
    );
    let place = TempDir::new().unwrap();
    let file = place.path().join("homescar.toml");
    fs::write(&file, config).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", python.display());
    let file = file.to_str().unwrap();
    let homescar = Homescar::command(
        &["serve", "--log-format", "json", "-c", file],
        &[("PATH", &path), ("WEB_CONCURRENCY", "7")],
    );
    (homescar, place)
}

/// Gives the clients that are at home with the victim.
async fn everybody_has_a_home(server: &Server, leaders: &[u32], to: SocketAddr) -> Vec<IpAddr> {
    let mut homes: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for from in (0..CLIENTS).map(address_of_client) {
        let who = visit(from, to).await.answer.unwrap();
        let index: usize = who.slot.strip_prefix("app/").unwrap().parse().unwrap();
        assert!(
            group(leaders[index]).contains(&who.pid),
            "{who:?} answers, but not from {}",
            leaders[index]
        );
        assert_eq!(who.generation, 1);
        assert_eq!(visit(from, to).await.answer.unwrap(), who, "{from}");
        homes.entry(who.slot).or_default().push(from);
    }
    assert_eq!(homes.len(), WORKERS, "{homes:?}");
    for leader in leaders {
        assert_eq!(group(*leader).len(), server.processes, "{}", server.command);
    }
    homes.remove(VICTIM).unwrap()
}

/// By the environment that it was started with: some take it away once they have read it.
fn was_told_about_its_socket(leader: u32) {
    let environment = fs::read(format!("/proc/{leader}/environ")).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let environment: BTreeSet<_> = environment.split('\0').collect();
    for expected in [&format!("LISTEN_PID={leader}"), "LISTEN_FDS=1"] {
        assert!(environment.contains(expected), "{environment:#?}");
    }
}

/// Its clients wait in the queue of its socket when it is killed; not one of them is lost. Gives
/// the next generation's process.
async fn a_frozen_one_is_killed(
    homescar: &Homescar,
    victim: u32,
    own: &[IpAddr],
    to: SocketAddr,
) -> u32 {
    let mark = homescar.mark();
    let traffic = Traffic::start(own, to);
    traffic.is_answered_by(1).await;
    let members = group(victim);
    let (socket, _) = listening(victim);
    assert!(sockets(homescar.pid()).contains(&socket));
    {
        // Nobody is being answered meanwhile, so that nobody's request ends with it.
        let _pause = traffic.gate.write().await;
        let stopped = killpg(pid(victim), Signal::SIGSTOP);
        stopped.unwrap_or_else(|error| panic!("{victim}: {error}\n{}", homescar.tail()));
        eventually("it stands still", SOON, || {
            members.iter().all(|member| is_stopped(*member))
        })
        .await;
    }
    eventually("all have asked, and wait in the queue", SOON, || {
        traffic.waiting.load(Ordering::SeqCst) == own.len() && listening(victim).1 >= own.len()
    })
    .await;
    // All of them: of the leader alone, the kernel would make a stopped group that is an orphan, and
    // wake what is left of it (setpgid(2)), which accepts until homescar ends it.
    let killed = killpg(pid(victim), Signal::SIGKILL);
    killed.unwrap_or_else(|error| panic!("{victim}: {error}\n{}", homescar.tail()));
    all_are_dead(&members).await;
    traffic.is_answered_by(2).await;

    let attempts = traffic.stop().await;
    assert!(attempts.len() > 2 * own.len());
    for Attempt { from, answer, .. } in attempts {
        let who = answer.unwrap_or_else(|error| panic!("{from}: {error}\n{}", homescar.tail()));
        assert_eq!(who.slot, VICTIM, "{from}");
    }
    let next = homescar.ready_after(mark, VICTIM).await;
    assert_eq!(listening(next).0, socket, "another socket");
    next
}

/// At any moment, under constant connects: what it has in its hands is lost with it, and only that.
/// Only the server itself is killed; what it has started ends with it.
async fn a_busy_one_is_killed(
    homescar: &Homescar,
    victim: u32,
    own: &[IpAddr],
    to: SocketAddr,
) -> u32 {
    let mark = homescar.mark();
    let traffic = Traffic::start(own, to);
    traffic.is_answered_by(2).await;
    let members = group(victim);
    kill(pid(victim), Signal::SIGKILL).unwrap();
    all_are_dead(&members).await;
    let dead = Instant::now();
    traffic.is_answered_by(3).await;

    let mut lost: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for attempt in traffic.stop().await {
        let from = attempt.from;
        assert!(attempt.connected, "{from} was refused: {attempt:?}");
        match attempt.answer {
            Ok(who) => assert_eq!(who.slot, VICTIM, "{from}"),
            Err(_) if attempt.began < dead => *lost.entry(from).or_default() += 1,
            Err(error) => panic!("{from}: {error}\n{}", homescar.tail()),
        }
    }
    // A client asks one thing at a time.
    assert!(lost.values().all(|lost| *lost == 1), "{lost:?}");
    homescar.ready_after(mark, VICTIM).await
}

async fn all_are_dead(members: &[u32]) {
    eventually("all of the group are dead", SOON, || {
        !members.iter().any(|member| is_alive(*member))
    })
    .await;
}
