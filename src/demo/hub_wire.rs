//! What a worker and the hub say to each other: one JSON object a line.

use serde::{Deserialize, Serialize};
use tokio_util::codec::LinesCodec;

use super::message::{Line, People};

/// The longest line from a worker, in bytes: a chat line with every character escaped, or the
/// counts of all rooms of a worker.
const TO_HUB_AT_MOST: usize = 64 * 1024;
/// The longest line from the hub: a whole history.
const FROM_HUB_AT_MOST: usize = 1024 * 1024;

/// From a worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum ToHub {
    /// Remember this line, and tell everyone, the sender included.
    Say { room: String, line: Line },
    /// Tell me what you remember of a room; the answer bears the ticket.
    History { room: String, ticket: u64 },
    /// All people that I have.
    People { rooms: People },
}

/// From the hub.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum FromHub {
    /// Somebody said this.
    Line { room: String, line: Line },
    /// What you asked for, oldest first.
    History { ticket: u64, lines: Vec<Line> },
    /// How many people are in a room, over all workers.
    People { room: String, people: u32 },
}

/// Cuts what the hub reads into lines.
pub(super) fn to_hub_codec() -> LinesCodec {
    LinesCodec::new_with_max_length(TO_HUB_AT_MOST)
}

/// Cuts what a worker reads into lines.
pub(super) fn from_hub_codec() -> LinesCodec {
    LinesCodec::new_with_max_length(FROM_HUB_AT_MOST)
}

/// A message as a line, line feed included.
pub(super) fn encode(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).expect("keys are strings");
    line.push('\n');
    line
}
