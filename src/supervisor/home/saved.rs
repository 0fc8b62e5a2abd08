//! What all workers have together, for the next image of the program.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Home, RuntimeDir, Shared};
use crate::{
    handover::{Incoming, Number, Outgoing},
    supervisor::{halt::Halt, process::Offspring},
};

/// A [`Home`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedHome {
    id: String,
    dir: PathBuf,
    nofile: u64,
    rooms: u32,
    guard: u32,
    guard_socket: Option<Number>,
    groups: BTreeSet<i32>,
    ports: BTreeSet<u16>,
    generations: BTreeMap<Arc<str>, u32>,
}

impl Home {
    /// What the next image has to know of it.
    pub(in crate::supervisor) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedHome> {
        let shared = self.shared();
        let socket = shared.socket.as_ref();
        let generations = shared.generations.iter();
        let generations =
            generations.map(|(slot, last)| (Arc::clone(slot), last.load(Ordering::Relaxed)));
        Ok(SavedHome {
            id: self.id.clone(),
            dir: self.dir.path().to_owned(),
            nofile: self.nofile,
            rooms: self.rooms.load(Ordering::Relaxed),
            guard: shared.guard.id(),
            guard_socket: socket.map(|socket| outgoing.add(socket)).transpose()?,
            groups: shared.groups.clone(),
            ports: shared.ports.clone(),
            generations: generations.collect(),
        })
    }

    /// The same again, in the next image. Nothing happens with workers before
    /// [`begin`](Self::begin).
    pub(in crate::supervisor) fn resumed(
        exe: PathBuf,
        saved: SavedHome,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        let socket = saved.guard_socket.and_then(|number| {
            let taken = incoming.take(number);
            taken
                .inspect_err(|error| warn!(%error, "the guard process cannot be reached"))
                .ok()
        });
        let generations = saved.generations.into_iter();
        let generations = generations.map(|(slot, last)| (slot, Arc::new(AtomicU32::new(last))));
        let shared = Shared {
            guard: Offspring::with_id(saved.guard)?,
            socket: socket.map(UnixStream::from),
            groups: saved.groups,
            ports: saved.ports,
            generations: generations.collect::<HashMap<_, _>>(),
        };
        Ok(Self {
            exe,
            id: saved.id,
            dir: RuntimeDir::made_before(saved.dir),
            halt: Arc::new(Halt::held()),
            nofile: saved.nofile,
            rooms: AtomicU32::new(saved.rooms),
            shared: Mutex::new(shared),
        })
    }
}
