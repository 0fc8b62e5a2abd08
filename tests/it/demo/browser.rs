//! The page in a real browser, in front of bare workers whose restart is done by hand.

use nix::sys::signal::Signal;

use super::{
    chromium::{Chromium, Look, WIDE, screenshot},
    process::{Bus, HubTask, WorkerProcess},
    tour,
};

#[tokio::test]
async fn two_windows_chat_over_two_workers_and_one_comes_home_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    let bus = Bus::Hub(path);
    let first = WorkerProcess::start("chat/0", &bus).await;
    let second = WorkerProcess::start("chat/1", &bus).await;
    let chromium = Chromium::start().await;
    let ada = chromium.window(WIDE).await;
    let ben = chromium.window(WIDE).await;

    let home = tour::visit(&ada, &first.url()).await;
    assert_eq!(
        (home.slot.as_str(), home.generation.as_str()),
        ("chat/0", "1")
    );
    assert_eq!(home.pid, first.pid().to_string());
    assert_eq!(tour::visit(&ben, &second.url()).await.slot, "chat/1");
    tour::rename(&ada, "Ada").await;
    tour::rename(&ben, "Ben").await;
    tour::say(&ada, "hello <b>Ben</b>").await;
    assert_eq!(tour::sees(&ben, "hello <b>Ben</b>").await, "chat/0");
    tour::say(&ben, "hello Ada").await;
    assert_eq!(tour::sees(&ada, "hello Ada").await, "chat/1");

    tour::press(&ada, "kill").await;
    tour::say(&ada, "typed while nobody was there").await;
    tour::say(&ben, "said while Ada was away").await;
    screenshot(&ada, "away").await;
    let again = first.next_generation().await;
    let entry = tour::journey(&ada, "home again").await;
    assert!(
        entry.contains("chat/0 generation 1 → generation 2 after "),
        "{entry}"
    );
    let home = tour::home(&ada).await;
    assert_eq!(
        (home.slot.as_str(), home.generation.as_str()),
        ("chat/0", "2")
    );
    assert_eq!(home.pid, again.pid().to_string());
    tour::sees(&ada, "said while Ada was away").await;
    tour::sees(&ada, "typed while nobody was there").await;
    tour::sees(&ben, "typed while nobody was there").await;
    tour::sees(&ada, "hello Ada").await;
    assert_eq!(
        tour::home(&ben).await.generation,
        "1",
        "nobody else notices"
    );

    let pool = tour::hash(&ada, "pool", 40).await;
    assert_eq!(pool.answered + pool.full, 40);
    assert!(pool.full > 0, "{pool:?}");
    assert!(pool.p95.ends_with('s'), "{pool:?}");
    let pool = tour::hash(&ada, "pool", 8).await;
    assert_eq!((pool.answered, pool.full), (8, 0));
    let on_the_loop = tour::hash(&ada, "loop", 8).await;
    assert_eq!((on_the_loop.answered, on_the_loop.full), (8, 0));
    assert!(on_the_loop.worst > pool.worst, "{on_the_loop:?} {pool:?}");
    screenshot(&ada, "wide-light").await;

    ada.close().await.unwrap();
    ben.close().await.unwrap();
    hub.stop().await;
}

#[tokio::test]
async fn a_move_to_another_slot_is_shown_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    let bus = Bus::Hub(path);
    let mut first = WorkerProcess::start("chat/0", &bus).await;
    let chromium = Chromium::start().await;
    let window = chromium.window(WIDE).await;
    tour::visit(&window, &first.url()).await;

    // An orderly end: the page is told 1001, and comes back all the same.
    first.signal(Signal::SIGTERM);
    assert!(first.exit().await.success());
    let port = first.address().port().to_string();
    let _other = WorkerProcess::start_at(&port, "chat/7", 3, &bus).await;
    let entry = tour::journey(&window, "moved").await;
    assert!(
        entry.contains("chat/0 → chat/7 generation 3 after "),
        "{entry}"
    );
    assert_eq!(tour::home(&window).await.slot, "chat/7");
    window.close().await.unwrap();
    hub.stop().await;
}

#[tokio::test]
async fn the_page_fits_every_window_in_both_colour_schemes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub");
    let hub = HubTask::start(&path);
    let worker = WorkerProcess::start("chat/2", &Bus::Hub(path)).await;
    let chromium = Chromium::start().await;
    for (name, width, height) in [
        ("wide", 1280, 1500),
        ("middle", 800, 1900),
        ("narrow", 390, 2300),
    ] {
        for dark in [false, true] {
            let look = Look {
                width,
                height,
                dark,
            };
            let window = chromium.window(look).await;
            tour::visit(&window, &worker.url()).await;
            let scheme = if dark { "dark" } else { "light" };
            tour::say(&window, &format!("{name} and {scheme}")).await;
            tour::sees(&window, &format!("{name} and {scheme}")).await;
            let script = "return [
                document.documentElement.scrollWidth - document.documentElement.clientWidth,
                matchMedia('(prefers-color-scheme: dark)').matches]";
            let seen = window.execute(script, Vec::new()).await.unwrap();
            assert_eq!(
                seen,
                serde_json::json!([0, dark]),
                "nothing sticks out: {name}"
            );
            screenshot(&window, &format!("fits-{name}-{scheme}")).await;
            window.close().await.unwrap();
        }
    }
    hub.stop().await;
}
