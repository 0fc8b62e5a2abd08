//! Node workers in an upgrade: their channels go on, with all that was agreed on them.

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{get, here, script};
use crate::{
    support::homescar::{message, pid},
    upgrade::Replaceable,
};

fn config(mode: &str, env: &str) -> String {
    let command = json!(["node", script("servers.mjs"), "http"]);
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "app"
        [cluster.app]
        workers = {{ command = {command}, count = 2, env = {{ RELEASE = "{env}" }} }}
        "#
    )
}

async fn channels_go_on(mode: &str) {
    let one = Replaceable::serve(&config(mode, "1"));
    let homescar = &one.homescar;
    let workers = homescar.all_ready("app", 2).await;
    let to = here(homescar.address("web").await);
    let mut homes = Vec::new();
    for client in 0..10 {
        homes.push(get(client, to).await.unwrap()["slot"].clone());
    }
    one.must_upgrade().await;
    one.must_upgrade().await;
    for (client, home) in homes.iter().enumerate() {
        assert_eq!(get(client, to).await.unwrap()["slot"], *home);
    }

    // They are asked to disconnect on their channels, and do.
    let mark = homescar.mark();
    homescar.reload(&config(mode, "2")).await;
    for (index, old) in workers.iter().enumerate() {
        let slot = format!("app/{index}");
        let ended = |line: &Value| {
            let is_it = line["slot"] == *slot && line["pid"] == *old;
            is_it && message(line).contains("ended: exit code 0")
        };
        let what = "the old one has ended";
        homescar.line_after(mark, what, ended).await;
    }
    for (client, home) in homes.iter().enumerate() {
        assert_eq!(get(client, to).await.unwrap()["slot"], *home);
    }

    // And the next generation after an upgrade gets the same socket.
    one.must_upgrade().await;
    let who = get(0, to).await.unwrap();
    let mark = homescar.mark();
    let victim = who["pid"].as_u64().unwrap();
    kill(pid(victim.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let slot = who["slot"].as_str().unwrap();
    homescar.ready_after(mark, slot).await;
    let again = get(0, to).await.unwrap();
    assert_eq!(again["slot"], who["slot"]);
    assert_ne!(again["pid"], who["pid"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_tcp() {
    channels_go_on("tcp").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_direct_mode() {
    channels_go_on("direct").await;
}
