//! The memory of idle connections.

use std::{io, rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Outcome,
    client::{self, Tally},
    http,
    machine::most_connections,
    measure::{AT_ONCE, Bench, PATIENCE},
    process::Proxy,
    report::Sample,
    row::{Spec, Work},
    stream::Stream,
    websocket,
};

/// Idle connections, where the descriptors suffice.
const IDLE: u64 = 4000;
/// What passes through each connection of `idle-tcp` before it is measured again.
const PASSED: usize = 64 * 1024;

/// Opens them and has each do what its row says once, but in clear TCP, where there is nothing that it
/// has to do; there the memory after some bytes is measured too.
pub(crate) async fn measure(bench: &Bench, spec: Spec, proxy: &Proxy) -> Outcome<Vec<Sample>> {
    bench.cpu(spec, proxy).await?;
    let is_bare = spec.tls.is_none() && matches!(spec.work, Work::RoundTrips { .. });
    let empty = settled_kib(proxy).await?;
    let count = IDLE.min(most_connections()?);
    let mut open = match is_bare {
        true => client::open(&proxy.door, count, AT_ONCE).await?,
        false => open_used(spec.work, proxy, count).await?,
    };
    if is_bare {
        bench
            .until("the backends have all connections", || {
                bench.backends.seen.open.get() == count
            })
            .await?;
    }
    let fresh = settled_kib(proxy).await?;
    let sample = |row: &str, with: u64| {
        let each = (with as f64 - empty as f64) / count as f64;
        let note = format!("{count} connections");
        Sample::new(row, "KiB a connection", each).with_note(note)
    };
    let mut samples = vec![sample(spec.name, fresh)];
    if is_bare {
        open = pass_through(bench, open).await?;
        samples.push(sample("idle-tcp-used", settled_kib(proxy).await?));
    }
    for stream in &open {
        // Nothing comes, not even an end.
        let nothing = stream.tcp().try_read(&mut [0]).err();
        if nothing.map(|error| error.kind()) != Some(io::ErrorKind::WouldBlock) {
            return Err("idle connections were lost".into());
        }
    }
    Ok(samples)
}

/// Connections that have done one unit of work.
async fn open_used(work: Work, proxy: &Proxy, count: u64) -> Outcome<Vec<Stream>> {
    let tally = Rc::new(Tally::new(count));
    let mut asking = JoinSet::new();
    let mut open = Vec::new();
    for client in 0..count {
        if client >= AT_ONCE {
            open.push(client::next(&mut asking).await??);
        }
        let (mut door, tally) = (proxy.door.of_another(), Rc::clone(&tally));
        asking.spawn_local(async move {
            match work {
                Work::Messages => websocket::open_one(&mut door, &tally).await,
                Work::Requests { body } => http::one_request(&mut door, &tally, body).await,
                _ => client::one_round_trip(&mut door, &tally, 64).await,
            }
        });
    }
    while !asking.is_empty() {
        open.push(client::next(&mut asking).await??);
    }
    Ok(open)
}

async fn pass_through(bench: &Bench, mut open: Vec<Stream>) -> Outcome<Vec<Stream>> {
    let mut passing = JoinSet::new();
    let mut passed = Vec::new();
    while let Some(stream) = open.pop() {
        let pattern = Rc::clone(&bench.pattern);
        passing.spawn_local(client::pass_through(stream, pattern, PASSED));
        if passing.len() as u64 == AT_ONCE {
            passed.push(timeout(PATIENCE, client::next(&mut passing)).await???);
        }
    }
    let rest = timeout(PATIENCE, passing.join_all()).await?;
    passed.extend(rest.into_iter().collect::<io::Result<Vec<_>>>()?);
    Ok(passed)
}

/// The memory of the proxy once it no longer changes.
async fn settled_kib(proxy: &Proxy) -> Outcome<u64> {
    let deadline = Instant::now() + PATIENCE / 2;
    let mut before = proxy.pss_kib()?;
    loop {
        sleep(Duration::from_millis(300)).await;
        let now = proxy.pss_kib()?;
        if now == before || Instant::now() >= deadline {
            return Ok(now);
        }
        before = now;
    }
}
