//! What clients notice when something happens to a proxy, or behind it.

use std::{cell::RefCell, fs, io, rc::Rc, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Outcome,
    backend::Duty,
    client::Door,
    latency::Latencies,
    measure::Bench,
    peer::{Kind, Peer},
    process::{Job, Proxy},
    report::Sample,
    row::{Event, Spec},
    stream::Stream,
    workers::{self, Workers},
};

/// Clients that come again and again, each from an address of its own, so many at a time.
const CLIENTS: u64 = 400;
const AT_ONCE: u64 = 16;
/// Between a client's going and the next one's coming; so they come some 2,000 times a second.
const PAUSE: Duration = Duration::from_millis(7);
/// Connections that stay, and how often each says something.
const KEPT: u64 = 64;
const KEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longer than that and a client has failed; less than it is watched for.
const GIVE_UP: Duration = Duration::from_millis(1500);

/// Before it, around it, and when it is over.
const CALM: Duration = Duration::from_millis(1500);
const MEANWHILE: Duration = Duration::from_millis(2500);
const AFTER: Duration = Duration::from_millis(1000);

/// What the clients have seen in one of these times.
#[derive(Debug)]
struct Seen {
    latencies: Latencies,
    failed: u64,
    worst: Duration,
    /// Which backend served a client last, and whether another one than at home ever did.
    homes: Vec<Option<u8>>,
    strayed: Vec<bool>,
}

impl Seen {
    fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            failed: 0,
            worst: Duration::ZERO,
            homes: vec![None; CLIENTS as usize],
            strayed: vec![false; CLIENTS as usize],
        }
    }

    /// That a client was answered by this backend, or by none, and after which time.
    fn note(&mut self, client: u64, answered: Option<u8>, took: Duration) {
        let at = client as usize;
        let Some(number) = answered else {
            self.failed += 1;
            return;
        };
        self.latencies.add(took);
        self.worst = self.worst.max(took);
        self.strayed[at] |= self.homes[at].is_some_and(|before| before != number);
        self.homes[at] = Some(number);
    }
}

/// One round of an event with one peer.
pub(crate) async fn measure(
    bench: &Bench,
    spec: Spec,
    event: Event,
    peer: &Peer,
) -> Outcome<Vec<Sample>> {
    bench.backends.seen.duty.set(Duty::Named);
    let mut others = None;
    let mut job = bench.job(spec);
    let addresses;
    if event == Event::Restart {
        job.server = Some(workers::SERVER);
        if !matches!(peer.kind, Kind::Homescar | Kind::HomescarQuiet) {
            let started = Workers::start(bench.cpus).await?;
            addresses = started.addresses.clone();
            job.backends = &addresses;
            others = Some(started);
        }
    }
    let proxy = bench.start_proxy(peer, job).await?;
    let seen = Rc::new(RefCell::new(Seen::new()));
    let mut clients = JoinSet::new();
    for first in 0..AT_ONCE {
        clients.spawn_local(come_and_go(proxy.door.clone(), first, Rc::clone(&seen)));
    }
    let lost = Rc::new(RefCell::new(0));
    for client in 0..KEPT {
        clients.spawn_local(stay(proxy.door.clone(), client, Rc::clone(&lost)));
    }
    // The first time around finds everybody's home.
    sleep(CALM).await;
    let home = seen.borrow().homes.clone();
    seen.replace(Seen::new());
    sleep(CALM).await;
    let calm = seen.replace(Seen::new());
    if calm.failed > 0 || *lost.borrow() > 0 {
        return Err("clients failed before anything happened".into());
    }
    let began = Instant::now();
    happen(event, peer, &proxy, job, others.as_mut()).await?;
    sleep(MEANWHILE.saturating_sub(began.elapsed())).await;
    let meanwhile = seen.replace(Seen::new());
    sleep(AFTER).await;
    let after = seen.replace(Seen::new());
    clients.shutdown().await;
    drop(proxy);
    bench.quiet().await?;
    let lost = f64::from(*lost.borrow());
    Ok(samples(spec.name, &home, [calm, meanwhile, after], lost))
}

