//! The rows: what the proxy is made to do, and what that costs it.

use std::{future::Future, io, rc::Rc, time::Duration};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Outcome,
    backend::{Backends, Duty},
    calls,
    client::{self, Tally},
    http,
    machine::{Cpus, Usage, most_connections, pss_kib},
    pattern::Pattern,
    peer::{Mode, Peer, Proxy},
    report::{Load, Sample},
};

/// Connections that play ping-pong.
const PING_PONG: u64 = 64;
/// Clients that connect and close in turn.
const SHORT: u64 = 32;
/// Connections that carry bulk.
const BULK: u64 = 4;
/// Connections that are idle, where the descriptors suffice.
const IDLE: u64 = 4000;
/// Idle connections that are being opened, or carry bytes, at one time.
const AT_ONCE: u64 = 64;
/// What passes through each idle connection before it is measured again.
const PASSED: usize = 64 * 1024;
/// Round trips, or connections, whose system calls are counted.
const COUNTED: u64 = 2000;

/// For whatever must happen soon.
const PATIENCE: Duration = Duration::from_secs(20);

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    /// CPU of a 64-byte round trip, on 64 connections.
    TcpRr,
    /// CPU of a connection with one round trip.
    TcpCrr,
    /// CPU of a gigabyte from the backends to the clients, on 4 connections.
    TcpDown,
    /// CPU of a gigabyte from the clients to the backends, on 4 connections.
    TcpUp,
    /// Memory of an idle connection, of 4,000.
    IdleTcp,
    /// CPU of a request over HTTP/1.1, on 64 connections that are kept.
    HttpRr,
    /// CPU of a connection with one request.
    HttpCrr,
    /// Memory of a connection that is idle after a request, of 4,000.
    IdleHttp,
    /// System calls of a request on a kept connection; needs strace.
    CallsHttp,
    /// System calls of a 64-byte round trip; needs strace.
    CallsRr,
    /// System calls of a connection with one round trip; needs strace.
    CallsCrr,
}

impl Row {
    /// What is measured when no row is named.
    pub(crate) const MEASURED: &[Self] = &[
        Self::TcpRr,
        Self::TcpCrr,
        Self::TcpDown,
        Self::TcpUp,
        Self::IdleTcp,
        Self::HttpRr,
        Self::HttpCrr,
        Self::IdleHttp,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TcpRr => "tcp-rr",
            Self::TcpCrr => "tcp-crr",
            Self::TcpDown => "tcp-down",
            Self::TcpUp => "tcp-up",
            Self::IdleTcp => "idle-tcp",
            Self::HttpRr => "http-rr",
            Self::HttpCrr => "http-crr",
            Self::IdleHttp => "idle-http",
            Self::CallsHttp => "calls-http",
            Self::CallsRr => "calls-rr",
            Self::CallsCrr => "calls-crr",
        }
    }

    const fn mode(self) -> Mode {
        match self {
            Self::HttpRr | Self::HttpCrr | Self::IdleHttp | Self::CallsHttp => Mode::Http,
            _ => Mode::Tcp,
        }
    }
}

type Clients = JoinSet<io::Result<()>>;

/// Everything but the proxy.
#[derive(Debug)]
pub(crate) struct Bench {
    cpus: Cpus,
    measured: Duration,
    backends: Backends,
    pattern: Rc<Pattern>,
}

impl Bench {
    /// Starts the backends.
    pub(crate) fn start(cpus: Cpus, measured: Duration) -> Outcome<Self> {
        let pattern = Rc::new(Pattern::new());
        let backends = Backends::start(Rc::clone(&pattern))?;
        Ok(Self {
            cpus,
            measured,
            backends,
            pattern,
        })
    }

