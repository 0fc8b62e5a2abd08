//! What an operator does to a running homescar: rolling restarts, and those that are aborted;
//! scaling; slots taken out and back. The clients notice nothing, or only what they must.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use homescar::{
    admin::{
        client::Client as Admin,
        view::{Receipt, Slot, Status},
    },
    supervisor::Outcome,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    http::soon,
    metrics::until,
    support::{
        client::{Client, Who, address_of_client},
        homescar::{Homescar, SOON, WORKER, eventually, is_alive, message, pid},
        process::stop,
    },
};

const WORKERS: usize = 3;
const CLIENTS: usize = 12;

/// A listener in this mode before test workers with these options; `more` are keys of `workers`, and
/// `cluster` those of the cluster.
fn config(mode: &str, options: &[&str], more: &str, cluster: &str) -> String {
    let mut command = vec![WORKER.to_owned()];
    command.extend(options.iter().map(|&option| option.to_owned()));
    let command = json!(command);
    format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "app"
        [cluster.app]
        on_down = "next"
        {cluster}
        [cluster.app.workers]
        command = {command}
        count = {WORKERS}
        stable = "200ms"
        {more}
        "#
    )
}

/// A command of the same program that speaks to this homescar.
async fn tell(homescar: &Homescar, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args(arguments);
    command.arg("--socket").arg(homescar.admin_socket());
    command.output().await.unwrap()
}

/// A command that is to do what it is told.
async fn done(homescar: &Homescar, arguments: &[&str]) -> String {
    let output = tell(homescar, arguments).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {told}{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        homescar.tail()
    );
    told
}

async fn restart(homescar: &Homescar, more: &[&str]) -> (Option<i32>, Receipt) {
    let arguments = [&["restart", "app", "--json"], more].concat();
    let output = tell(homescar, &arguments).await;
    let receipt = serde_json::from_slice(&output.stdout);
    let receipt = receipt.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), receipt)
}

async fn slots(homescar: &Homescar) -> Vec<Slot> {
    let mut admin = Admin::connect(&homescar.admin_socket()).await.unwrap();
    let status: Status = admin.get("/status").await.unwrap();
    status.clusters[0].slots.clone()
}

async fn whoami(client: usize, to: SocketAddr, is_http: bool) -> std::io::Result<Who> {
    let mut client = Client::connect_from(address_of_client(client), to).await?;
    if !is_http {
        return client.whoami().await;
    }
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.send(request).await?;
    let rest = String::from_utf8(client.rest().await?).unwrap();
    let (head, body) = rest.split_once("\r\n\r\n").unwrap_or((&rest, ""));
    serde_json::from_str(body).map_err(|_| std::io::Error::other(head.to_owned()))
}

/// Clients that come again and again, each to its home.
struct Traffic {
    homes: Arc<BTreeMap<usize, String>>,
    stop: Arc<AtomicBool>,
    lanes: JoinSet<usize>,
}

impl Traffic {
    async fn start(to: SocketAddr, is_http: bool) -> Self {
        let mut homes = BTreeMap::new();
        for client in 0..CLIENTS {
            homes.insert(client, whoami(client, to, is_http).await.unwrap().slot);
        }
        let (homes, stop) = (Arc::new(homes), Arc::new(AtomicBool::new(false)));
        let mut lanes = JoinSet::new();
        for lane in 0..3 {
            let (homes, stop) = (Arc::clone(&homes), Arc::clone(&stop));
            lanes.spawn(async move {
                let mut visits = 0;
                while !stop.load(Relaxed) {
                    for client in (lane..CLIENTS).step_by(3) {
                        let who = whoami(client, to, is_http).await;
                        let who = who.unwrap_or_else(|error| panic!("{client}: {error}"));
                        assert_eq!(who.slot, homes[&client], "client {client} was moved");
                        visits += 1;
                    }
                }
                visits
            });
        }
        Self { homes, stop, lanes }
    }

