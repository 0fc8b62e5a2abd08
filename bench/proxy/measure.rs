//! How a row is measured: the window in the middle of the work.

use std::{io, rc::Rc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Outcome,
    backend::{Backends, Duty},
    calls,
    client::{self, Door, Tally},
    event, http, http2, idle,
    machine::{Cpus, Usage, machine_cpu},
    pattern::Pattern,
    peer::{Kind, Mode, Peer},
    process::{Job, Proxy},
    report::{Load, Sample},
    row::{Measure, Row, Spec, Work},
    stream::Stream,
    tls::Certificate,
    websocket,
};

/// Connections that stay, of rows that do not say how many.
const KEPT: u64 = 64;
/// Those of HTTP/2, which carry several requests at a time.
const KEPT_HTTP2: u64 = 16;
/// Clients that connect and close in turn.
const SHORT: u64 = 32;
/// Connections that carry bulk.
const BULK: u64 = 4;
/// Connections that are in the making at one time.
pub(crate) const AT_ONCE: u64 = 64;
/// Units whose system calls are counted.
const COUNTED: u64 = 2000;

/// For whatever must happen soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Clients at work; those that keep their connections return them open.
pub(crate) type Clients = JoinSet<io::Result<Option<Stream>>>;

/// Everything but the proxy.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cpus: Cpus,
    measured: Duration,
    certificate: Certificate,
    pub(crate) backends: Backends,
    pub(crate) pattern: Rc<Pattern>,
}

impl Bench {
    /// Starts the backends.
    pub(crate) fn start(cpus: Cpus, measured: Duration) -> Outcome<Self> {
        let pattern = Rc::new(Pattern::new());
        let backends = Backends::start(Rc::clone(&pattern))?;
        let certificate = Certificate::new()?;
        Ok(Self {
            cpus,
            measured,
            certificate,
            backends,
            pattern,
        })
    }

    /// Measures one row with a proxy of its own, once.
    pub(crate) async fn measure(&self, row: Row, peer: &Peer) -> Outcome<Vec<Sample>> {
        let spec = row.spec();
        let seen = &self.backends.seen;
        seen.duty.set(match spec.mode {
            Mode::Tcp => Duty::Echo,
            Mode::Http => Duty::Http,
        });
        let serves_tls = peer.kind == Kind::None && spec.tls.is_some();
        let acceptor = serves_tls
            .then(|| self.certificate.acceptor())
            .transpose()?;
        *seen.acceptor.borrow_mut() = acceptor;
        if let Measure::Event(event) = spec.measure {
            return event::measure(self, spec, event, peer).await;
        }
        let proxy = self.start_proxy(peer, self.job(spec)).await?;
        if spec.mode == Mode::Tcp {
            self.quiet().await?;
        }
        let samples = match spec.measure {
            Measure::Cpu => vec![self.cpu(spec, &proxy).await?],
            Measure::Memory => idle::measure(self, spec, &proxy).await?,
            Measure::Calls => vec![self.calls(spec, &proxy).await?],
            Measure::Event(_) => Vec::new(),
        };
        seen.check()?;
        drop(proxy);
        self.quiet().await?;
        Ok(samples)
    }

