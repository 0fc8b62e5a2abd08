//! One generation of a slot: a process with its sockets and pipes, from spawn to the last trace.

mod saved;

use std::{io, net::TcpListener, process::ExitStatus, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) use self::saved::SavedGeneration;
use super::{
    contract::{Prepared, Room},
    entrance::Entrances,
    home::Home,
    node::{Channel, Notice},
    notify::{Message, NotifySocket},
    oom,
    output::{Output, Source},
    process::{Process, describe},
    sweep::{self, Cookie},
    worker::Limits,
};
use crate::{
    cluster::{self, Backlog, Load, Skip, SlotStats, Started},
    config::{Address, Workers},
};

/// For what a dead worker has printed to be read.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// The generation that runs.
#[derive(Debug)]
pub(super) struct Generation {
    pub number: u32,
    pub pid: u32,
    pub process: Process,
    pub notify: NotifySocket,
    pub said_ready: bool,
    /// Under contract `node`.
    pub channel: Option<Channel>,
    pub was_ready: bool,
    /// It did not end by itself.
    pub told_to_end: bool,
    /// The kernel leads clients to it, by sockets that it shares with the slot's other generations.
    pub shares: bool,
    pub workers: Arc<Workers>,
    /// Where its end is counted.
    pub stats: Option<Arc<SlotStats>>,
    /// How many the kernel had killed for want of memory when it was started.
    oom_kills: Option<u64>,
    slot: Arc<str>,
    address: Address,
    backlog: Option<Backlog>,
    load: Arc<Load>,
    output: JoinSet<Vec<String>>,
    output_ends: CancellationToken,
    spawned: Instant,
}

/// What was learned when a generation ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub generation: u32,
    pub pid: Option<u32>,
    /// For people: `exit code 3`.
    pub how: String,
    pub lived: Duration,
    /// The last lines.
    pub stderr: Vec<String>,
    /// It ended by itself without having spoken the protocol of contract `node`.
    pub misfit: bool,
}

impl Generation {
    /// Starts it in a slot's room.
    pub(super) fn spawn(
        home: &Home,
        room: &mut Room,
        number: u32,
        workers: Arc<Workers>,
        entrances: &Entrances,
    ) -> io::Result<Self> {
        let prepared = room.prepare(&workers, entrances, number)?;
        Self::launch(home, room.slot(), prepared, number, workers)
    }

    /// Starts it beside the present one, whose sockets it shares.
    pub(super) fn spawn_beside(
        home: &Home,
        room: &mut Room,
        number: u32,
        workers: Arc<Workers>,
        entrances: &Entrances,
    ) -> io::Result<Self> {
        let prepared = room.prepare_beside(&workers, entrances, number)?;
        Self::launch(home, room.slot(), prepared, number, workers)
    }

    fn launch(
        home: &Home,
        slot: Arc<str>,
        prepared: Prepared,
        number: u32,
        workers: Arc<Workers>,
    ) -> io::Result<Self> {
        let Prepared {
            address,
            backlog,
            notify,
            channel,
            launch,
            port,
            shares,
            load,
        } = prepared;
        // The last moment: now the worker may bind it.
        drop(port);
        let launch = launch.complete(home);
        let (process, stdout, stderr) = Process::spawn(launch)?;
        home.register(process.group());
        let pid = process.id();
        let source = Source {
            slot: Arc::clone(&slot),
            generation: number,
            pid,
        };
        let output_ends = CancellationToken::new();
        let mut output = JoinSet::new();
        match Output::new(source, stdout, stderr) {
            Ok(lines) => {
                let member = home.halt().join(Arc::clone(&slot));
                drop(output.spawn(lines.run(output_ends.clone(), member)));
            }
            Err(error) => warn!(%slot, %error, "its output cannot be read"),
        }
        debug!(%slot, generation = number, pid, %address, "started");
        Ok(Self {
            number,
            pid,
            process,
            notify,
            said_ready: false,
            channel,
            was_ready: false,
            told_to_end: false,
            shares,
            workers,
            stats: None,
            oom_kills: oom::kills(),
            slot,
            address,
            backlog,
            load,
            output,
            output_ends,
            spawned: Instant::now(),
        })
    }

    pub(super) fn started(&self) -> cluster::Event {
        cluster::Event::Started(self.as_started())
    }