    /// Not one visit failed, and not one client met another slot.
    async fn was_served(self) {
        self.stop.store(true, Relaxed);
        let visits: usize = self.lanes.join_all().await.into_iter().sum();
        assert!(visits > 50, "{visits} visits are no load");
        assert!(self.homes.len() == CLIENTS);
    }
}

/// Slot after slot, nothing fails and nobody is moved; the receipt tells it.
async fn is_replaced_under_load(mode: &str, contract: &str) {
    let more = format!("contract = \"{contract}\"");
    let homescar = Homescar::serve(&config(mode, &[], &more, ""));
    let before = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let traffic = Traffic::start(to, mode == "http").await;
    let (code, receipt) = restart(&homescar, &[]).await;
    assert_eq!((code, receipt.ok), (Some(0), true), "{receipt:?}");
    let names: Vec<_> = receipt.slots.iter().map(|slot| &*slot.slot).collect();
    assert_eq!(names, ["app/0", "app/1", "app/2"], "one after the other");
    for slot in &receipt.slots {
        assert_eq!(slot.outcome, Outcome::Replaced);
        assert_eq!((slot.before, slot.generation), (Some(1), Some(2)));
        assert_eq!((slot.connections.cut, slot.connections.failed), (0, 0));
        assert!(
            slot.boot_ms.is_some() && slot.drain_ms.is_some(),
            "{slot:?}"
        );
    }
    traffic.was_served().await;
    for pid in before {
        assert!(!is_alive(pid), "{pid} is left");
    }
    let now = slots(&homescar).await;
    assert!(
        now.iter()
            .all(|slot| slot.leaving.is_empty() && slot.next.is_none())
    );
    let generations = now
        .iter()
        .map(|slot| slot.backend.as_ref().unwrap().generation);
    assert_eq!(generations.collect::<Vec<_>>(), [2; WORKERS]);
    for client in 0..CLIENTS {
        assert_eq!(
            whoami(client, to, mode == "http").await.unwrap().generation,
            2
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_ports_are_replaced() {
    is_replaced_under_load("tcp", "port").await;
    is_replaced_under_load("http", "port").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_unix_sockets_are_replaced() {
    is_replaced_under_load("tcp", "unix").await;
    is_replaced_under_load("http", "unix").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_descriptors_are_replaced() {
    is_replaced_under_load("tcp", "fd").await;
    is_replaced_under_load("http", "fd").await;
}

#[tokio::test]
async fn several_slots_at_a_time() {
    let more = "stop_timeout = \"30s\"";
    let homescar = Homescar::serve(&config("tcp", &["--term-delay", "300"], more, ""));
    homescar.all_ready("app", WORKERS).await;
    let mark = homescar.mark();
    let (code, receipt) = restart(&homescar, &["--parallel", "3"]).await;
    assert_eq!((code, receipt.slots.len()), (Some(0), WORKERS));
    homescar.message("rolling restart of app: 3 replaced").await;
    let order: Vec<_> = homescar.log()[mark..]
        .iter()
        .filter_map(|line| {
            let said = message(line);
            let begun = said.contains("starts beside").then_some('b');
            begun.or_else(|| said.contains("generation 1 ended").then_some('e'))
        })
        .collect();
    assert_eq!(order, ['b', 'b', 'b', 'e', 'e', 'e']);
}

/// Five ways not to get ready: nothing is replaced, and the old generation serves as if nothing had
/// been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_get_ready_and_stay_so_replaces_nobody() {
    let folder = TempDir::new().unwrap();
    let health = folder.path().join("health");
    fs::write(&health, "200").unwrap();
    let health_file = health.to_str().unwrap();
    let checked = "health = { http = \"/health\" }";
    let patient = "ready_timeout = \"1s\"";
    let good = config("tcp", &["--health-file", health_file], "", checked);
    let homescar = Homescar::serve(&good);
    let before = homescar.all_ready("app", WORKERS).await;
    let traffic = Traffic::start(homescar.address("web").await, false).await;
    let bad_health = folder.path().join("bad_health");
    fs::write(&bad_health, "500").unwrap();
    let bad_health = ["--health-file", bad_health.to_str().unwrap()];
    let says_ready = [&bad_health[..], &["--ready-notify"]].concat();
    let mut aborts = 0;
    for (options, more, why) in [
        (&["--never-listen"][..], patient, "was not ready in time"),
        (&bad_health[..], patient, "was not ready in time"),
        // Which is stable sooner than three checks have failed.
        (&says_ready[..], "", "was ready, and is not well"),
        (
            &[
                "--exit-after",
                "1500",
                "--exit-code",
                "3",
                "--stderr",
                "no such table",
            ],
            "stable = \"30s\"",
            "after it was ready (exit code 3)",
        ),
        (
            &["--exit-after", "1", "--stderr", "no such module"],
            "",
            "has ended before it was ready",
        ),
    ] {
        let more = more.to_owned();
        let mut next = config("tcp", options, &more, checked);
        if more.contains("stable") {
            next = next.replace("stable = \"200ms\"\n", "");
        }
        homescar.reload(&next).await;
        aborts += 1;
        were_aborted(&homescar, aborts).await;
        // The same on demand, with the reason and the last words.
        let (code, receipt) = restart(&homescar, &[]).await;
        aborts += 1;
        were_aborted(&homescar, aborts).await;
        assert_eq!((code, receipt.ok), (Some(1), false));
        let failed = &receipt.slots[0];
        assert_eq!((&*failed.slot, failed.outcome), ("app/0", Outcome::Failed));
        let told = failed.why.as_deref().unwrap();
        assert!(told.contains(why), "{told:?} does not say {why:?}");
        let words: Vec<_> = options
            .iter()
            .skip_while(|o| **o != "--stderr")
            .skip(1)
            .collect();
        assert_eq!(failed.stderr.iter().collect::<Vec<_>>(), words);
        assert_eq!(failed.generation, Some(1));
        let others = receipt.slots[1..].iter().map(|slot| slot.outcome);
        assert_eq!(others.collect::<Vec<_>>(), [Outcome::Untouched; 2]);
        for pid in &before {
            assert!(is_alive(*pid));
        }
    }
    traffic.was_served().await;
    let mut now = slots(&homescar).await.into_iter();
    assert!(now.all(|slot| slot.state == "ready" && slot.next.is_none()));
}

/// Waits until so many rolling restarts have been aborted.
async fn were_aborted(homescar: &Homescar, count: usize) {
    eventually("it is aborted", SOON, || {
        let log = homescar.log();
        let aborted = |line: &&Value| message(line).contains("aborted after 0 slots");
        log.iter().filter(aborted).count() == count
    })
    .await;
}

/// A connection stays with the generation that it has; one that outlives the drain is cut, and the
/// receipt says so.
#[tokio::test]
async fn a_connection_stays_with_its_generation() {
    let drain = "drain = { timeout = \"3s\", spread = \"100ms\" }";
    let homescar = Homescar::serve(&config("tcp", &[], "", drain));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let from = address_of_client(1);
    let mut old = Client::connect_from(from, to).await.unwrap();
    let home = old.whoami().await.unwrap();
    let index: usize = home.slot[4..].parse().unwrap();
    let mark = homescar.mark();
    let socket = homescar.admin_socket();
    let restarted = tokio::spawn(async move {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
        command.args(["restart", "app", "--json", "--parallel", "3", "--socket"]);
        let output = command.arg(socket).output().await.unwrap();
        serde_json::from_slice::<Receipt>(&output.stdout).unwrap()
    });
    let over = format!("{}: generation 2 has taken over", home.slot);
    let is_it = |line: &Value| message(line).starts_with(&over);
    homescar.line_after(mark, &over, is_it).await;
    // Both serve: who is there, also by another connection, and who comes.
    assert_eq!(old.whoami().await.unwrap().generation, 1);
    let mut other = Client::connect_from(from, to).await.unwrap();
    let who = other.whoami().await.unwrap();
    assert_eq!((&who.slot, who.generation), (&home.slot, 1));
    let mut new = None;
    for client in 2..50 {
        let mut one = Client::connect_from(address_of_client(client), to)
            .await
            .unwrap();
        let who = one.whoami().await.unwrap();
        if who.slot == home.slot {
            assert_eq!(who.generation, 2, "it is new");
            new = Some(one);
            break;
        }
    }
    let mut new = new.expect("another client of the slot");
    let shown = slots(&homescar).await;
    assert_eq!(shown[index].leaving[0].active, 2);
    assert!(old.rest().await.is_err(), "it is cut");
    assert!(other.rest().await.is_err(), "it is cut");
    let mut again = Client::connect_from(from, to).await.unwrap();
    assert_eq!(again.whoami().await.unwrap().generation, 2);
    let receipt = restarted.await.unwrap();
    let of_home = receipt.slots.iter().find(|slot| slot.slot == home.slot);
    assert_eq!(of_home.unwrap().connections.cut, 2, "{receipt:?}");
    assert_eq!(new.whoami().await.unwrap().generation, 2);
}

/// A client whose cookie names a generation stays there while that drains, also from one connection
/// to the next.
#[tokio::test]
async fn a_cookie_leads_to_the_generation_that_it_names() {
    let cluster = "affinity = { key = \"cookie\" }\ndrain = { timeout = \"20s\", spread = \"1s\" }";
    let homescar = Homescar::serve(&config("http", &[], "", cluster));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let ask = async |cookie: Option<&str>| {
        let mut client = Client::connect(to).await.unwrap();
        let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n"));
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}",
            cookie.unwrap_or_default()
        );
        client.send(head + "\r\n").await.unwrap();
        let rest = String::from_utf8(client.rest().await.unwrap()).unwrap();
        let (head, body) = rest.split_once("\r\n\r\n").unwrap();
        let set = head
            .lines()
            .find_map(|line| line.strip_prefix("Set-Cookie: "));
        let set = set.map(|set| set.split(';').next().unwrap().to_owned());
        let who: Who = serde_json::from_str(body).unwrap();
        (who, set)
    };
    let (home, cookie) = ask(None).await;
    let cookie = cookie.unwrap();
    let mark = homescar.mark();
    let mut restarting = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    restarting.args(["restart", "app", "--parallel", "3", "--socket"]);
    restarting
        .arg(homescar.admin_socket())
        .stdout(Stdio::null());
    let mut restarting = restarting.spawn().unwrap();
    let over = format!("{}: generation 2 has taken over", home.slot);
    let is_it = |line: &Value| message(line).starts_with(&over);
    homescar.line_after(mark, &over, is_it).await;
    // It is asked for again and again, as by long polling, for longer than it would stay for nobody.
    for _ in 0..15 {
        let (who, set) = ask(Some(&cookie)).await;
        assert_eq!((&who.slot, who.generation, set), (&home.slot, 1, None));
        sleep(Duration::from_millis(100)).await;
    }
    let (who, set) = ask(None).await;
    assert_eq!((&who.slot, who.generation), (&home.slot, 2), "a new client");
    assert!(set.is_some());
    let gone = format!("{}: generation 1 ended", home.slot);
    let is_gone = |line: &Value| message(line).starts_with(&gone);
    homescar.line_after(mark, &gone, is_gone).await;
    let (who, set) = ask(Some(&cookie)).await;
    assert_eq!((&who.slot, who.generation), (&home.slot, 2));
    assert!(set.is_some(), "the cookie names the next generation now");
    assert!(restarting.wait().await.unwrap().success());
}

#[tokio::test]
async fn only_one_restart_at_a_time() {
    let homescar = Homescar::serve(&config("tcp", &[], "", "").replace("200ms", "20s"));
    homescar.all_ready("app", WORKERS).await;
    let mark = homescar.mark();
    let mut first = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    first
        .args(["restart", "app", "--socket"])
        .kill_on_drop(true);
    first.arg(homescar.admin_socket()).stdout(Stdio::null());
    let _first = first.spawn().unwrap();
    let begun = |line: &Value| message(line).contains("starts beside");
    homescar.line_after(mark, "a start", begun).await;
    let second = tell(&homescar, &["restart", "app"]).await;
    assert_eq!(second.status.code(), Some(1));
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains("a rolling restart is under way"), "{told}");
    for (arguments, why) in [
        (
            &["restart", "nope"][..],
            "there is no cluster \"nope\"; there are app",
        ),
        (
            &["scale", "app", "0"],
            "app can have 1 to 1024 workers, not 0",
        ),
        (
            &["drain", "app/9"],
            "there is no slot \"app/9\"; there are app/0, app/1",
        ),
    ] {
        let told = tell(&homescar, arguments).await;
        assert_eq!(told.status.code(), Some(1));
        let told = String::from_utf8(told.stderr).unwrap();
        assert!(told.contains(why), "{told} does not say {why}");
    }
}

/// A slot that waits for its next try in a crash loop is started at once, with what is configured
/// now.
#[tokio::test]
async fn a_slot_that_is_down_is_started_at_once() {
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("worker.sh");
    fs::write(&script, "echo broken >&2; exit 1").unwrap();
    let command = json!(["/bin/sh", script, WORKER]);
    let config = format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 1 }}
        "#
    );
    let homescar = Homescar::serve(&config);
    homescar.message("crash-loops").await;
    fs::write(&script, "exec \"$1\"").unwrap();
    let mark = homescar.mark();
    let (code, receipt) = restart(&homescar, &[]).await;
    assert_eq!(code, Some(0), "{receipt:?}");
    assert_eq!(receipt.slots[0].outcome, Outcome::Replaced);
    homescar.ready_after(mark, "app/0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_scaled_at_its_high_end() {
    let homescar = Homescar::serve(&config(
        "tcp",
        &[],
        "",
        "drain = { timeout = \"1s\", spread = \"100ms\" }",
    ));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let homes = async || {
        let mut homes = Vec::new();
        for client in 0..40 {
            homes.push(whoami(client, to, false).await.unwrap().slot);
        }
        homes
    };
    let before = homes().await;
    assert_eq!(
        done(&homescar, &["scale", "app", "6"]).await,
        "app: 3 → 6 workers\n"
    );
    homescar.all_ready("app", 6).await;
    let more = homes().await;
    for (was, is) in before.iter().zip(&more) {
        assert!(
            was == is || is[4..].parse::<usize>().unwrap() >= WORKERS,
            "{was} → {is}"
        );
    }
    assert!(before != more, "the new ones have clients");
    // What was chosen stays over a reload of a file that says what it said.
    let same = fs::read_to_string(homescar.config_file()).unwrap();
    homescar.reload(&same).await;
    assert_eq!(slots(&homescar).await.len(), 6);
    let last = slots(&homescar).await[5]
        .backend
        .as_ref()
        .unwrap()
        .pid
        .unwrap();
    assert_eq!(
        done(&homescar, &["scale", "app", "3"]).await,
        "app: 6 → 3 workers\n"
    );
    eventually("the worker of the last slot ends", SOON, || !is_alive(last)).await;
    assert_eq!(homes().await, before);
    homescar.signal(Signal::SIGTTIN);
    homescar
        .ready_after(homescar.mark().saturating_sub(1), "app/3")
        .await;
    homescar.signal(Signal::SIGTTOU);
    homescar.message("scaled from 4 to 3").await;
    eventually("three are left", SOON, || {
        homescar
            .log()
            .iter()
            .any(|line| message(line).starts_with("app/3 stopped"))
    })
    .await;
    assert_eq!(homes().await, before);
}