    /// Measures one row with a proxy of its own, once.
    pub(crate) async fn measure(&self, row: Row, peer: &Peer) -> Outcome<Vec<Sample>> {
        let (mode, addresses) = (row.mode(), &self.backends.addresses);
        self.backends.seen.duty.set(match mode {
            Mode::Tcp => Duty::Echo,
            Mode::Http => Duty::Http,
        });
        let proxy = peer.start(mode, self.cpus, addresses).await?;
        if mode == Mode::Tcp {
            self.quiet().await?;
        }
        let samples = match row {
            Row::TcpRr => vec![self.ping_pong(&proxy).await?],
            Row::TcpCrr => vec![self.short(&proxy).await?],
            Row::TcpDown => vec![self.down(&proxy).await?],
            Row::TcpUp => vec![self.up(&proxy).await?],
            Row::IdleTcp => self.idle(&proxy).await?,
            Row::HttpRr => vec![self.requests(&proxy).await?],
            Row::HttpCrr => vec![self.short_requests(&proxy).await?],
            Row::IdleHttp => vec![self.idle_http(&proxy).await?],
            Row::CallsHttp => vec![self.calls_of_requests(&proxy).await?],
            Row::CallsRr => vec![self.calls_of_ping_pong(&proxy).await?],
            Row::CallsCrr => vec![self.calls_of_short(&proxy).await?],
        };
        self.backends.seen.check()?;
        drop(proxy);
        self.quiet().await?;
        Ok(samples)
    }

    async fn ping_pong(&self, proxy: &Proxy) -> Outcome<Sample> {
        let (tally, clients) = self.start_ping_pong(proxy).await?;
        let load = self
            .window(proxy, clients, &tally, || tally.done.get())
            .await?;
        Ok(load.sample("tcp-rr", "µs a round trip", 1.0, 1e6))
    }

    async fn start_ping_pong(&self, proxy: &Proxy) -> Outcome<(Rc<Tally>, Clients)> {
        let tally = Rc::new(Tally::new(u64::MAX));
        let mut clients = JoinSet::new();
        for stream in self.open(proxy, PING_PONG).await? {
            let tally = Rc::clone(&tally);
            clients.spawn_local(async move { client::round_trips(stream, tally).await.map(drop) });
        }
        Ok((tally, clients))
    }

    /// Opens connections, to the backends and back.
    async fn open(&self, proxy: &Proxy, count: u64) -> Outcome<Vec<TcpStream>> {
        let open = client::open(proxy.listen, count, AT_ONCE).await?;
        self.until("the backends have all connections", || {
            self.backends.seen.open.get() == count
        })
        .await?;
        Ok(open)
    }

    async fn short(&self, proxy: &Proxy) -> Outcome<Sample> {
        let (tally, clients) = start_short(proxy, u64::MAX);
        let load = self
            .window(proxy, clients, &tally, || tally.done.get())
            .await?;
        Ok(load.sample("tcp-crr", "µs a connection", 1.0, 1e6))
    }

    async fn down(&self, proxy: &Proxy) -> Outcome<Sample> {
        self.backends.seen.duty.set(Duty::Send);
        let download = |stream, tally| client::download(stream, Rc::clone(&self.pattern), tally);
        let (tally, clients) = start_bulk(proxy, download).await?;
        let load = self
            .window(proxy, clients, &tally, || tally.done.get())
            .await?;
        Ok(load.sample("tcp-down", "ms a GB", 1e9, 1e3))
    }

    async fn up(&self, proxy: &Proxy) -> Outcome<Sample> {
        self.backends.seen.duty.set(Duty::Receive);
        let upload = |stream, tally| client::upload(stream, Rc::clone(&self.pattern), tally);
        let (tally, clients) = start_bulk(proxy, upload).await?;
        let received = || self.backends.seen.received.get();
        let load = self.window(proxy, clients, &tally, received).await?;
        Ok(load.sample("tcp-up", "ms a GB", 1e9, 1e3))
    }