    /// It stands beside the present generation.
    pub(super) fn beside(&self) -> cluster::Event {
        cluster::Event::Beside(self.as_started())
    }

    /// It has left, or will have nobody any more.
    pub(super) fn gone(&self) -> cluster::Event {
        cluster::Event::Gone {
            slot: Arc::clone(&self.slot),
            generation: self.number,
            why: Skip::Stopping,
        }
    }

    pub(super) const fn slot(&self) -> &Arc<str> {
        &self.slot
    }

    /// It takes the place of the generation before it.
    pub(super) fn replaced(&self) -> cluster::Event {
        cluster::Event::Replaced(self.as_started())
    }

    fn as_started(&self) -> Started {
        Started {
            slot: Arc::clone(&self.slot),
            generation: self.number,
            address: self.address.clone(),
            pid: self.pid,
            backlog: self.backlog.clone(),
            load: Arc::clone(&self.load),
        }
    }

    /// Its connections, as far as they are relayed.
    pub(super) const fn load(&self) -> &Arc<Load> {
        &self.load
    }

    pub(super) fn ready(&self) -> cluster::Event {
        cluster::Event::Ready {
            slot: Arc::clone(&self.slot),
            generation: self.number,
        }
    }

    /// Clients are to be brought to another socket.
    /// Gives whether that is news.
    pub(super) fn moves_to(&mut self, socket: Arc<TcpListener>, address: Address) -> bool {
        let backlog = Some(Backlog::new(socket));
        let news = (&self.address, &self.backlog) != (&address, &backlog);
        (self.address, self.backlog) = (address, backlog);
        news
    }

    /// Tells it that it is to end: by its channel, if it has one, and by TERM.
    pub(super) fn term(&mut self) {
        if let Some(channel) = &mut self.channel {
            channel.say_shutdown();
        }
        self.process.term();
    }

    /// What it has said that was not yet heard.
    pub(super) fn waiting(&mut self) -> (Vec<Message>, Vec<Notice>) {
        let notices = self.channel.as_mut().map(Channel::waiting);
        (self.notify.waiting(), notices.unwrap_or_default())
    }

    pub(super) fn stopping(&self, why: Skip) -> cluster::Event {
        cluster::Event::Stopping {
            slot: Arc::clone(&self.slot),
            generation: self.number,
            why,
        }
    }

    /// Goes by this configuration, if its process is as that says.
    pub(super) fn follow(&mut self, workers: &Arc<Workers>) {
        if !self.workers.runs_differently(workers) {
            self.workers = Arc::clone(workers);
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            ready: self.workers.ready_timeout,
            stop: self.workers.stop_timeout,
            watchdog: self.workers.watchdog,
        }
    }

    /// The process has ended: takes what it has left behind down, and reaps it.
    pub(super) async fn clean_up(mut self, home: &Home) -> Ended {
        let (slot, number, pid) = (self.slot, self.number, self.pid);
        let group = self.process.group();
        let status = self.process.reap();
        // What a signal from outside ended early may have been about to speak.
        let by_itself = !self.told_to_end && status.as_ref().is_ok_and(|s| s.code().is_some());
        let misfit = by_itself && self.channel.is_some_and(|channel| !channel.is_online());
        if let Some(stats) = &self.stats {
            let kind = oom::kind_of(&status, self.told_to_end, self.oom_kills, oom::kills());
            stats.worker.exited(kind);
        }
        let how = describe_end(status);
        let lived = self.spawned.elapsed();
        home.forget(group);
        let cookie = Cookie::generation(home.id(), &slot, number);
        let swept = tokio::task::spawn_blocking(move || sweep::kill_all(&cookie)).await;
        match swept.map_err(io::Error::other).flatten() {
            Ok(0) => {}
            Ok(count) => {
                info!(%slot, generation = number, pid, count, "left processes behind; killed");
            }
            Err(error) => {
                warn!(%slot, generation = number, %error, "cannot look for what it left behind");
            }
        }
        self.output_ends.cancel();
        let tail = tokio::time::timeout(OUTPUT_TIMEOUT, self.output.join_next()).await;
        Ended {
            generation: number,
            pid: Some(pid),
            how,
            lived,
            stderr: tail.ok().flatten().and_then(Result::ok).unwrap_or_default(),
            misfit,
        }
    }
}

fn describe_end(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => describe(status),
        Err(error) => format!("an unknown end ({error})"),
    }
}
