//! Workers in other languages, each in its own words, behind the real homescar.
//!
//! One story is told of all of them ([`lives_and_dies`]); what only one can show stands with it.

mod demo_worker;
mod http;
mod node;
mod python;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::signal::{Signal, kill};
use tokio::time::{Duration, Instant, sleep};

use crate::support::{
    client::{Who, address_of_client, is_refused},
    homescar::{Homescar, SOON, is_alive, message, pid},
};

const WORKERS: usize = 4;
const CLIENTS: usize = 60;
/// The slot whose worker is killed.
const VICTIM: usize = 2;

/// A client's connection that goes on and on, in the words of its worker.
trait Conversation: Sized {
    async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self>;

    /// Asks who serves it.
    async fn who(&mut self) -> io::Result<Who>;

    /// Says something else, and checks the answer.
    async fn goes_on(&mut self) -> io::Result<()>;

    /// Says goodbye.
    async fn end(self) -> io::Result<()>;
}

/// A conversation that knows whom it is with.
struct Known<C> {
    from: IpAddr,
    who: Who,
    with: C,
}

impl<C: Conversation> Known<C> {
    async fn open(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        let mut with = C::open(from, to).await?;
        let who = with.who().await?;
        Ok(Self { from, who, with })
    }

    /// One from a client whose home is this slot.
    async fn at(slot: &str, to: SocketAddr) -> Self {
        for index in 0..CLIENTS {
            let known = Self::open(address_of_client(index), to).await.unwrap();
            if known.who.slot == slot {
                return known;
            }
        }
        panic!("nobody is at home in {slot}");
    }

    /// One for each of so many clients, all open at one time.
    async fn crowd(clients: usize, to: SocketAddr) -> Vec<Self> {
        let mut crowd = Vec::new();
        for index in 0..clients {
            crowd.push(Self::open(address_of_client(index), to).await.unwrap());
        }
        crowd
    }

    /// Another one from the same client.
    async fn again(&self, to: SocketAddr) -> Self {
        Self::open(self.from, to)
            .await
            .unwrap_or_else(|error| panic!("{} at {:?}: {error}", self.from, self.who))
    }

    /// Nothing has happened to it.
    async fn is_as_before(&mut self) {
        let Self { from, who, with } = self;
        with.goes_on()
            .await
            .unwrap_or_else(|error| panic!("{from} at {who:?}: {error}"));
        assert_eq!(with.who().await.unwrap(), *who, "{from}");
    }
}

/// A front door on any port, and `count` workers behind it.
fn config(count: usize, workers: &str, cluster: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ count = {count}, {workers} }}
        drain = {{ timeout = "20s" }}
        {cluster}
        "#
    )
}

/// Every client meets its own worker, which is killed and comes back, and ends in good order.
/// `workers` is their `command` and what else they need.
async fn lives_and_dies<C: Conversation>(workers: &str, contract: &str) {
    let workers = format!(r#"{workers}, contract = "{contract}""#);
    let mut homescar = Homescar::serve(&config(WORKERS, &workers, r#"on_down = "hold 10s""#));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut crowd = everybody_meets_their_own::<C>(&pids, to).await;
    one_is_killed(&homescar, contract, &mut crowd, &pids, to).await;
    all_is_ended_in_order(&mut homescar, crowd, to).await;
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

async fn everybody_meets_their_own<C: Conversation>(pids: &[u32], to: SocketAddr) -> Vec<Known<C>> {
    let mut crowd = Known::<C>::crowd(CLIENTS, to).await;
    for Known { from, who, .. } in &crowd {
        let index: usize = who.slot.strip_prefix("app/").unwrap().parse().unwrap();
        assert_eq!((who.generation, who.pid), (1, pids[index]), "{from}");
    }
    let met: BTreeSet<_> = crowd.iter().map(|known| &known.who.slot).collect();
    assert_eq!(met.len(), WORKERS, "{met:?}");
    for known in &mut crowd {
        let mut second = known.again(to).await;
        assert_eq!(second.who, known.who, "{}", known.from);
        second.is_as_before().await;
        second.with.end().await.unwrap();
        known.is_as_before().await;
    }
    crowd
}

/// Its clients are back at once, on the same slot's next generation; the others do not notice.
async fn one_is_killed<C: Conversation>(
    homescar: &Homescar,
    contract: &str,
    crowd: &mut [Known<C>],
    pids: &[u32],
    to: SocketAddr,
) {
    let (mark, slot) = (homescar.mark(), format!("app/{VICTIM}"));
    kill(pid(pids[VICTIM]), Signal::SIGKILL).unwrap();
    let mut returned = 0;
    for known in &mut *crowd {
        if known.who.slot != slot {
            known.is_as_before().await;
            continue;
        }
        let answer = known.with.who().await;
        assert!(answer.is_err(), "the dead answer: {answer:?}");
        *known = back::<C>(homescar, contract, known.from, to, mark).await;
        assert_eq!((&known.who.slot, known.who.generation), (&slot, 2));
        returned += 1;
    }
    assert!(returned > 0, "nobody was at home in {slot}");
    let next = homescar.ready_after(mark, &slot).await;
    for known in &mut *crowd {
        known.is_as_before().await;
        assert_eq!(known.who.pid == next, known.who.slot == slot);
        assert_eq!(known.again(to).await.who, known.who, "{}", known.from);
    }
}

/// Comes back after the worker's death, and is served.
///
/// The kernel takes a dead process's connections down before its listening socket. A client that
/// comes back in between gets into the queue of the dead, and is lost if it has spoken by the time
/// that this is taken down too: it comes once more. Under contract `fd` homescar holds the socket,
/// and nobody is lost.
async fn back<C: Conversation>(
    homescar: &Homescar,
    contract: &str,
    from: IpAddr,
    to: SocketAddr,
    mark: usize,
) -> Known<C> {
    let first = Known::open(from, to).await;
    if let Ok(known) = first {
        return known;
    }
    assert_ne!(contract, "fd", "{from} was lost\n{}", homescar.tail());
    let killed = |line: &serde_json::Value| message(line).contains("ended: signal KILL");
    homescar.line_after(mark, "its death", killed).await;
    let second = Known::open(from, to).await;
    second.unwrap_or_else(|error| panic!("{from}: {error}\n{}", homescar.tail()))
}

/// Conversations go on until they are over, nobody comes in any more, and workers end by
/// themselves when they are told to.
async fn all_is_ended_in_order<C: Conversation>(
    homescar: &mut Homescar,
    crowd: Vec<Known<C>>,
    to: SocketAddr,
) {
    homescar.signal(Signal::SIGTERM);
    homescar.message("draining").await;
    let deadline = Instant::now() + SOON;
    while !is_refused(to).await {
        assert!(Instant::now() < deadline, "the door does not close");
        sleep(Duration::from_millis(5)).await;
    }
    for mut known in crowd {
        known.is_as_before().await;
        known.with.end().await.unwrap();
    }
    let status = homescar.exit().await;
    assert_eq!(status.code(), Some(0), "{}", homescar.tail());
    let is_cut = |record: &serde_json::Value| record["reason"] == "cut";
    assert!(!homescar.records().iter().any(is_cut));
    for index in 0..WORKERS {
        let expected = format!("app/{index} stopped: exit code 0");
        let log = homescar.log();
        assert!(
            log.iter().any(|line| message(line).starts_with(&expected)),
            "no {expected:?} in\n{log:#?}"
        );
    }
}
