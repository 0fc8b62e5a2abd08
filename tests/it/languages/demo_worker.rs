//! The Rust worker of the demo: HTTP/1.1 over a port and over a Unix socket.

use homescar::demo;
use serde_json::Value;
use tempfile::TempDir;

use super::{Known, config, http::Http, lives_and_dies};
use crate::{demo::process::HubTask, support::homescar::Homescar};

/// `hashlib.pbkdf2_hmac('sha256', b'battery staple', b'salt', 150000)` of Python.
const HASH: &str = "50d852f34910fedf497bf9d4b188baf1a1ddd380511d71ea34233fff20d75982";

/// The workers, and the hub that they want.
fn workers() -> (TempDir, HubTask, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("hub");
    let hub = HubTask::start(&path);
    let workers = format!(
        r#"command = ["{}", "{}"], env = {{ {} = "{}" }}"#,
        env!("CARGO_BIN_EXE_homescar"),
        demo::WORKER_COMMAND,
        demo::HUB_VAR,
        path.display()
    );
    (folder, hub, workers)
}

#[tokio::test]
async fn the_demo_worker_over_port() {
    let (_folder, hub, workers) = workers();
    lives_and_dies::<Http>(&workers, "port").await;
    hub.stop().await;
}

#[tokio::test]
async fn the_demo_worker_over_unix() {
    let (_folder, hub, workers) = workers();
    lives_and_dies::<Http>(&workers, "unix").await;
    hub.stop().await;
}

/// Work that takes long, asked of all workers by their own clients.
#[tokio::test]
async fn the_demo_worker_hashes_for_its_clients() {
    let (_folder, hub, workers) = workers();
    for contract in ["port", "unix"] {
        let workers = format!(r#"{workers}, contract = "{contract}""#);
        let homescar = Homescar::serve(&config(2, &workers, ""));
        homescar.all_ready("app", 2).await;
        let to = homescar.address("web").await;
        for slot in ["app/0", "app/1"] {
            let mut client = Known::<Http>::at(slot, to).await;
            for on in ["pool", "loop"] {
                let target = format!("/hash?on={on}");
                let asked = client
                    .with
                    .post(&target, r#"{"password":"battery staple"}"#);
                let (status, body) = asked.await.unwrap();
                assert_eq!(status, 200, "{body}");
                let answer: Value = serde_json::from_str(&body).unwrap();
                assert_eq!((&answer["hash"], &answer["on"]), (&HASH.into(), &on.into()));
            }
            let (status, path) = client.with.get("/whoami").await.unwrap();
            let who: Value = serde_json::from_str(&path).unwrap();
            assert_eq!((status, &who["path"]), (200, &"/whoami".into()));
            client.is_as_before().await;
        }
    }
    hub.stop().await;
}
