//! What the application is told to do.

use std::num::NonZeroUsize;

use tokio::sync::{mpsc, oneshot};

use super::view::Scaled;
use crate::{cluster::AdminState, supervisor::SlotReceipt};

/// Something to be done, and where the answer goes.
#[derive(Debug)]
pub enum Demand {
    /// Read the configuration again.
    Reload(Answer<()>),
    /// Replace the workers of a cluster, at most `parallel` slots at a time.
    Restart {
        /// Its name.
        cluster: String,
        /// Slots at a time.
        parallel: NonZeroUsize,
        /// What comes of each slot.
        answer: Answer<mpsc::Receiver<SlotReceipt>>,
    },
    /// Change the number of a cluster's workers.
    Scale {
        /// Its name.
        cluster: String,
        /// How many.
        count: usize,
        /// How many there were.
        answer: Answer<Scaled>,
    },
    /// Take a slot out, or back.
    Slot {
        /// Its name.
        slot: String,
        /// What is wanted of it.
        state: AdminState,
        /// That it is so.
        answer: Answer<()>,
    },
    /// Become the program that now stands in the place of this one. Only one that did not is left to
    /// answer.
    Upgrade(Answer<()>),
    /// Drain and end; once more, to end sooner.
    Stop(Answer<()>),
}

/// Where the answer to a demand goes.
pub type Answer<T> = oneshot::Sender<Result<T, Refused>>;

/// Answers a demand. Whoever asked may have gone.
pub fn reply<T>(answer: Answer<T>, result: Result<T, Refused>) {
    let _gone = answer.send(result);
}

impl Demand {
    /// Whether it is to end; any other is refused, for this reason.
    #[must_use]
    pub fn is_stop_or_refused(self, why: Refused) -> bool {
        match self {
            Self::Stop(answer) => {
                reply(answer, Ok(()));
                return true;
            }
            Self::Reload(answer) | Self::Upgrade(answer) | Self::Slot { answer, .. } => {
                reply(answer, Err(why));
            }
            Self::Restart { answer, .. } => reply(answer, Err(why)),
            Self::Scale { answer, .. } => reply(answer, Err(why)),
        }
        false
    }
}

/// Why a demand is not met, for the person who made it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// It cannot be so.
    #[error("{0}")]
    Invalid(String),
    /// Not now.
    #[error("{0}")]
    Conflict(String),
    /// It was tried and failed; nothing has changed.
    #[error("{0}")]
    Failed(String),
    /// Nobody is left who could do it.
    #[error("homescar is ending")]
    Ending,
}
