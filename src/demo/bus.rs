//! What joins the workers: lines and people of every room, and the rooms' memory.
//!
//! [`Bus::run`] is one task that holds the connection, makes it anew with back-off when it breaks,
//! and says so in [`Event`]s. The chat speaks to it through a bounded queue of [`Request`]s, and
//! through the last known [`People`], of which only the newest counts.

use std::{io, path::PathBuf, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::LinesCodecError;
use tracing::warn;

use super::message::{Line, People};

mod hub;
mod redis;

pub(super) use hub::HubBus;
pub(super) use redis::RedisBus;

const REQUESTS_AT_MOST: usize = 256;
const EVENTS_AT_MOST: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// For a connection, and for a request over it.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// One of the two.
#[derive(Debug)]
pub(super) enum Bus {
    /// The hub in the demo's parent.
    Hub(HubBus),
    /// A Redis.
    Redis(RedisBus),
}

/// What the chat asks of the bus.
#[derive(Debug)]
pub(super) enum Request {
    /// Remember this line and tell everyone, also us.
    Say { room: String, line: Line },
    /// What do you remember of this room?
    History {
        room: String,
        answer: oneshot::Sender<Vec<Line>>,
    },
}

/// What the bus tells the chat.
#[derive(Debug)]
pub(super) enum Event {
    /// The connection stands. Lines may have been missed before.
    Up,
    /// It does not, and why.
    Down(String),
    /// Somebody, perhaps here, said this.
    Line { room: String, line: Line },
    /// So many are in the room, over all workers.
    People { room: String, people: u32 },
}

/// The chat's ends of the bus.
#[derive(Debug)]
pub(super) struct ChatEnds {
    /// Its name, for people.
    pub(super) name: &'static str,
    /// Where requests go.
    pub(super) requests: mpsc::Sender<Request>,
    /// Where the people of this worker are kept up to date.
    pub(super) people: watch::Sender<People>,
    /// What comes back.
    pub(super) events: mpsc::Receiver<Event>,
}

/// The connection's ends of the bus.
#[derive(Debug)]
pub(super) struct BusEnds {
    requests: mpsc::Receiver<Request>,
    people: watch::Receiver<People>,
    events: mpsc::Sender<Event>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum BusError {
    #[error("it closed the connection")]
    Closed,
    #[error("it did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
    #[error("the chat has ended")]
    NoChat,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Line(#[from] LinesCodecError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Redis(#[from] ::redis::RedisError),
}

impl Bus {
    /// The hub at `path`.
    pub(super) const fn hub(path: PathBuf) -> Self {
        Self::Hub(HubBus::new(path))
    }

    /// The ends of the chat and of [`run`](Self::run).
    pub(super) fn ends(&self) -> (ChatEnds, BusEnds) {
        let (ask, requests) = mpsc::channel(REQUESTS_AT_MOST);
        let (tell, events) = mpsc::channel(EVENTS_AT_MOST);
        let (count, people) = watch::channel(People::new());
        let chat = ChatEnds {
            name: match self {
                Self::Hub(_) => "hub",
                Self::Redis(_) => "Redis",
            },
            requests: ask,
            people: count,
            events,
        };
        let bus = BusEnds {
            requests,
            people,
            events: tell,
        };
        (chat, bus)
    }

    /// Keeps a connection for as long as the chat holds its ends.
    pub(super) async fn run(self, mut ends: BusEnds) {
        let (mut failures, mut said) = (0, false);
        while !ends.events.is_closed() {
            let mut stood = false;
            let ended = match &self {
                Self::Hub(bus) => bus.connection(&mut ends, &mut stood).await,
                Self::Redis(bus) => bus.connection(&mut ends, &mut stood).await,
            };
            let Err(error) = ended;
            failures = if stood { 0 } else { failures + 1 };
            if stood || !said {
                warn!(%error, "the bus of the chat is away");
                said = true;
            }
            if ends.tell(Event::Down(error.to_string())).await.is_err() {
                return;
            }
            tokio::time::sleep(pause(failures, fastrand::f64())).await;
        }
    }
}

impl BusEnds {
    async fn tell(&self, event: Event) -> Result<(), BusError> {
        self.events
            .send(event)
            .await
            .map_err(|_closed| BusError::NoChat)
    }
}

/// How long to wait before the next attempt: doubling, and between half and all of it by `chance`
/// (0 to 1), so that workers do not come back in step.
fn pause(failures: u32, chance: f64) -> Duration {
    let whole = FIRST_PAUSE
        .saturating_mul(1 << failures.min(16))
        .min(LONGEST_PAUSE);
    whole.mul_f64(0.5 + chance / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_scatter() {
        assert_eq!(pause(0, 1.0), FIRST_PAUSE);
        assert_eq!(pause(0, 0.0), FIRST_PAUSE / 2);
        assert_eq!(pause(3, 1.0), FIRST_PAUSE * 8);
        assert_eq!(pause(40, 1.0), LONGEST_PAUSE);
    }
}
