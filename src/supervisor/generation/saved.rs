//! The generation that runs, for the next image of the program: its process goes on meanwhile.

use std::{collections::BTreeMap, io, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Generation, Output, Source};
use crate::{
    config::{Address, Workers},
    handover::{Incoming, Moment, Outgoing},
    supervisor::{
        contract::{Room, SavedBacklog},
        home::Home,
        node::{Channel, SavedChannel},
        notify::SavedNotifySocket,
        oom,
        output::SavedOutput,
        process::Process,
        slot::Orders,
    },
};

/// A [`Generation`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedGeneration {
    pub number: u32,
    pub pid: u32,
    notify: SavedNotifySocket,
    pub said_ready: bool,
    pub was_ready: bool,
    told_to_end: bool,
    channel: Option<SavedChannel>,
    /// Where they are not those of the configuration.
    workers: Option<Workers>,
    address: Address,
    backlog: Option<SavedBacklog>,
    spawned: Moment,
}

impl Generation {
    /// Whether it can be handed over: nothing is under way with it that has no name.
    pub(in crate::supervisor) fn is_quiet(&self) -> bool {
        self.channel.as_ref().is_none_or(Channel::is_quiet)
    }

    /// What the next image has to know of it.
    pub(in crate::supervisor) fn saved(
        &self,
        room: &Room,
        configured: &Workers,
        outgoing: &mut Outgoing,
    ) -> io::Result<SavedGeneration> {
        let channel = self.channel.as_ref();
        Ok(SavedGeneration {
            number: self.number,
            pid: self.pid,
            notify: self.notify.saved(outgoing)?,
            said_ready: self.said_ready,
            was_ready: self.was_ready,
            told_to_end: self.told_to_end,
            channel: channel.map(|channel| channel.saved(outgoing)).transpose()?,
            workers: (*self.workers != *configured).then(|| Workers::clone(&self.workers)),
            address: self.address.clone(),
            backlog: self.backlog.as_ref().map(|backlog| room.which(backlog)),
            spawned: Moment::of(self.spawned),
        })
    }

    /// The same again. Needs a runtime. A process that cannot be taken over is killed.
    pub(in crate::supervisor) fn resumed(
        saved: SavedGeneration,
        home: &Home,
        room: &Room,
        orders: &Orders,
        outputs: &mut BTreeMap<u32, SavedOutput>,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        let process = Process::with_id(saved.pid)?;
        let channel = saved.channel;
        let channel = channel.map(|channel| room.resume_channel(channel, incoming));
        let slot = room.slot();
        let source = Source {
            slot: Arc::clone(&slot),
            generation: saved.number,
            pid: saved.pid,
        };
        let output_ends = CancellationToken::new();
        let mut output = JoinSet::new();
        if let Some(lines) = outputs.remove(&saved.pid) {
            match Output::resumed(source, lines, incoming) {
                Ok(lines) => {
                    let member = home.halt().join(Arc::clone(&slot));
                    drop(output.spawn(lines.run(output_ends.clone(), member)));
                }
                Err(error) => warn!(%slot, %error, "its output cannot be read"),
            }
        }
        let backlog = saved.backlog;
        let shares = backlog.is_some() && orders.entrances.doors.is_some();
        let workers = saved.workers.map(Arc::new);
        Ok(Self {
            number: saved.number,
            pid: saved.pid,
            process,
            notify: saved.notify.resumed(incoming)?,
            said_ready: saved.said_ready,
            channel: channel.transpose()?,
            was_ready: saved.was_ready,
            told_to_end: saved.told_to_end,
            shares,
            stats: None,
            oom_kills: oom::kills(),
            load: Arc::clone(room.load()),
            workers: workers.unwrap_or_else(|| Arc::clone(&orders.workers)),
            slot,
            address: saved.address,
            backlog: backlog.and_then(|which| room.find(which, &orders.entrances)),
            output,
            output_ends,
            spawned: saved.spawned.instant(),
        })
    }
}