fn samples(row: &str, home: &[Option<u8>], seen: [Seen; 3], lost: f64) -> Vec<Sample> {
    let [calm, meanwhile, after] = seen;
    let share = |moved: usize| moved as f64 * 100.0 / CLIENTS as f64;
    let still = home.iter().zip(&after.homes);
    let still = still.filter(|(home, now)| now.is_some() && home != now);
    let strayed = home.iter().zip(&meanwhile.homes).zip(&meanwhile.strayed);
    let strayed =
        strayed.filter(|((home, now), strayed)| **strayed || (now.is_some() && home != now));
    let figure =
        |what: &str, unit: &str, figure| Sample::new(&format!("{row}: {what}"), unit, figure);
    let p99 = |of: &Seen| of.latencies.percentile(0.99).unwrap_or_default() / 1e3;
    vec![
        figure(
            "failed",
            "connections",
            (meanwhile.failed + after.failed) as f64,
        ),
        figure("kept ones lost", &format!("of {KEPT}"), lost),
        figure("p99 before", "ms", p99(&calm)),
        figure("p99 meanwhile", "ms", p99(&meanwhile)),
        figure("worst meanwhile", "ms", meanwhile.worst.as_secs_f64() * 1e3),
        figure("clients elsewhere meanwhile", "%", share(strayed.count())),
        figure("clients elsewhere afterwards", "%", share(still.count())),
    ]
}

async fn happen(
    event: Event,
    peer: &Peer,
    proxy: &Proxy,
    job: Job<'_>,
    others: Option<&mut Workers>,
) -> Outcome {
    let pids = proxy.pids()?;
    match (event, others) {
        (Event::Restart, Some(workers)) => return workers.restart(1).await,
        (Event::Restart, None) => {
            let victim = pids.into_iter().find(|pid| is_slot(*pid, "app/1"));
            kill(victim.ok_or("there is no worker app/1")?, Signal::SIGKILL)?;
            return Ok(());
        }
        (Event::Remove, _) => {
            let backends = &job.backends[..job.backends.len() - 1];
            proxy.configure(peer, Job { backends, ..job })?;
        }
        (Event::Reload, _) => proxy.configure(peer, job)?,
    }
    let signal = match peer.kind {
        Kind::Haproxy | Kind::HaproxyLog => Signal::SIGUSR2,
        _ => Signal::SIGHUP,
    };
    kill(pids[0], signal)?;
    Ok(())
}

fn is_slot(pid: Pid, slot: &str) -> bool {
    let wanted = format!("HOMESCAR_SLOT={slot}");
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| {
        all.split(|&byte| byte == 0)
            .any(|one| one == wanted.as_bytes())
    })
}

/// Every so many-th client, one after the other, for ever.
async fn come_and_go(mut door: Door, first: u64, seen: Rc<RefCell<Seen>>) {
    let mut client = first;
    loop {
        let began = Instant::now();
        let answer = timeout(GIVE_UP, ask(&mut door, client)).await;
        let number = answer.ok().and_then(Result::ok).map(|(number, _)| number);
        seen.borrow_mut().note(client, number, began.elapsed());
        client = (client + AT_ONCE) % CLIENTS;
        sleep(PAUSE).await;
    }
}

/// One connection, until it is lost.
async fn stay(mut door: Door, client: u64, lost: Rc<RefCell<u8>>) {
    if let Ok(Ok((_, mut stream))) = timeout(GIVE_UP, ask(&mut door, client)).await {
        while let Ok(Ok(_)) = timeout(GIVE_UP, say(&mut stream, client)).await {
            sleep(KEPT_PAUSE).await;
        }
    }
    *lost.borrow_mut() += 1;
}

/// Connects and says something; which backend answers.
pub(crate) async fn ask(door: &mut Door, client: u64) -> io::Result<(u8, Stream)> {
    let mut stream = door.connect(client).await?;
    let number = say(&mut stream, client).await?;
    Ok((number, stream))
}

async fn say(stream: &mut Stream, client: u64) -> io::Result<u8> {
    let mut message = [0x55; 64];
    message[..8].copy_from_slice(&client.to_le_bytes());
    stream.write_all(&message).await?;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).await?;
    if answer[..63] != message[..63] {
        return Err(io::Error::other("a message came back changed"));
    }
    Ok(answer[63])
}