    async fn idle(&self, proxy: &Proxy) -> Outcome<Vec<Sample>> {
        let (tally, clients) = self.start_ping_pong(proxy).await?;
        self.window(proxy, clients, &tally, || tally.done.get())
            .await?;
        self.quiet().await?;
        let empty = settled_kib(proxy).await?;

        let count = IDLE.min(most_connections()?);
        let mut open = self.open(proxy, count).await?;
        let fresh = settled_kib(proxy).await?;

        let mut passing = JoinSet::new();
        let mut passed = Vec::new();
        while let Some(stream) = open.pop() {
            passing.spawn_local(client::pass_through(
                stream,
                Rc::clone(&self.pattern),
                PASSED,
            ));
            if passing.len() as u64 == AT_ONCE {
                passed.push(timeout(PATIENCE, client::next(&mut passing)).await???);
            }
        }
        passed.extend(
            timeout(PATIENCE, passing.join_all())
                .await?
                .into_iter()
                .collect::<io::Result<Vec<_>>>()?,
        );
        let used = settled_kib(proxy).await?;
        if self.backends.seen.open.get() != count {
            return Err("idle connections were lost".into());
        }
        let each = |with: u64| (with as f64 - empty as f64) / count as f64;
        let unit = "KiB a connection";
        Ok(vec![
            Sample::new(format!("idle-tcp ({count})"), unit, each(fresh)),
            Sample::new(
                format!("idle-tcp ({count}), 64 KiB passed"),
                unit,
                each(used),
            ),
        ])
    }