/// Drained: nobody new, and whoever is there stays. In maintenance: nobody. Ready: home again.
#[tokio::test]
async fn a_slot_is_taken_out_and_back() {
    let drain = "drain = { timeout = \"1s\", spread = \"100ms\" }";
    let homescar = Homescar::serve(&config("tcp", &[], "", drain));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut there = Client::connect_from(address_of_client(3), to)
        .await
        .unwrap();
    let home = there.whoami().await.unwrap();
    let is_home = async || whoami(3, to, false).await.unwrap().slot == home.slot;
    assert_eq!(
        done(&homescar, &["drain", &home.slot]).await,
        format!("{}: drain\n", home.slot)
    );
    assert!(!is_home().await);
    assert_eq!(there.whoami().await.unwrap().pid, home.pid);
    let index: usize = home.slot[4..].parse().unwrap();
    assert_eq!(slots(&homescar).await[index].state, "draining");
    // No check, no reload and no death of the worker changes the operator's mind.
    let same = fs::read_to_string(homescar.config_file()).unwrap();
    homescar.reload(&same).await;
    assert_eq!(slots(&homescar).await[index].state, "draining");
    done(&homescar, &["maint", &home.slot]).await;
    assert!(there.rest().await.is_err(), "it is cut when time is up");
    assert!(!is_home().await);
    assert!(is_alive(home.pid), "its worker is left alone");
    done(&homescar, &["ready", &home.slot]).await;
    assert!(is_home().await);
}

