//! An upgrade while a slot that was scaled away has not ended yet.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    support::{
        client::{Client, address_of_client},
        homescar::{WORKER, message},
    },
    upgrade::{Replaceable, config},
};

async fn scale_down(one: &Replaceable, text: &str) {
    let fewer = text.replace("count = 3", "count = 2");
    let reloaded = one.homescar.reload(&fewer).await;
    assert_eq!(message(&reloaded), "reloaded", "{reloaded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_waited_for() {
    let text = config("tcp", "port");
    let text = text.replace("stop_timeout = \"2s\"", "stop_timeout = \"4s\"");
    let stubborn = format!("[\"{WORKER}\", \"--ignore-term\"]");
    let text = text.replace(&format!("[\"{WORKER}\"]"), &stubborn);
    let one = Replaceable::serve(&text);
    one.homescar.all_ready("app", 3).await;
    scale_down(&one, &text).await;
    one.must_upgrade().await;
    let log = one.homescar.log();
    let mut killed = log.iter().filter(|line| line["slot"] == "app/2");
    assert!(killed.any(|line| message(line).contains("is killed")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_takes_too_long_is_named() {
    let text = config("tcp", "port").replace("timeout = \"5s\"", "timeout = \"5m\"");
    let one = Replaceable::serve(&text);
    one.homescar.all_ready("app", 3).await;
    let web = one.homescar.address("web").await;
    let mut index = 0;
    let mut client = loop {
        let address = address_of_client(index);
        let mut client = Client::connect_from(address, web).await.unwrap();
        if client.whoami().await.unwrap().slot == "app/2" {
            break client;
        }
        index += 1;
    };
    scale_down(&one, &text).await;
    let receipt = one.upgrade().await;
    let told = message(&receipt);
    assert!(
        told.starts_with("not upgraded") && told.contains("app/2, which was scaled away"),
        "{told}"
    );
    assert_eq!(client.whoami().await.unwrap().slot, "app/2");
    drop(client);
    let soon = Duration::from_secs(5);
    let upgraded = timeout(soon, one.must_upgrade()).await;
    upgraded.expect("nothing is left to wait for");
}