    /// What a row wants of its proxy.
    pub(crate) fn job(&self, spec: Spec) -> Job<'_> {
        Job {
            mode: spec.mode,
            tls: spec.tls,
            large: spec.work.is_large(),
            backends: &self.backends.addresses,
            event: matches!(spec.measure, Measure::Event(_)),
            server: None,
        }
    }

    pub(crate) async fn start_proxy(&self, peer: &Peer, job: Job<'_>) -> Outcome<Proxy> {
        Proxy::start(peer, job, &self.certificate, self.cpus).await
    }

    /// Warms up, measures, stops the clients and hears how they fared.
    pub(crate) async fn cpu(&self, spec: Spec, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(u64::MAX));
        let open = self.open(spec.work, &proxy.door).await?;
        let mut clients = self.set_going(spec.work, open, &proxy.door, &tally);
        let units = || match spec.work {
            Work::Up => self.backends.seen.received.get(),
            _ => tally.done.get(),
        };
        undisturbed(&mut clients, self.measured / 4).await?;
        tally.latencies.borrow_mut().clear();
        let began = Instant::now();
        let units_before = units();
        let (proxy_before, machine_before) = (proxy.usage()?, machine_cpu()?);
        let load_before = Usage::of_this_thread()?;
        undisturbed(&mut clients, self.measured).await?;
        let load = Load {
            units: units() - units_before,
            proxy: proxy.usage()?.since(proxy_before),
            load: Usage::of_this_thread()?.since(load_before),
            machine: machine_cpu()?.saturating_sub(machine_before),
            wall: began.elapsed(),
        };
        let sample = load.sample(spec, &tally.latencies.borrow());
        tally.stop();
        let ended = timeout(PATIENCE, clients.join_all()).await;
        for ended in ended.map_err(|_| "clients hang")? {
            ended?;
        }
        self.backends.seen.check()?;
        if load.units == 0 {
            return Err("no work was done".into());
        }
        Ok(sample)
    }

    async fn calls(&self, spec: Spec, proxy: &Proxy) -> Outcome<Sample> {
        let tally = Rc::new(Tally::new(COUNTED));
        let open = self.open(spec.work, &proxy.door).await?;
        let counting = calls::Counting::start(&proxy.pids()?).await?;
        let clients = self.set_going(spec.work, open, &proxy.door, &tally);
        // Connections that are kept are returned open, as their end would be counted too.
        let ended = timeout(PATIENCE, clients.join_all()).await;
        let ended = ended.map_err(|_| "clients hang under strace")?;
        if spec.work == Work::Short {
            self.quiet().await?;
        }
        let counted = counting.end().await?;
        ended.into_iter().collect::<io::Result<Vec<_>>>()?;
        Ok(counted.sample(spec, COUNTED))
    }

    /// Opens the connections of those clients that keep theirs.
    async fn open(&self, work: Work, door: &Door) -> Outcome<Vec<Stream>> {
        let count = match work {
            Work::Short | Work::ShortRequests => 0,
            Work::RoundTrips { connections, .. } => connections,
            Work::Up | Work::Down => BULK,
            Work::Http2 => KEPT_HTTP2,
            Work::Requests { .. } | Work::Messages => KEPT,
        };
        let seen = &self.backends.seen;
        seen.duty.set(match work {
            Work::Up => Duty::Receive,
            Work::Down => Duty::Send,
            _ => seen.duty.get(),
        });
        client::open(door, count, AT_ONCE).await
    }

    /// Starts the clients, which go on until the tally ends.
    fn set_going(&self, work: Work, open: Vec<Stream>, door: &Door, tally: &Rc<Tally>) -> Clients {
        let mut clients = JoinSet::new();
        for stream in open {
            let (pattern, tally) = (Rc::clone(&self.pattern), Rc::clone(tally));
            clients.spawn_local(go_on(work, stream, pattern, tally));
        }
        let short = match work {
            Work::Short | Work::ShortRequests => SHORT,
            _ => 0,
        };
        for _ in 0..short {
            let (door, tally) = (door.of_another(), Rc::clone(tally));
            clients.spawn_local(async move {
                let ended = match work {
                    Work::Short => client::short_connections(door, tally, 64).await,
                    _ => http::short_connections(door, tally, 64).await,
                };
                ended.map(|()| None)
            });
        }
        clients
    }

    /// Returns when the backends have no connection left.
    pub(crate) async fn quiet(&self) -> Outcome {
        self.until("the backends' connections end", || {
            self.backends.seen.open.get() == 0
        })
        .await
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) -> Outcome {
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

/// One client with a connection that stays.
async fn go_on(
    work: Work,
    stream: Stream,
    pattern: Rc<Pattern>,
    tally: Rc<Tally>,
) -> io::Result<Option<Stream>> {
    match work {
        Work::RoundTrips { bytes, .. } => client::round_trips(stream, tally, bytes).await.map(Some),
        Work::Requests { body } => http::requests(stream, tally, body).await.map(Some),
        Work::Messages => websocket::messages(stream, tally).await.map(Some),
        Work::Http2 => http2::requests(stream, tally).await.map(|()| None),
        Work::Up => client::upload(stream, pattern, tally).await.map(|()| None),
        Work::Down => client::download(stream, pattern, tally)
            .await
            .map(|()| None),
        // They open connections of their own.
        Work::Short | Work::ShortRequests => Ok(None),
    }
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