/// A worker that has more memory than it may is replaced, and nobody is cut.
#[tokio::test]
async fn a_worker_that_is_too_large_is_replaced() {
    let folder = TempDir::new().unwrap();
    let script = folder.path().join("large.py");
    fs::write(
        &script,
        r#"
import http.server, os
large = os.environ["HOMESCAR_GENERATION"] == "1"
ballast = bytearray(200 << 20) if large else None
if large:
    for page in range(0, len(ballast), 4096):
        ballast[page] = 1
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#,
    )
    .unwrap();
    let homescar = Homescar::serve(&large(&script));
    let before = homescar.ready("app/0").await;
    homescar.message("has more memory than max_rss").await;
    homescar.message("generation 2 has taken over").await;
    homescar.message("generation 1 ended").await;
    assert!(!is_alive(before));
    let slot = &slots(&homescar).await[0];
    assert_eq!(
        (&*slot.state, slot.backend.as_ref().unwrap().generation),
        ("ready", 2)
    );
    assert!(slot.backend.as_ref().unwrap().rss.unwrap() < 150 << 20);
}

fn large(script: &Path) -> String {
    let command = json!(["python3", script]);
    format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 1, stable = "200ms", max_rss = "150MiB" }}
        "#
    )
}

/// Whoever waits in the socket of a worker that hangs is served by the next generation, and is counted
/// with that: it is not ended before its connection is.
#[tokio::test]
async fn a_connection_that_outlived_a_worker_in_its_queue_is_drained_with_the_next() {
    let text = config(
        "tcp",
        &[],
        "contract = \"fd\"",
        "drain = { timeout = \"60s\" }",
    );
    let homescar = Homescar::serve(&text.replace("count = 3", "count = 1"));
    let hung = homescar.all_ready("app", 1).await[0];
    let to = homescar.address("web").await;
    stop(hung).await;
    let mut client = Client::connect(to).await.unwrap();
    client.send("whoami\n").await.unwrap();
    until(&homescar, "homescar_connections_active", &[], 1.0).await;
    nix::sys::signal::kill(pid(hung), Signal::SIGKILL).unwrap();
    let second = client.answer().await.unwrap();
    assert_eq!(second.generation, 2);
    let is_ready = |line: &Value| line["generation"] == 2 && message(line).contains("ready after");
    homescar.line("the second is ready", is_ready).await;
    let restarts = restart(&homescar, &[]);
    let stays = async {
        homescar
            .line("the next", |line| message(line).contains("has taken over"))
            .await;
        // Longer than it takes to notice that nobody is there.
        for _ in 0..10 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(client.whoami().await.unwrap().pid, second.pid);
        }
        drop(client);
    };
    let ((code, receipt), ()) = tokio::join!(restarts, stays);
    assert_eq!((code, receipt.ok), (Some(0), true), "{receipt:?}");
    let of = &receipt.slots[0].connections;
    assert_eq!((of.ended, of.cut, of.failed), (1, 0, 0), "{receipt:?}");
}

