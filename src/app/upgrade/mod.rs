//! Upgrade in place: this process becomes the program that now stands where it was started from.
//!
//! `execve(2)` keeps the process: its number, its children and what they have from us. Listening
//! sockets, workers with their pipes and channels, and connections that can pass on as descriptors;
//! what is to be known of them is in a file in memory ([`State`](state::State)).
//!
//! The new program is tried before anything is given up: it reads the state and the configuration
//! and says whether it could take over. Then connections that cannot come along end; then nobody is
//! let in, everything stands still, and the program is executed. Should it fail to come up, it
//! executes the old one again, which goes on with the same state: nothing moves before it is up.

mod crash;
mod execute;
mod farewell;
mod program;
mod resume;
mod state;
mod takeover;
mod way_back;

use std::{
    convert::Infallible,
    io,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use self::{
    execute::{execute, in_memory},
    state::State,
};
pub use self::{
    program::Program,
    takeover::{NoTakeover, Takeover, check_upgrade},
};
use super::{
    App, Signal,
    cluster::RunningCluster,
    demands::{Inbox, Told},
};
use crate::{
    admin::Refused,
    supervisor::{Standstill, try_image},
};

/// For replacements of workers, and what a reload or fewer slots have left, to end.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// For the new program to say whether it could take over.
const CHECKED_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks whether something is over that nothing announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What an upgrade that did not come about has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// All goes on.
    Nothing,
    /// The configuration is to be read again.
    Reload,
    /// It was told to end.
    End,
}

/// Why an upgrade does not come about.
#[derive(Debug)]
enum Stop {
    /// For people.
    Because(String),
    /// It was told to end.
    End,
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Because(why)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Because(error.to_string())
    }
}

/// What homescar is told while an upgrade is under way.
struct Meanwhile<'a> {
    inbox: &'a mut Inbox,
    reload: bool,
}

impl Meanwhile<'_> {
    /// Does something, unless homescar is told to end meanwhile.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                told = self.inbox.next() => self.note(told)?,
            }
        }
    }

    fn note(&mut self, told: Told) -> Result<(), Stop> {
        match told {
            Told::Signal(Signal::Reload) => self.reload = true,
            // It is under way; and this is no time for more or fewer.
            Told::Signal(Signal::Upgrade | Signal::More | Signal::Fewer) => {}
            Told::Signal(Signal::Shutdown) => return Err(Stop::End),
            Told::Demand(demand) => {
                let why = "homescar is being upgraded: ask again when that is over";
                if demand.is_stop_or_refused(Refused::Conflict(why.to_owned())) {
                    return Err(Stop::End);
                }
            }
        }
        Ok(())
    }

    /// Takes what has come until now.
    fn empty(&mut self) -> Result<(), Stop> {
        while let Some(told) = self.inbox.try_next() {
            self.note(told)?;
        }
        Ok(())
    }
}

impl App {
    /// Becomes the program that now stands in the place of this one; returns only when that does
    /// not come about, with the reason, which is logged too.
    pub(super) async fn upgrade(&self, inbox: &mut Inbox) -> (Left, String) {
        let mut meanwhile = Meanwhile {
            inbox,
            reload: false,
        };
        self.manager.reloading("upgrading");
        let Err(stop) = self.try_to_upgrade(&mut meanwhile).await;
        self.plane.reopen().await;
        self.directs.go_on();
        self.manager.ready(&self.status());
        let why = match stop {
            Stop::End => {
                warn!("not upgraded: told to end");
                return (Left::End, "told to end".to_owned());
            }
            Stop::Because(why) => why,
        };
        let mut lines = why.lines();
        let first = lines.next().unwrap_or_default();
        warn!("not upgraded, all goes on as before: {first}");
        lines.for_each(|line| warn!("{line}"));
        let left = match meanwhile.reload {
            true => Left::Reload,
            false => Left::Nothing,
        };
        (left, why)
    }

    async fn try_to_upgrade(&self, meanwhile: &mut Meanwhile<'_>) -> Result<Infallible, Stop> {
        let Some(program) = &self.program else {
            let why = "this homescar is more than its configuration, and cannot be started again";
            return Err(why.to_owned().into());
        };
        info!(program = %program.path.display(), "upgrading");
        let _no_replacements = meanwhile.unless_ended(self.settle()).await??;
        let draft = {
            let still = meanwhile.unless_ended(self.home.stand_still()).await??;
            self.state(program, still.saved)
        };
        let check = try_image(
            &program.path,
            &program.arguments,
            in_memory(&draft)?,
            CHECKED_WITHIN,
        );
        let version = meanwhile.unless_ended(check).await?;
        let version = version.map_err(|why| format!("{} {why}", program.path.display()))?;
        meanwhile.unless_ended(self.say_goodbye()).await?;

        let shut = SystemTime::now();
        let (doors, cut) = meanwhile.unless_ended(self.let_nobody_in()).await??;
        let connections = meanwhile.unless_ended(self.plane.freeze()).await?;
        let connections = connections.map_err(|error| error.to_string())?;
        let Standstill {
            saved,
            mut outgoing,
            still: _still,
        } = meanwhile.unless_ended(self.home.stand_still()).await??;
        let mut state = State {
            connections,
            cut,
            shut,
            ..self.state(program, saved)
        };
        let fault = |error: io::Error| format!("descriptors cannot be passed on: {error}");
        let passed = self.pass_on(&mut state, doors, &mut outgoing);
        let memory = passed.map_err(fault)?;
        info!(
            from = %state.version, to = %version, connections = state.connections.len(),
            "everything stands still: executing the new program"
        );
        crate::log::flush().await;
        // From here on nothing waits, so nothing else happens in this thread.
        meanwhile.empty()?;
        Err(execute(program, memory, meanwhile.reload).into())
    }

    /// Waits for what is under way with workers and connections, and keeps more of it from beginning.
    async fn settle(&self) -> Result<Vec<OwnedSemaphorePermit>, Stop> {
        let settled = async {
            let mut held = Vec::new();
            for (name, running) in &self.clusters {
                let hold = timeout(SETTLED_WITHIN, running.hold_replacements()).await;
                let hold = hold.map_err(|_| format!("a worker of {name} is being replaced"));
                held.extend(hold?);
            }
            while self.draining().is_some() {
                sleep(LOOK_AGAIN).await;
            }
            Ok(held)
        };
        match timeout(SETTLED_WITHIN, settled).await {
            Ok(settled) => settled,
            Err(_) => {
                let why = self.draining();
                Err(why
                    .unwrap_or_else(|| "workers are being replaced".to_owned())
                    .into())
            }
        }
    }

    /// What an earlier configuration has left and has not ended yet.
    fn draining(&self) -> Option<String> {
        let mut clusters = self.clusters.values();
        let slot = clusters.find_map(RunningCluster::retiring);
        let slot = slot.map(|slot| format!("{slot}, which was scaled away, has not ended yet"));
        slot.or_else(|| {
            let drains = !self.leaving.is_empty();
            drains.then(|| "listeners or slots of an earlier configuration still drain".to_owned())
        })
    }
}