    async fn requests(&self, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(u64::MAX));
        let mut clients = JoinSet::new();
        for stream in client::open(proxy.listen, PING_PONG, AT_ONCE).await? {
            let tally = Rc::clone(&tally);
            clients.spawn_local(async move { http::requests(stream, tally).await.map(drop) });
        }
        let load = self
            .window(proxy, clients, &tally, || tally.done.get())
            .await?;
        Ok(load.sample("http-rr", "µs a request", 1.0, 1e6))
    }

    async fn short_requests(&self, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(u64::MAX));
        let mut clients = JoinSet::new();
        for _ in 0..SHORT {
            clients.spawn_local(http::short_connections(proxy.listen, Rc::clone(&tally)));
        }
        let load = self
            .window(proxy, clients, &tally, || tally.done.get())
            .await?;
        Ok(load.sample("http-crr", "µs a connection", 1.0, 1e6))
    }

    async fn idle_http(&self, proxy: &Proxy) -> Outcome<Sample> {
        self.requests(proxy).await?;
        let empty = settled_kib(proxy).await?;
        let count = IDLE.min(most_connections()?);
        let tally = Rc::new(Tally::new(count));
        let mut asking = JoinSet::new();
        let mut open = Vec::new();
        for client in 0..count {
            if client >= AT_ONCE {
                open.push(client::next(&mut asking).await??);
            }
            let (to, tally) = (proxy.listen, Rc::clone(&tally));
            asking.spawn_local(async move { http::one_request(to, &tally).await });
        }
        while !asking.is_empty() {
            open.push(client::next(&mut asking).await??);
        }
        let used = settled_kib(proxy).await?;
        for stream in &open {
            // Nothing comes, not even an end.
            let nothing = stream.try_read(&mut [0]).err().map(|error| error.kind());
            if nothing != Some(io::ErrorKind::WouldBlock) {
                return Err("idle connections were lost".into());
            }
        }
        let each = (used as f64 - empty as f64) / open.len() as f64;
        let row = format!("idle-http ({count})");
        Ok(Sample::new(row, "KiB a connection", each))
    }

    async fn calls_of_requests(&self, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(COUNTED));
        let open = client::open(proxy.listen, PING_PONG, AT_ONCE).await?;
        let counting = calls::Counting::start(proxy.pid()).await?;
        let mut clients = JoinSet::new();
        for stream in open {
            clients.spawn_local(http::requests(stream, Rc::clone(&tally)));
        }
        let kept = timeout(PATIENCE, clients.join_all()).await?;
        let counted = counting.end().await?;
        kept.into_iter().collect::<io::Result<Vec<TcpStream>>>()?;
        Ok(counted.sample("calls-http", "calls a request", COUNTED))
    }

    async fn calls_of_ping_pong(&self, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(COUNTED));
        let open = self.open(proxy, PING_PONG).await?;
        let counting = calls::Counting::start(proxy.pid()).await?;
        // The connections are kept, as their end would be counted too.
        let mut clients = JoinSet::new();
        for stream in open {
            clients.spawn_local(client::round_trips(stream, Rc::clone(&tally)));
        }
        let kept = timeout(PATIENCE, clients.join_all()).await?;
        let counted = counting.end().await?;
        kept.into_iter().collect::<io::Result<Vec<TcpStream>>>()?;
        Ok(counted.sample("calls-rr", "calls a round trip", COUNTED))
    }

    async fn calls_of_short(&self, proxy: &Proxy) -> Outcome<Sample> {
        let counting = calls::Counting::start(proxy.pid()).await?;
        let (_tally, clients) = start_short(proxy, COUNTED);
        for ended in timeout(PATIENCE, clients.join_all()).await? {
            ended?;
        }
        self.quiet().await?;
        Ok(counting
            .end()
            .await?
            .sample("calls-crr", "calls a connection", COUNTED))
    }

    /// Warms up, measures, stops the clients and hears how they fared.
    async fn window(
        &self,
        proxy: &Proxy,
        mut clients: Clients,
        tally: &Tally,
        units: impl Fn() -> u64,
    ) -> Outcome<Load> {
        undisturbed(&mut clients, self.measured / 4).await?;
        let began = Instant::now();
        let units_before = units();
        let proxy_before = Usage::of_process(proxy.pid())?;
        let load_before = Usage::of_this_thread()?;
        undisturbed(&mut clients, self.measured).await?;
        let load = Load {
            units: units() - units_before,
            proxy: Usage::of_process(proxy.pid())?.since(proxy_before),
            load: Usage::of_this_thread()?.since(load_before),
            wall: began.elapsed(),
        };
        tally.stop();
        for ended in timeout(PATIENCE, clients.join_all())
            .await
            .map_err(|_| "clients hang")?
        {
            ended?;
        }
        self.backends.seen.check()?;
        if load.units == 0 {
            return Err("no work was done".into());
        }
        Ok(load)
    }

    /// Returns when the backends have no connection left.
    async fn quiet(&self) -> Outcome {
        self.until("the backends' connections end", || {
            self.backends.seen.open.get() == 0
        })
        .await
    }

    async fn until(&self, what: &str, is_so: impl Fn() -> bool) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            if Instant::now() >= deadline {
                let open = self.backends.seen.open.get();
                return Err(format!("waited in vain until {what} ({open} open)").into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

fn start_short(proxy: &Proxy, left: u64) -> (Rc<Tally>, Clients) {
    let tally = Rc::new(Tally::new(left));
    let mut clients = JoinSet::new();
    for _ in 0..SHORT {
        clients.spawn_local(client::short_connections(proxy.listen, Rc::clone(&tally)));
    }
    (tally, clients)
}

async fn start_bulk<F>(
    proxy: &Proxy,
    carry: impl Fn(TcpStream, Rc<Tally>) -> F,
) -> Outcome<(Rc<Tally>, Clients)>
where
    F: Future<Output = io::Result<()>> + 'static,
{
    let tally = Rc::new(Tally::new(u64::MAX));
    let mut clients = JoinSet::new();
    for stream in client::open(proxy.listen, BULK, BULK).await? {
        clients.spawn_local(carry(stream, Rc::clone(&tally)));
    }
    Ok((tally, clients))
}

/// Lets time pass; a client that ends meanwhile has failed.
async fn undisturbed(clients: &mut Clients, time: Duration) -> Outcome {
    match timeout(time, client::next(clients)).await {
        Err(_) => Ok(()),
        Ok(ended) => Err(ended?
            .err()
            .map_or_else(|| "a client ended".into(), Into::into)),
    }
}

/// The memory of the proxy once it no longer changes.
async fn settled_kib(proxy: &Proxy) -> Outcome<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = pss_kib(proxy.pid())?;
    loop {
        sleep(Duration::from_millis(300)).await;
        let now = pss_kib(proxy.pid())?;
        if now == before || Instant::now() >= deadline {
            return Ok(now);
        }
        before = now;
    }
}
