//! A relay between two of its moments, for the next image of the program: what was read and not
//! taken yet, and which side has ended.

use serde::{Deserialize, Serialize};

use super::{
    State,
    flow::{Flow, Pending},
};

/// A [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::proxy) struct SavedState {
    to_up: SavedFlow,
    to_down: SavedFlow,
    /// Whether the client was the first to end its stream, when one has.
    client_ended_first: Option<bool>,
    nothing_early: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedFlow {
    #[serde(with = "crate::handover::text")]
    pending: Vec<u8>,
    /// How many of them, from the front, are ours.
    ours: usize,
    source_ended: bool,
    done: bool,
}

impl State {
    /// What the next image has to know of it.
    pub(in crate::proxy) fn saved(&self) -> SavedState {
        SavedState {
            to_up: self.to_up.saved(),
            to_down: self.to_down.saved(),
            client_ended_first: self.client_ended_first,
            nothing_early: self.nothing_early,
        }
    }

    /// The same again.
    pub(in crate::proxy) fn resumed(saved: SavedState) -> Self {
        Self {
            to_up: Flow::resumed(saved.to_up),
            to_down: Flow::resumed(saved.to_down),
            client_ended_first: saved.client_ended_first,
            nothing_early: saved.nothing_early,
            look: None,
        }
    }
}

impl Flow {
    fn saved(&self) -> SavedFlow {
        // What stood in a pipe was taken out of it when the relay came to stand still.
        let copied = match self.pending.as_deref() {
            Some(Pending::Copied(copied)) => Some(copied),
            Some(Pending::Piped(_)) | None => None,
        };
        SavedFlow {
            pending: copied.map_or_else(Vec::new, |copied| copied.left().to_vec()),
            ours: copied.map_or(0, |copied| copied.left_of_ours()),
            source_ended: self.source_ended,
            done: self.done,
        }
    }

    fn resumed(saved: SavedFlow) -> Self {
        let mut flow = Self::waiting(saved.pending, saved.ours);
        flow.source_ended = saved.source_ended;
        flow.done = saved.done;
        flow
    }
}
