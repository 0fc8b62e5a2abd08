//! SIGHUP: what is the same in both configurations is not touched; a broken file changes nothing.

use std::collections::HashSet;

use tokio::time::timeout;

use crate::support::{
    client::{Client, address_of_client, is_refused},
    homescar::{
        Homescar, SOON, WORKER, descriptors, eventually, free_port, is_alive, message, resident_kib,
    },
};

/// One listener on a cluster of workers, another on a static cluster that changes.
fn config(other_backends: &[String], more: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [listener.other]
        bind = "127.0.0.1:0"
        cluster = "other"
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = 4 }}
        [cluster.other]
        backends = [{}]
        {more}
        "#,
        other_backends.join(", ")
    )
}

fn backends(round: usize) -> Vec<String> {
    (0..3 + round % 3)
        .map(|i| format!("\"127.0.0.1:{}\"", 9 + i + round))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_reloads_touch_none_of_500_connections() {
    let homescar = Homescar::serve(&config(&backends(0), ""));
    let pids = homescar.all_ready("app", 4).await;
    let web = homescar.address("web").await;
    let mut clients = Vec::new();
    for index in 0..500 {
        let mut client = Client::connect_from(address_of_client(index), web)
            .await
            .unwrap();
        let who = client.whoami().await.unwrap();
        client.start_echo().await.unwrap();
        clients.push((client, who));
    }
    let mut memory = Vec::new();
    for round in 1..=20_usize {
        if round == 10 {
            // In between, a file with faults: all are named, nothing changes.
            let broken = config(&["\"nowhere\"".into()], "colour = \"red\"");
            let mark = homescar.mark();
            let answer = homescar.reload(&broken).await;
            assert!(message(&answer).contains("nothing has changed"), "{answer}");
            let named = async |text: &str| {
                homescar
                    .line_after(mark, text, |line| message(line).contains(text))
                    .await
            };
            let fault = named("cluster.other.backends").await;
            let file = homescar.config_file().display().to_string();
            assert!(
                message(&fault).starts_with(&format!("{file}:12:")),
                "{fault}"
            );
            assert!(message(&named("colour").await).starts_with(&format!("{file}:13:")));
        }
        let answer = homescar.reload(&config(&backends(round), "")).await;
        assert_eq!(message(&answer), "reloaded");
        for (index, (client, _)) in clients.iter_mut().enumerate() {
            client
                .echo(format!("round {round} client {index}\n").as_bytes())
                .await
                .unwrap();
        }
        memory.push(resident_kib(homescar.pid()));
    }
    assert!(memory[19] < memory[2] + 1024, "memory grows: {memory:?}");
    assert_eq!(homescar.address("web").await, web);
    for pid in pids {
        assert!(is_alive(pid), "worker {pid} did not survive");
    }
    // (Others may knock: a port that was closed in another test may have become ours.)
    let ours: HashSet<_> = clients
        .iter()
        .map(|(client, _)| client.local_addr().to_string())
        .collect();
    let ended: Vec<_> = homescar
        .records()
        .into_iter()
        .filter(|record| ours.contains(record["client"].as_str().unwrap()))
        .collect();
    assert!(ended.is_empty(), "{ended:?}");
    let slots: HashSet<_> = clients.iter().map(|(_, who)| &who.slot).collect();
    assert_eq!(slots.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go() {
    let one = |more: &str| {
        format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            cluster = "app"
            {more}
            [cluster.app]
            workers = {{ command = ["{WORKER}"], count = 2 }}
            drain = {{ timeout = "700ms" }}
            "#
        )
    };
    let second = "[listener.second]\nbind = \"127.0.0.1:0\"\ncluster = \"app\"";
    let homescar = Homescar::serve(&one(""));
    homescar.all_ready("app", 2).await;
    let web = homescar.address("web").await;
    let mut stays = Client::connect(web).await.unwrap();
    stays.whoami().await.unwrap();
    let before = descriptors(homescar.pid());

    homescar.reload(&one(second)).await;
    let added = homescar.address("second").await;
    let mut leaves = Client::connect(added).await.unwrap();
    leaves.whoami().await.unwrap();

    homescar.reload(&one("")).await;
    assert!(is_refused(added).await);
    // What came in by it may finish for as long as the drain takes, and is cut then.
    leaves.whoami().await.unwrap();
    assert!(timeout(SOON, leaves.rest()).await.unwrap().is_err());
    assert_eq!(
        homescar.record_of(leaves.local_addr()).await["reason"],
        "cut"
    );
    stays.whoami().await.unwrap();
    let is_closed = || descriptors(homescar.pid()) <= before;
    eventually("all is closed", SOON, is_closed).await;
}

/// A listener that only changes its name or its address list keeps the socket that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_listener_keeps_its_socket() {
    let port = free_port();
    let named = |name: &str| {
        format!(
            r#"
            [listener.{name}]
            bind = "127.0.0.1:{port}"
            cluster = "app"
            [cluster.app]
            workers = {{ command = ["{WORKER}"], count = 1 }}
            "#
        )
    };
    let homescar = Homescar::serve(&named("before"));
    homescar.all_ready("app", 1).await;
    let address = homescar.address("before").await;
    assert_eq!(message(&homescar.reload(&named("after")).await), "reloaded");
    let mut client = Client::connect(address).await.unwrap();
    client.whoami().await.unwrap();
    let from = client.local_addr();
    drop(client);
    assert_eq!(homescar.record_of(from).await["listener"], "after");
}

/// From all addresses to one of them and back, on the same port: we are not in our own way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_overlaps_our_own_is_not_taken() {
    let port = free_port();
    let with = |bind: &str| {
        format!(
            r#"
            [listener.web]
            bind = "{bind}:{port}"
            cluster = "app"
            [cluster.app]
            workers = {{ command = ["{WORKER}"], count = 1 }}
            "#
        )
    };
    let homescar = Homescar::serve(&with(""));
    homescar.all_ready("app", 1).await;
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    for bind in ["127.0.0.1", "", "0.0.0.0"] {
        let answer = homescar.reload(&with(bind)).await;
        assert_eq!(message(&answer), "reloaded", "{bind}: {answer}");
        Client::connect(address)
            .await
            .unwrap()
            .whoami()
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_keeps_the_old_configuration() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let with = |bind: String| {
        format!(
            r#"
            [listener.web]
            bind = [{bind}]
            cluster = "app"
            [cluster.app]
            workers = {{ command = ["{WORKER}"], count = 1 }}
            "#
        )
    };
    let homescar = Homescar::serve(&with("\"127.0.0.1:0\"".into()));
    homescar.all_ready("app", 1).await;
    let web = homescar.address("web").await;
    let both = format!("\"127.0.0.1:0\", \"{}\"", taken.local_addr().unwrap());
    let answer = homescar.reload(&with(both)).await;
    assert!(
        message(&answer).contains("not reloaded, nothing has changed"),
        "{answer}"
    );
    assert!(
        message(&answer).contains("another process listens there"),
        "{answer}"
    );
    Client::connect(web).await.unwrap().whoami().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_and_fewer_workers_leave_the_others_alone() {
    let with = |count: usize| {
        format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            cluster = "app"
            [cluster.app]
            workers = {{ command = ["{WORKER}"], count = {count} }}
            drain = {{ timeout = "5s" }}
            "#
        )
    };
    let homescar = Homescar::serve(&with(2));
    let pids = homescar.all_ready("app", 2).await;
    let web = homescar.address("web").await;
    homescar.reload(&with(4)).await;
    let third = homescar.ready("app/2").await;
    homescar.ready("app/3").await;

    let mut on_third = None;
    let mut before = Vec::new();
    for index in 0..100 {
        let mut client = Client::connect_from(address_of_client(index), web)
            .await
            .unwrap();
        let who = client.whoami().await.unwrap();
        before.push(who.slot.clone());
        if who.slot == "app/2" {
            on_third = Some(client);
        }
    }
    homescar.reload(&with(2)).await;
    // A connection to a slot that leaves is finished first; its worker is ended after it.
    let mut client = on_third.expect("a client of app/2");
    client.whoami().await.unwrap();
    assert!(is_alive(third));
    drop(client);
    eventually("app/2 has ended", SOON, || !is_alive(third)).await;
    for (index, slot) in before.iter().enumerate() {
        let who = Client::connect_from(address_of_client(index), web)
            .await
            .unwrap();
        let now = { who }.whoami().await.unwrap();
        if slot == "app/0" || slot == "app/1" {
            assert_eq!(&now.slot, slot, "a client of a slot that stays has moved");
        }
        assert!(pids.contains(&now.pid));
    }
}