/// What a worker is allowed is not part of its process: that goes on, and is judged by the new limits.
#[tokio::test]
async fn limits_of_workers_change_without_a_restart() {
    let folder = TempDir::new().unwrap();
    let deaf = folder.path().join("deaf");
    let script = format!(
        "[ -e {} ] && exec {WORKER} --never-listen; exec {WORKER} --ignore-term",
        deaf.display()
    );
    let command = json!(["sh", "-c", script]);
    let text = |limits: &[&str; 4]| {
        let [ready, stop, stable, most] = limits;
        format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            cluster = "app"
            [cluster.app.workers]
            command = {command}
            count = 1
            ready_timeout = "{ready}"
            stop_timeout = "{stop}"
            stable = "{stable}"
            max_rss = "{most}"
            "#
        )
    };
    let mut limits = ["60s", "60s", "60s", "off"];
    let homescar = Homescar::serve(&text(&limits));
    let first = homescar.ready("app/0").await;
    for (index, limit) in [(0, "1s"), (1, "300ms"), (2, "100ms")] {
        limits[index] = limit;
        homescar.reload(&text(&limits)).await;
        assert!(is_alive(first));
    }
    // The next generation has so long to get ready, and is the first that there was.
    fs::write(&deaf, "").unwrap();
    let (code, receipt) = restart(&homescar, &[]).await;
    assert_ne!(code, Some(0), "{receipt:?}");
    let is_late =
        |line: &Value| message(line).contains("was not ready in time") && line["generation"] == 2;
    homescar.line("the next is too late", is_late).await;
    assert!(is_alive(first));
    // It takes over when it has been ready for so long, and the one before has so long to end.
    fs::remove_file(&deaf).unwrap();
    let began = Instant::now();
    let (code, receipt) = restart(&homescar, &[]).await;
    assert_eq!(code, Some(0), "{receipt:?}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(!is_alive(first));
    let third = &slots(&homescar).await[0];
    let third = third.backend.as_ref().unwrap();
    assert_eq!(third.generation, 3);
    // It has too much as soon as that is said.
    limits[3] = "1MiB";
    homescar.reload(&text(&limits)).await;
    homescar.message("has more memory than max_rss").await;
    homescar.message("generation 4 has taken over").await;
}

