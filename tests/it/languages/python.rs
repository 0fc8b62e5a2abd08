//! Python: asyncio and the standard library, over a port, a Unix socket and descriptor 3.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{Conversation, Known, config, lives_and_dies};
use crate::support::{
    client::{Client, Who},
    homescar::{Homescar, SOON, is_alive, message, pid},
};

/// Python workers; they say themselves when they are ready.
const WORKERS: &str = concat!(
    r#"command = ["python3", ""#,
    env!("CARGO_MANIFEST_DIR"),
    r#"/tests/python/worker.py"], ready = "notify""#
);

/// A client's connection, line after line.
struct Lines(Client);

impl Conversation for Lines {
    async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        Client::connect_from(from, to).await.map(Self)
    }

    async fn who(&mut self) -> io::Result<Who> {
        self.0.whoami().await
    }

    async fn goes_on(&mut self) -> io::Result<()> {
        let said = "the tide comes in ".repeat(500);
        self.0.send(format!("{said}\n")).await?;
        assert!(
            self.0.line().await? == said.trim_end(),
            "something else came back"
        );
        Ok(())
    }

    async fn end(mut self) -> io::Result<()> {
        self.0.shutdown().await?;
        assert_eq!(self.0.rest().await?, b"");
        Ok(())
    }
}

#[tokio::test]
async fn python_over_port() {
    lives_and_dies::<Lines>(WORKERS, "port").await;
}

#[tokio::test]
async fn python_over_unix() {
    lives_and_dies::<Lines>(WORKERS, "unix").await;
}

#[tokio::test]
async fn python_over_fd() {
    lives_and_dies::<Lines>(WORKERS, "fd").await;
}

/// A connect to it still succeeds, so that only the watchdog can tell.
#[tokio::test]
async fn a_blocked_event_loop_is_found_by_its_watchdog() {
    let workers = format!(r#"{WORKERS}, contract = "port", watchdog = "2s", stop_timeout = "1s""#);
    let homescar = Homescar::serve(&config(3, &workers, r#"on_down = "hold 10s""#));
    let pids = homescar.all_ready("app", 3).await;
    let to = homescar.address("web").await;
    let mut crowd = Known::<Lines>::crowd(30, to).await;
    let at_home = crowd.iter().position(|known| known.who.slot == "app/1");
    let mut client = crowd.swap_remove(at_home.expect("somebody at home in app/1"));
    let before: Vec<_> = crowd.iter().map(|known| known.who.clone()).collect();

    let mark = homescar.mark();
    client.with.0.send("block 60\n").await.unwrap();
    let blocked = pids[1];
    let says = |text: &'static str| {
        move |line: &Value| line["pid"] == blocked && message(line).contains(text)
    };
    let found = says("app/1 no WATCHDOG=1 for 2 s: TERM now");
    homescar.line_after(mark, "found", found).await;
    let others = |known: &&mut Known<Lines>| known.who.slot != "app/1";
    for known in crowd.iter_mut().filter(others) {
        known.is_as_before().await;
    }
    // It comes while the blocked one is being ended, and is held for the next generation.
    let mut back = client.again(to).await;
    homescar
        .line_after(mark, "ended", says("ended: signal KILL"))
        .await;
    let next = homescar.ready_after(mark, "app/1").await;
    assert_eq!(
        (&*back.who.slot, back.who.generation, back.who.pid),
        ("app/1", 2, next)
    );
    assert!(!is_alive(blocked));
    let rest = client.with.0.rest().await;
    assert!(rest.as_ref().map_or(true, Vec::is_empty), "{rest:?}");

    // The other clients of the blocked worker are back as well, and nobody else has moved.
    let mut came_back = 0;
    for (known, was) in crowd.iter_mut().zip(before) {
        if was.slot == "app/1" {
            assert!(known.with.who().await.is_err());
            let who = known.again(to).await.who;
            assert_eq!((who.slot, who.pid), (was.slot, next));
            came_back += 1;
        } else {
            known.is_as_before().await;
        }
    }
    assert!(came_back > 0);
    back.is_as_before().await;
}

/// It says `STOPPING=1` when somebody else ends it, and its clients wait for the next one.
#[tokio::test]
async fn a_python_worker_is_told_to_end() {
    for contract in ["port", "unix", "fd"] {
        let workers = format!(r#"{WORKERS}, contract = "{contract}""#);
        let homescar = Homescar::serve(&config(2, &workers, r#"on_down = "hold 10s""#));
        let pids = homescar.all_ready("app", 2).await;
        let to = homescar.address("web").await;
        let mut other = Known::<Lines>::at("app/0", to).await;
        let mut client = Known::<Lines>::at("app/1", to).await;
        let mark = homescar.mark();
        kill(pid(pids[1]), Signal::SIGTERM).unwrap();
        assert_eq!(client.with.0.rest().await.unwrap(), b"", "{contract}");
        let again = client.again(to).await;
        assert_eq!((&*again.who.slot, again.who.generation), ("app/1", 2));
        for text in ["app/1 says that it is stopping", "app/1 ended: exit code 0"] {
            homescar
                .line_after(mark, text, |line| message(line).starts_with(text))
                .await;
        }
        other.is_as_before().await;
    }
}

/// The whole job in one line, exactly as somebody would type it.
#[tokio::test]
async fn one_line_and_no_file_is_enough() {
    let line = "run --listen 127.0.0.1:0 --workers 4 -- python3 tests/python/worker.py";
    let arguments: Vec<_> = line.split(' ').collect();
    let mut homescar = Homescar::command(&arguments, &[]);
    for index in 0..4 {
        homescar.message(&format!("app/{index} ready after")).await;
    }
    let listening = homescar.message("listening").await;
    let listening = message(&listening);
    let to = listening
        .split_once("address=")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no address in {listening:?}"));

    let mut crowd = Known::<Lines>::crowd(super::CLIENTS, to).await;
    for known in &mut crowd {
        assert_eq!(
            known.again(to).await.who,
            known.who,
            "{}\n{}",
            known.from,
            homescar.tail()
        );
        known.is_as_before().await;
    }
    let mut slots: Vec<_> = crowd.iter().map(|known| &*known.who.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots, ["app/0", "app/1", "app/2", "app/3"]);
    let pids: Vec<_> = crowd.iter().map(|known| known.who.pid).collect();
    drop(crowd);
    homescar.signal(Signal::SIGTERM);
    let status = homescar.exit_within(SOON).await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}
