//! Slots, clusters and listeners that leave and come back under the same name, while what they
//! were is still draining.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use tokio::net::TcpListener;

use crate::support::{
    client::Client,
    homescar::{Homescar, SOON, WORKER, eventually, is_alive, message},
};

fn with_cluster(cluster: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        drain = {{ timeout = "600ms" }}
        on_down = "hold 10s"
        {cluster}
        "#
    )
}

fn of_workers() -> String {
    with_cluster(&format!(
        r#"workers = {{ command = ["{WORKER}"], count = 2 }}"#
    ))
}

/// Waits until the first generations have ended, of which `pids` are in the order of their slots,
/// and until that is told after `mark`.
async fn until_ended(homescar: &Homescar, mark: usize, pids: &[u32]) {
    eventually("the old ones have ended", SOON, || {
        !pids.iter().any(|pid| is_alive(*pid))
    })
    .await;
    for slot in 0..pids.len() {
        let slot = format!("app/{slot}");
        homescar
            .line_after(mark, "the old ones' end is told", |line| {
                message(line).contains("stopped")
                    && line["slot"] == *slot
                    && line["generation"] == 1
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_back_are_not_touched_by_the_end_of_those_that_left() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&of_workers());
    let old = homescar.all_ready("app", 2).await;
    let web = homescar.address("web").await;

    let address = backend.local_addr().unwrap();
    let of_others = with_cluster(&format!(r#"backends = ["{address}"]"#));
    assert_eq!(message(&homescar.reload(&of_others).await), "reloaded");
    let mark = homescar.mark();
    assert_eq!(message(&homescar.reload(&of_workers()).await), "reloaded");
    let mut new = Vec::new();
    for slot in ["app/0", "app/1"] {
        new.push(homescar.ready_after(mark, slot).await);
    }
    let mut client = Client::connect(web).await.unwrap();
    let first = client.whoami().await.unwrap();
    assert!(new.contains(&first.pid), "{first:?} of {new:?}");
    assert_eq!(first.generation, 2);

    until_ended(&homescar, mark, &old).await;
    // On the old connection and on a new one.
    assert_eq!(client.whoami().await.unwrap().pid, first.pid);
    let mut client = Client::connect(web).await.unwrap();
    assert_eq!(client.whoami().await.unwrap().pid, first.pid);
}

/// A cluster of four slots; `web` leads to it or to another.
fn of_two_clusters(to: &str, app: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "{to}"
        [cluster.other]
        workers = {{ command = ["{WORKER}"], count = 1 }}
        {app}
        "#
    )
}

const FOUR: &str = r#"drain = { timeout = "1500ms" }"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_leaves_has_one_drain_for_all_its_slots() {
    let app = format!("[cluster.app]\n{FOUR}\nworkers = {{ command = [\"{WORKER}\"], count = 4 }}");
    let homescar = Homescar::serve(&of_two_clusters("app", &app));
    let pids = homescar.all_ready("app", 4).await;
    let web = homescar.address("web").await;
    let mut clients = Vec::new();
    let mut slots = std::collections::HashSet::new();
    for index in 0.. {
        let from = crate::support::client::address_of_client(index);
        let mut client = Client::connect_from(from, web).await.unwrap();
        slots.insert(client.whoami().await.unwrap().slot);
        clients.push(client);
        if slots.len() == 4 {
            break;
        }
    }
    homescar.reload(&of_two_clusters("other", "")).await;
    let began = Instant::now();
    for client in &mut clients {
        assert!(client.rest().await.is_err(), "was cut");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_millis(3000), "cut after {took:?}");
    eventually("its workers have ended", SOON, || {
        !pids.iter().any(|pid| is_alive(*pid))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_comes_back_is_not_touched_by_the_end_of_what_it_was() {
    let app = format!("[cluster.app]\n{FOUR}\nworkers = {{ command = [\"{WORKER}\"], count = 4 }}");
    let homescar = Homescar::serve(&of_two_clusters("app", &app));
    let old = homescar.all_ready("app", 4).await;
    let web = homescar.address("web").await;
    let mut client = Client::connect(web).await.unwrap();
    client.whoami().await.unwrap();
    homescar.reload(&of_two_clusters("other", "")).await;
    let mark = homescar.mark();
    homescar.reload(&of_two_clusters("app", &app)).await;
    let mut new = Vec::new();
    for slot in 0..4 {
        new.push(homescar.ready_after(mark, &format!("app/{slot}")).await);
    }
    until_ended(&homescar, mark, &old).await;
    for pid in new {
        assert!(is_alive(pid), "{}", homescar.tail());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_no_longer_checked_is_taken_to_be_well() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let config = |health: &str| with_cluster(&format!("backends = [\"{address}\"]\n{health}"));
    // It accepts, and never answers.
    let homescar = Homescar::serve(&config(
        r#"health = { http = "/", interval = "20ms", timeout = "10ms", fall = 1 }"#,
    ));
    let web = homescar.address("web").await;
    homescar.message("takes no clients").await;
    homescar.reload(&config("")).await;
    // Those of the checks are in the queue before it.
    while let Some(checks) = backend.accept().now_or_never() {
        drop(checks.unwrap());
    }
    let client = Client::connect(web).await.unwrap();
    let from = client.local_addr();
    drop(backend.accept().await.unwrap());
    client.reset();
    let record = homescar.record_of(from).await;
    assert_eq!(record["slot"], address.to_string(), "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_at_once_while_connections_come_and_go() {
    let mut homescar = Homescar::serve(&of_workers());
    let pids = homescar.all_ready("app", 2).await;
    let web = homescar.address("web").await;
    let mut stays = Client::connect(web).await.unwrap();
    stays.whoami().await.unwrap();
    for round in 0..100 {
        homescar.signal(Signal::SIGHUP);
        let mut client = Client::connect(web).await.unwrap();
        assert!(
            pids.contains(&client.whoami().await.unwrap().pid),
            "{round}"
        );
    }
    stays.whoami().await.unwrap();
    homescar.signal(Signal::SIGHUP);
    drop(stays);
    homescar.signal(Signal::SIGTERM);
    homescar.signal(Signal::SIGHUP);
    assert!(homescar.exit().await.success());
    assert_eq!(homescar.records().len(), 101);
}
