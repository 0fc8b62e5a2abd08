//! WebSockets that an outage has put elsewhere are sent home, gently; and nobody else is.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    net::TcpSocket,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::{
    metrics::Page,
    support::{
        client::{Client, Who, address_of_client},
        homescar::{Homescar, SOON, WORKER, eventually, message},
        kill_9,
    },
};

const WORKERS: usize = 4;

/// Workers that are so slow to start that all clients of a killed one are elsewhere before it is back,
/// also on a busy machine; ready for good at once.
fn config(cluster: &str) -> String {
    let command = json!([WORKER, "--ready-after", "3000"]);
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [listener.plain]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        on_down = "next"
        {cluster}
        [cluster.app.workers]
        command = {command}
        count = {WORKERS}
        stable = "300ms"
        "#
    )
}

/// What a client met.
#[derive(Clone, Debug)]
enum Met {
    /// A WebSocket to this slot.
    Open(String),
    /// A Close frame with this code and reason, or an end without one.
    Close(Option<(u16, String)>),
}

/// Clients with a WebSocket each, who come again at once when they lose it.
struct Crowd {
    met: Arc<Mutex<Vec<(usize, Instant, Met)>>>,
    stop: Arc<AtomicBool>,
    size: usize,
    clients: JoinSet<()>,
}

