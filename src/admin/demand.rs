//! What the application is told to do.

use tokio::sync::oneshot;

/// Something to be done, and where the answer goes.
#[derive(Debug)]
pub enum Demand {
    /// Read the configuration again.
    Reload(Answer<()>),
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
    /// Whether it is to end; any other is refused, as homescar is ending.
    #[must_use]
    pub fn is_stop_or_refused(self) -> bool {
        match self {
            Self::Stop(answer) => {
                reply(answer, Ok(()));
                return true;
            }
            Self::Reload(answer) => reply(answer, Err(Refused::Ending)),
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
