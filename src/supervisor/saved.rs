//! All that belongs to workers, from one image of the program to the next: processes, sockets,
//! pipes and channels stay, and here is said which they are.

use std::{
    collections::BTreeMap, convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};
use tracing::warn;

use super::{
    halt::{Piece, Still},
    home::{Home, SavedHome},
    output::SavedOutput,
    process::Process,
    slot::SavedSlot,
};
use crate::handover::{Incoming, Outgoing};

/// For everything to come to rest. What may take longer, the replacement of a worker, is waited for
/// before.
const STILL_WITHIN: Duration = Duration::from_secs(2);

/// What the next image has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    home: SavedHome,
    slots: Vec<SavedSlot>,
    outputs: Vec<SavedOutput>,
}

/// Nothing happens with workers, until this is dropped.
#[derive(Debug)]
pub struct Standstill {
    /// All there is to know, at this moment.
    pub saved: Saved,
    /// The descriptors that it names.
    pub outgoing: Outgoing,
    /// Keeps it so.
    pub still: StillGuard,
}

/// Everything goes on when this is dropped.
#[derive(Debug)]
pub struct StillGuard {
    _still: Still,
}

impl Home {
    /// Lets everything begin that belongs to workers of an earlier image.
    pub fn begin(&self) {
        self.halt().begin();
    }

    /// Lets everything that belongs to workers stand still.
    ///
    /// # Errors
    /// What does not come to rest, or cannot be handed over; then all goes on.
    pub async fn stand_still(&self) -> Result<Standstill, String> {
        let mut still = self.halt().call(STILL_WITHIN).await?;
        let mut outgoing = still.take_descriptors();
        let home = self.saved(&mut outgoing);
        let mut saved = Saved {
            home: home.map_err(|error| format!("the runtime directory: {error}"))?,
            slots: Vec::new(),
            outputs: Vec::new(),
        };
        for piece in still.pieces.drain(..) {
            match piece {
                Piece::Slot(slot) => saved.slots.push(*slot),
                Piece::Output(output) => saved.outputs.push(*output),
            }
        }
        Ok(Standstill {
            saved,
            outgoing,
            still: StillGuard { _still: still },
        })
    }
}

/// What is to go on in this image.
#[derive(Debug)]
pub struct Resumption {
    pub(super) slots: BTreeMap<Arc<str>, SavedSlot>,
    pub(super) outputs: BTreeMap<u32, SavedOutput>,
    pub(super) incoming: Incoming,
    /// Slots that have said to their cluster what they are drop their copy.
    pub(super) reporting: mpsc::Sender<Infallible>,
    reported: mpsc::Receiver<Infallible>,
}

impl Saved {
    /// Goes on with what all workers have together; supervisors go on with the rest. Nothing happens
    /// with workers before [`Home::begin`].
    ///
    /// # Errors
    /// When what was saved makes no sense; with the descriptors.
    pub fn resume(
        self,
        exe: PathBuf,
        mut incoming: Incoming,
    ) -> Result<(Home, Resumption), (io::Error, Incoming)> {
        let home = match Home::resumed(exe, self.home, &mut incoming) {
            Ok(home) => home,
            Err(error) => return Err((error, incoming)),
        };
        let slots = self.slots.into_iter();
        let outputs = self.outputs.into_iter();
        let (reporting, reported) = mpsc::channel(1);
        let resumption = Resumption {
            reporting,
            reported,
            slots: slots.map(|slot| (Arc::clone(&slot.name), slot)).collect(),
            outputs: outputs.map(|output| (output.pid, output)).collect(),
            incoming,
        };
        Ok((home, resumption))
    }
}

impl Resumption {
    /// Ends workers that nobody has gone on with, and waits until the others are reported. Gives what
    /// is left of descriptors.
    pub async fn finish(self, within: Duration) -> Incoming {
        let Self {
            slots,
            incoming,
            reporting,
            mut reported,
            ..
        } = self;
        drop(reporting);
        for (name, slot) in slots {
            let Some(running) = slot.running else {
                continue;
            };
            warn!(slot = %name, pid = running.pid, "{name} is no longer configured: it is killed");
            drop(Process::with_id(running.pid));
        }
        let _late = timeout(within, reported.recv()).await;
        incoming
    }
}
