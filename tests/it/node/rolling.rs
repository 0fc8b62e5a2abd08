//! Workers whose configuration has changed are replaced one after the other, on the sockets that
//! both generations share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{get, here, script};
use crate::support::homescar::{Homescar, SOON, eventually, is_alive, message, pid};

const WORKERS: usize = 3;
const CLIENTS: usize = 30;

fn config(mode: &str, arguments: &[&str], env: &str) -> String {
    // Long for a machine that does much else, and short for who never gets ready.
    let ready_timeout = if arguments == ["never"] { "2s" } else { "60s" };
    let mut command = vec!["node".to_owned(), script("servers.mjs")];
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    let command = json!(command);
    format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        mode = "{mode}"
        [cluster.app]
        on_down = "next"
        [cluster.app.workers]
        command = {command}
        count = {WORKERS}
        ready_timeout = "{ready_timeout}"
        stable = "200ms"
        env = {{ {env} }}
        "#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_tcp() {
    nothing_is_lost("tcp").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_http() {
    nothing_is_lost("http").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_direct_mode() {
    nothing_is_lost("direct").await;
}

/// Under constant requests not one fails, not one client meets another slot, and the table never
/// passes a slot over, which with `on_down = "next"` would move its clients.
async fn nothing_is_lost(mode: &str) {
    let homescar = Homescar::serve(&config(mode, &["http"], "RELEASE = \"1\""));
    let before = homescar.all_ready("app", WORKERS).await;
    let to = here(homescar.address("web").await);
    let mut homes = BTreeMap::new();
    for client in 0..CLIENTS {
        homes.insert(client, get(client, to).await.unwrap()["slot"].clone());
    }
    let (homes, stop) = (Arc::new(homes), Arc::new(AtomicBool::new(false)));
    let mut lanes = JoinSet::new();
    for lane in 0..4 {
        let (homes, stop) = (Arc::clone(&homes), Arc::clone(&stop));
        lanes.spawn(async move {
            let mut requests = 0;
            while !stop.load(Relaxed) {
                for client in (lane..CLIENTS).step_by(4) {
                    let who = get(client, to).await.unwrap();
                    assert_eq!(who["slot"], homes[&client]);
                    requests += 1;
                }
            }
            requests
        });
    }
    let mark = homescar.mark();
    homescar
        .reload(&config(mode, &["http"], "RELEASE = \"2\""))
        .await;
    for slot in 0..WORKERS {
        let over = format!("app/{slot}: generation 2 has taken over from generation 1");
        let is_it = |line: &Value| message(line).starts_with(&over);
        homescar.line_after(mark, &over, is_it).await;
    }
    for slot in 0..WORKERS {
        let gone = format!("app/{slot}: generation 1 ended: exit code 0");
        homescar.message(&gone).await;
    }
    stop.store(true, Relaxed);
    let requests: usize = lanes.join_all().await.into_iter().sum();
    assert!(requests > 300, "{requests} are no load");
    for client in 0..CLIENTS {
        let who = get(client, to).await.unwrap();
        assert_eq!(
            (&who["slot"], &who["generation"]),
            (&homes[&client], &json!(2))
        );
    }
    for pid in before {
        assert!(!is_alive(pid), "{pid}");
    }
    // One after the other.
    let order: Vec<_> = homescar
        .log()
        .iter()
        .filter_map(|line| {
            let said = message(line);
            let begun = said.contains("starts beside").then_some('b');
            begun.or_else(|| said.contains("generation 1 ended").then_some('e'))
        })
        .collect();
    assert_eq!(order, ['b', 'e', 'b', 'e', 'b', 'e']);
}

/// A next generation that does not come up changes nothing; the next SIGHUP tries again.
#[tokio::test]
async fn who_does_not_get_ready_replaces_nobody() {
    let homescar = Homescar::serve(&config("direct", &["http"], ""));
    let before = homescar.all_ready("app", WORKERS).await;
    let to = here(homescar.address("web").await);
    for (arguments, why) in [
        (&["throws"][..], "has ended before it was ready"),
        (&["never"], "was not ready in time: it has not listened"),
    ] {
        let mark = homescar.mark();
        homescar.reload(&config("direct", arguments, "")).await;
        let said = |line: &Value| message(line).contains(why);
        let line = homescar.line_after(mark, why, said).await;
        assert!(message(&line).contains("the present one goes on"), "{line}");
        let aborted = |line: &Value| message(line).contains("aborted after 0 slots");
        homescar.line_after(mark, "aborted", aborted).await;
        for pid in &before {
            assert!(is_alive(*pid));
        }
        for client in 0..CLIENTS {
            assert_eq!(get(client, to).await.unwrap()["generation"], 1);
        }
    }
    let mark = homescar.mark();
    homescar
        .reload(&config("direct", &["http"], "RELEASE = \"3\""))
        .await;
    for slot in 0..WORKERS {
        let over = format!("app/{slot}: generation ");
        let is_it = |line: &Value| {
            message(line).starts_with(&over) && message(line).contains("has taken over")
        };
        homescar.line_after(mark, &over, is_it).await;
    }
    eventually("the old ones are gone", SOON, || {
        before.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    let begun = |line: &&Value| message(line).contains("starts beside");
    let begun = homescar.log().iter().filter(begun).count();
    assert_eq!(begun, 2 + WORKERS, "one of each that failed, and the last");
}

/// A worker that dies while its successor starts is restarted as ever, and the others are
/// replaced.
#[tokio::test]
async fn a_death_in_the_middle_stops_nothing() {
    let slow = |env| config("direct", &["slow", "1500"], env) + "ready = \"notify\"\n";
    let homescar = Homescar::serve(&slow("RELEASE = \"1\""));
    let before = homescar.all_ready("app", WORKERS).await;
    let mark = homescar.mark();
    homescar.reload(&slow("RELEASE = \"2\"")).await;
    let begun = |line: &Value| message(line).contains("starts beside");
    let line = homescar.line_after(mark, "a start", begun).await;
    let victim: usize = line["slot"].as_str().unwrap()[4..].parse().unwrap();
    kill(pid(before[victim]), Signal::SIGKILL).unwrap();
    homescar.ready_after(mark, &format!("app/{victim}")).await;
    for slot in (0..WORKERS).filter(|slot| *slot != victim) {
        let over = format!("app/{slot}: generation 2 has taken over");
        let is_it = |line: &Value| message(line).starts_with(&over);
        homescar.line_after(mark, &over, is_it).await;
    }
}

/// Told to end in the middle of it, nobody is left.
#[tokio::test]
async fn an_end_in_the_middle_leaves_nobody() {
    let mut homescar = Homescar::serve(&config("direct", &["http"], ""));
    homescar.all_ready("app", WORKERS).await;
    let mark = homescar.mark();
    homescar.reload(&config("direct", &["never"], "")).await;
    let begun = |line: &Value| message(line).contains("starts beside");
    let line = homescar.line_after(mark, "a start", begun).await;
    let successor = u32::try_from(line["pid"].as_u64().unwrap()).unwrap();
    homescar.signal(Signal::SIGTERM);
    assert_eq!(homescar.exit().await.code(), Some(0));
    assert!(!is_alive(successor));
}