/// A request of HTTP/2 goes by itself, as one of HTTP/1: that another one of the client is with a
/// generation which leaves does not keep the next one there.
#[tokio::test]
async fn a_request_does_not_keep_its_client_with_an_old_generation() {
    let folder = TempDir::new().unwrap();
    let (script, go) = (folder.path().join("slow.py"), folder.path().join("go"));
    fs::write(
        &script,
        r#"
import http.server, os, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while self.path == "/slow" and not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        body = os.environ["HOMESCAR_GENERATION"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#,
    )
    .unwrap();
    let command = json!(["python3", script, go]);
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 1, stable = "100ms" }}
        "#
    ));
    homescar.ready("app/0").await;
    let to = homescar.address("web").await;
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let (http2, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let request = hyper::Request::get(format!("http://a{path}"));
        let (response, _) = http2
            .clone()
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        async {
            let mut body = soon("the head", response).await.unwrap().into_body();
            soon("the body", body.data()).await.unwrap().unwrap()
        }
    };
    let slow = ask("/slow");
    until(&homescar, "homescar_connections_active", &[], 1.0).await;
    let next = async {
        homescar.message("generation 2 has taken over").await;
        let next = ask("/").await;
        fs::write(&go, "").unwrap();
        next
    };
    let ((code, _), next, slow) = tokio::join!(restart(&homescar, &[]), next, slow);
    assert_eq!(code, Some(0));
    assert_eq!((&*slow, &*next), (&b"1"[..], &b"2"[..]));
}
