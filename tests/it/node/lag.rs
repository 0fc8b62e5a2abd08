//! The lag of a worker's event loop, which it is asked for without its knowledge.

use std::time::Duration;

use homescar::admin::{client::Client as Admin, view::Status};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{get, get_at, here, serve};
use crate::{
    metrics,
    support::homescar::{Homescar, SOON},
};

const LAG: &str = "homescar_worker_loop_lag_seconds";

/// How many answers of a slot took at most so long, and all of them.
async fn answers(homescar: &Homescar, slot: &str, most: &str) -> (u64, u64) {
    let page = metrics::get(homescar, "").await;
    let of = |name: &str, more: &str| {
        let line = format!("{LAG}_{name}{{cluster=\"app\",slot=\"{slot}\"{more}}} ");
        let found = page.lines().find_map(|text| text.strip_prefix(&line));
        let found = found.unwrap_or_else(|| panic!("no {line} in {page}"));
        found.parse::<u64>().unwrap()
    };
    (of("bucket", &format!(",le=\"{most}\"")), of("count", ""))
}

/// What `status` says of the slots' lag, in milliseconds.
async fn lags(homescar: &Homescar) -> Vec<Option<u64>> {
    let mut admin = Admin::connect(&homescar.admin_socket()).await.unwrap();
    let status: Status = admin.get("/status").await.unwrap();
    let slots = status.clusters[0].slots.iter();
    slots.map(|slot| slot.loop_lag_ms).collect()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Asked for as long as it lives, a worker sees nothing of it. One that stands still shows while it
/// does, and after.
#[tokio::test]
async fn a_worker_that_stands_still_shows() {
    // Checks would take it for one that hangs.
    let seldom = "health = { tcp = true, interval = \"5s\" }";
    let homescar = serve("127.0.0.1:0", &["blocks"], "count = 2", seldom);
    homescar.all_ready("app", 2).await;
    let to = here(homescar.address("web").await);
    let mut clients = [None; 2];
    for client in 0..20 {
        let who = get(client, to).await.unwrap();
        clients[who["id"].as_u64().unwrap() as usize - 1] = Some(client);
    }
    let [Some(still), Some(lively)] = clients else {
        panic!("a client of each worker, not {clients:?}");
    };
    until("three answers of each", async || {
        answers(&homescar, "app/0", "10").await.1 >= 3
            && answers(&homescar, "app/1", "10").await.1 >= 3
    })
    .await;
    let of = async |index: usize| lags(&homescar).await[index].unwrap_or_default();
    assert!(lags(&homescar).await.iter().all(Option::is_some));
    until("an idle loop has none", async || of(0).await < 50).await;

    let blocked = tokio::spawn(async move { get_at(still, to, "/block?3500").await });
    let began = Instant::now();
    let mut seen = 0;
    while seen < 1000 {
        assert!(began.elapsed() < Duration::from_secs(5), "it does not show");
        sleep(Duration::from_millis(50)).await;
        seen = of(0).await;
    }
    assert!(!blocked.is_finished(), "it shows while it lasts");
    assert!(of(1).await < 1000);
    let who = blocked.await.unwrap().unwrap();
    assert_eq!(who["saw"], json!([]), "the application sees nothing of it");
    until("it is counted", async || {
        let (short, all) = answers(&homescar, "app/0", "1").await;
        all > short
    })
    .await;
    let (short, all) = answers(&homescar, "app/1", "1").await;
    assert_eq!(short, all);
    assert_eq!(get(lively, to).await.unwrap()["saw"], json!([]));
    until("it is well again", async || of(0).await < 50).await;
}

/// A socket that a worker gets after it has stood still is not taken for another's.
#[tokio::test]
async fn sockets_and_questions_do_not_meet() {
    let homescar = serve("127.0.0.1:0", &["opens"], "count = 1", "");
    let pids = homescar.all_ready("app", 1).await;
    let to = here(homescar.address("web").await);
    for client in 0..4 {
        let who = get(client, to).await.unwrap();
        assert_eq!(who["pid"], pids[0]);
        assert!(who["more"].as_u64().unwrap() > 0);
    }
    assert!(answers(&homescar, "app/0", "10").await.1 > 0);
}