impl Crowd {
    /// `from` gives the address of each.
    async fn start(to: SocketAddr, who: &[usize], from: fn(usize) -> IpAddr) -> Self {
        let crowd = Self {
            met: Arc::default(),
            stop: Arc::default(),
            size: who.len(),
            clients: JoinSet::new(),
        };
        let mut crowd = crowd;
        for &client in who {
            let (met, stop) = (Arc::clone(&crowd.met), Arc::clone(&crowd.stop));
            let note = move |what| {
                met.lock().unwrap().push((client, Instant::now(), what));
            };
            crowd.clients.spawn(async move {
                let mut cookie = None;
                while !stop.load(Relaxed) {
                    if live(from(client), to, &mut cookie, &note).await.is_err() {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
            });
        }
        eventually("all are there", SOON, || crowd.homes().len() == who.len()).await;
        crowd
    }

    fn met(&self) -> Vec<(usize, Instant, Met)> {
        self.met.lock().unwrap().clone()
    }

    /// The slot where each client is now.
    fn homes(&self) -> BTreeMap<usize, String> {
        let mut homes = BTreeMap::new();
        for (client, _, met) in self.met() {
            match met {
                Met::Open(slot) => homes.insert(client, slot),
                Met::Close(_) => homes.remove(&client),
            };
        }
        homes
    }

    /// Whom a Close frame with the reason `rebalance` was sent to, and when.
    fn sent_home(&self) -> Vec<(usize, Instant)> {
        let sent = self.met().into_iter().filter_map(|(client, at, met)| {
            let Met::Close(Some((code, reason))) = met else {
                return None;
            };
            (reason == "rebalance").then(|| {
                assert_eq!(code, 1012);
                (client, at)
            })
        });
        sent.collect()
    }

    /// Who lost a WebSocket, in whatever way, and how often.
    fn losses(&self) -> BTreeMap<usize, usize> {
        let mut losses = BTreeMap::new();
        for (client, _, met) in self.met() {
            if matches!(met, Met::Close(_)) {
                *losses.entry(client).or_default() += 1;
            }
        }
        losses
    }

    /// Waits until everybody has a WebSocket, and nobody has one to `slot`.
    async fn all_but_in(&self, slot: &str) {
        eventually("all have found another slot", SOON, || {
            let homes = self.homes();
            homes.len() == self.size && homes.values().all(|home| home != slot)
        })
        .await;
    }

    /// Waits until all are where they were.
    async fn all_in(&self, expected: &BTreeMap<usize, String>) {
        let what = "all are at home";
        let within = 3 * SOON;
        let deadline = Instant::now() + within;
        while self.homes() != *expected && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.homes(), *expected, "{what}");
    }

    /// That they were sent home at this rate and each once.
    fn assert_gentle(&self, rate: usize) {
        let sent = self.sent_home();
        let who: BTreeSet<_> = sent.iter().map(|(client, _)| client).collect();
        assert_eq!(who.len(), sent.len(), "somebody was sent twice");
        for window in sent.windows(rate + 1) {
            let took = window[rate].1 - window[0].1;
            // A second between the moments of sending, which a busy machine delays.
            assert!(
                took > Duration::from_millis(800),
                "{} in {took:?}",
                rate + 1
            );
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// One WebSocket from its beginning to its end.
async fn live(
    from: IpAddr,
    to: SocketAddr,
    cookie: &mut Option<String>,
    note: &(impl Fn(Met) + Sync),
) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(to).await?;
    let url = format!("ws://{to}/ws");
    let mut request = url.into_client_request().map_err(io::Error::other)?;
    if let Some(cookie) = cookie {
        let cookie = cookie.parse().map_err(io::Error::other)?;
        request.headers_mut().insert("cookie", cookie);
    }
    let opened = client_async(request, stream).await;
    let (mut socket, response) = opened.map_err(io::Error::other)?;
    if let Some(set) = response.headers().get("set-cookie") {
        let text = set.to_str().map_err(io::Error::other)?;
        *cookie = text.split(';').next().map(str::to_owned);
    }
    let mut is_open = false;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let who: Who = serde_json::from_str(&text)?;
                is_open = true;
                note(Met::Open(who.slot));
            }
            Some(Ok(Message::Close(frame))) => {
                let frame = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                note(Met::Close(frame));
                // The rest of the closing handshake.
                while let Some(Ok(_)) = socket.next().await {}
                return Ok(());
            }
            Some(Ok(_)) => {}
            None | Some(Err(_)) => {
                if is_open {
                    note(Met::Close(None));
                }
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }
}

async fn tell(homescar: &Homescar, arguments: &[&str]) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args(arguments);
    command.arg("--socket").arg(homescar.admin_socket());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Kills the worker of `app/1`, and waits until its clients have found another slot and the next
/// generation takes clients.
async fn outage(homescar: &Homescar, crowd: &Crowd, pid: u32) -> u32 {
    let mark = homescar.mark();
    kill_9(pid);
    crowd.all_but_in("app/1").await;
    homescar.ready_after(mark, "app/1").await
}

fn in_slot(homes: &BTreeMap<usize, String>, slot: &str) -> BTreeSet<usize> {
    let all = homes.iter().filter(|(_, home)| *home == slot);
    all.map(|(client, _)| *client).collect()
}

/// Long enough that somebody would have been sent home, were that wanted.
async fn for_a_while() {
    sleep(Duration::from_millis(2500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_those_who_were_moved_come_home_and_nobody_else_notices() {
    const RATE: usize = 20;
    let homescar = Homescar::serve(&config(&format!("rebalance = \"{RATE}/s\"")));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..240).collect();
    let crowd = Crowd::start(to, &everybody, address_of_client).await;
    let before = crowd.homes();
    let moved = in_slot(&before, "app/1");
    assert!(moved.len() > 2 * RATE, "{}", moved.len());
    // From the same addresses, over plain TCP.
    let plain = homescar.address("plain").await;
    let mut relayed = Vec::new();

    let mark = homescar.mark();
    kill_9(pids[1]);
    crowd.all_but_in("app/1").await;
    for client in &moved {
        let from = address_of_client(*client);
        let mut client = Client::connect_from(from, plain).await.unwrap();
        assert_ne!(client.whoami().await.unwrap().slot, "app/1");
        relayed.push(client);
    }
    homescar.ready_after(mark, "app/1").await;
    crowd.all_in(&before).await;

    crowd.assert_gentle(RATE);
    let sent: BTreeSet<_> = crowd
        .sent_home()
        .iter()
        .map(|(client, _)| *client)
        .collect();
    assert_eq!(sent, moved);
    let losses = crowd.losses();
    let expected = moved.iter().map(|client| (*client, 2)).collect();
    assert_eq!(losses, expected, "one for the outage, one for the way home");
    for client in &mut relayed {
        assert_ne!(client.whoami().await.unwrap().slot, "app/1", "not touched");
    }

    let is_one = |line: &Value| message(line) == "request" && line["reason"] == "rebalanced";
    let records = || homescar.log().iter().filter(|line| is_one(line)).count();
    eventually("records", SOON, || records() == moved.len()).await;
    let record = homescar.line("a record", is_one).await;
    assert_eq!(record["by"], "proxy");
    assert_eq!(
        (&record["closed_by"], &record["code"]),
        (&"proxy".into(), &1012.into())
    );
    let page = Page::of(&homescar).await;
    let ends = [("by", "proxy"), ("reason", "rebalanced")];
    let counted = page.sum("homescar_request_ends_total", &ends);
    assert_eq!(counted as usize, moved.len());
    let sent = format!("sent {} WebSockets home", moved.len());
    homescar.message(&sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_grows_gets_its_clients() {
    const RATE: usize = 20;
    let homescar = Homescar::serve(&config(&format!("rebalance = \"{RATE}/s\"")));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..150).collect();
    let crowd = Crowd::start(to, &everybody, address_of_client).await;
    let before = crowd.homes();
    tell(&homescar, &["scale", "app", "5"]).await;
    homescar.ready("app/4").await;
    // Where each of them is brought that comes now.
    let plain = homescar.address("plain").await;
    let mut after = BTreeMap::new();
    for client in &everybody {
        let from = address_of_client(*client);
        let mut visitor = Client::connect_from(from, plain).await.unwrap();
        after.insert(*client, visitor.whoami().await.unwrap().slot);
    }
    let moved = in_slot(&after, "app/4");
    assert!(moved.len() > RATE / 2, "{}", moved.len());
    crowd.all_in(&after).await;
    crowd.assert_gentle(RATE);
    let expected = moved.iter().map(|client| (*client, 1)).collect();
    assert_eq!(crowd.losses(), expected);
    for (client, home) in &before {
        assert!(moved.contains(client) || after[client] == *home);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn off_is_off_and_a_reload_turns_it_on() {
    let homescar = Homescar::serve(&config("rebalance = \"off\""));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..60).collect();
    let crowd = Crowd::start(to, &everybody, address_of_client).await;
    let before = crowd.homes();
    let moved = in_slot(&before, "app/1");
    outage(&homescar, &crowd, pids[1]).await;
    for_a_while().await;
    assert_eq!(crowd.sent_home().len(), 0);
    assert_eq!(in_slot(&crowd.homes(), "app/1"), BTreeSet::new());
    let answer = homescar.reload(&config("rebalance = \"50/s\"")).await;
    assert_eq!(message(&answer), "reloaded", "{answer}");
    crowd.all_in(&before).await;
    assert_eq!(crowd.sent_home().len(), moved.len());
}

/// Whom an outage has moved a second time stays there: they had their way home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_sent_home_a_second_time() {
    let homescar = Homescar::serve(&config("rebalance = \"100/s\""));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..60).collect();
    let crowd = Crowd::start(to, &everybody, address_of_client).await;
    let before = crowd.homes();
    let moved = in_slot(&before, "app/1");
    let pid = outage(&homescar, &crowd, pids[1]).await;
    crowd.all_in(&before).await;
    outage(&homescar, &crowd, pid).await;
    for_a_while().await;
    crowd.assert_gentle(100);
    assert_eq!(crowd.sent_home().len(), moved.len());
    assert_eq!(in_slot(&crowd.homes(), "app/1"), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_drained_draws_nobody() {
    let homescar = Homescar::serve(&config("rebalance = \"50/s\""));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..60).collect();
    let crowd = Crowd::start(to, &everybody, address_of_client).await;
    let before = crowd.homes();
    tell(&homescar, &["drain", "app/1"]).await;
    outage(&homescar, &crowd, pids[1]).await;
    for_a_while().await;
    assert_eq!(crowd.sent_home().len(), 0);
    tell(&homescar, &["ready", "app/1"]).await;
    crowd.all_in(&before).await;
    // Whoever is in a slot that drains is not sent away either.
    let mark = homescar.mark();
    tell(&homescar, &["drain", "app/2"]).await;
    let drained = |line: &Value| message(line).contains("draining") && line["slot"] == "app/2";
    homescar.line_after(mark, "drained", drained).await;
    for_a_while().await;
    assert_eq!(crowd.homes(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_full_draws_no_more_than_have_room() {
    const SEATS: usize = 12;
    let cluster =
        format!("rebalance = \"50/s\"\nmax_connections_per_slot = {SEATS}\non_full = \"next\"");
    let homescar = Homescar::serve(&config(&cluster));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    // Of so many clients, one at a time, those of one slot.
    let mut own = Vec::new();
    for client in 0..200 {
        let from = address_of_client(client);
        let visitor = homescar.address("plain").await;
        let mut visitor = Client::connect_from(from, visitor).await.unwrap();
        if visitor.whoami().await.unwrap().slot == "app/1" && own.len() < SEATS + 6 {
            own.push(client);
        }
        visitor.shutdown().await.unwrap();
        assert_eq!(visitor.rest().await.unwrap(), b"");
    }
    let (first, late) = own.split_at(SEATS);
    let (some, others) = first.split_at(3);
    let some = Crowd::start(to, some, address_of_client).await;
    let others = Crowd::start(to, others, address_of_client).await;
    let late = Crowd::start(to, late, address_of_client).await;
    let full = |crowd: &Crowd| in_slot(&crowd.homes(), "app/1").len();
    assert_eq!((full(&some), full(&others), full(&late)), (3, SEATS - 3, 0));
    for_a_while().await;
    assert_eq!(late.sent_home().len(), 0);

    drop(some);
    eventually("those who have room are at home", SOON, || full(&late) == 3).await;
    for_a_while().await;
    assert_eq!((late.sent_home().len(), full(&late)), (3, 3));
    assert_eq!(others.losses(), BTreeMap::new());
}

/// All have the same address and with it the same key, as behind a NAT: the cookie is home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_cookie_goes_home_to_its_slot() {
    let cluster = "rebalance = \"50/s\"\naffinity = { key = \"cookie\" }";
    let homescar = Homescar::serve(&config(cluster).replace(
        "[listener.plain]\n        bind = \"127.0.0.1:0\"\n",
        "[listener.plain]\n        mode = \"http\"\n        bind = \"127.0.0.1:0\"\n",
    ));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let everybody: Vec<_> = (0..40).collect();
    let crowd = Crowd::start(to, &everybody, |_| address_of_client(0)).await;
    let before = crowd.homes();
    let slot = before[&0].clone();
    assert_eq!(in_slot(&before, &slot).len(), 40);
    let index: usize = slot.strip_prefix("app/").unwrap().parse().unwrap();
    let mark = homescar.mark();
    kill_9(pids[index]);
    crowd.all_but_in(&slot).await;
    homescar.ready_after(mark, &slot).await;
    crowd.all_in(&before).await;
    crowd.assert_gentle(50);
    assert_eq!(crowd.sent_home().len(), 40);
}
