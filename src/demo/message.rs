//! What the page and its worker say to each other: one JSON object a WebSocket message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::hash::{Hashed, Place};

const ROOM_AT_MOST: usize = 24;
const NAME_AT_MOST: usize = 24;
const TEXT_AT_MOST: usize = 500;
const ID_AT_MOST: usize = 40;

/// How many lines a room remembers.
pub(super) const HISTORY: usize = 50;

/// People per room.
pub(super) type People = BTreeMap<String, u32>;

/// One line of chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Given by the page that sent it; a line that is sent twice is shown once.
    pub(super) id: String,
    /// Who said it.
    pub(super) name: String,
    /// What was said.
    pub(super) text: String,
    /// When, in milliseconds since 1970.
    pub(super) at: u64,
    /// The slot that served the speaker.
    pub(super) slot: String,
}

/// From the page.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum FromPage {
    /// Enter a room, leaving the one before, under a name.
    Join { room: String, name: String },
    /// Say something in the room.
    Say { id: String, text: String },
    /// `POST /hash` over this socket, as browsers open no more than six connections for requests
    /// and the pool would never be full.
    Hash {
        id: u32,
        password: String,
        on: Place,
    },
}

/// To the page.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum ToPage<'a> {
    /// Who serves you; the first message.
    Hello {
        slot: &'a str,
        generation: u64,
        pid: u32,
        threads: usize,
        queue: usize,
        /// `http` or `tcp`: how the front carries this connection.
        mode: &'static str,
    },
    /// What joins the workers, and whether it does now.
    Bus {
        name: &'a str,
        up: bool,
        why: &'a str,
    },
    /// All that the bus remembers of a room, oldest first.
    History { room: &'a str, lines: &'a [Line] },
    /// A line, live.
    Line { room: &'a str, line: &'a Line },
    /// How many people are in the room: over all workers, and on this one.
    Presence {
        room: &'a str,
        people: u32,
        here: u32,
    },
    /// The worst delay of the event loop lately.
    Delay { ms: f64 },
    /// The answer to `hash`, with the status that `POST /hash` would have.
    Hash {
        id: u32,
        status: u16,
        #[serde(flatten)]
        hashed: Option<Hashed>,
    },
    /// What you said could not be used. `code` is stable, `message` is for people, and `id` is the
    /// line's, if it was about one.
    Error {
        code: &'a str,
        message: &'a str,
        id: Option<&'a str>,
    },
}

impl ToPage<'_> {
    /// As the text of a WebSocket message.
    pub(super) fn encode(&self) -> Utf8Bytes {
        serde_json::to_string(self)
            .expect("no map with keys that are not strings")
            .into()
    }
}

/// Why something that the page sent is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Not a message.
    #[error("not a message of this chat: {0}")]
    Malformed(String),
    /// Empty, too long, or with control characters.
    #[error("the {what} must have 1 to {at_most} characters, and no control characters")]
    Text { what: &'static str, at_most: usize },
    /// `say` before `join`.
    #[error("join a room first")]
    NoRoom,
    /// Too many messages.
    #[error("too fast: wait a second")]
    TooFast,
    /// The bus is away or full.
    #[error("the other workers cannot be reached at the moment")]
    NoBus,
}

impl Refusal {
    /// Stable, for the page.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Text { what, .. } => what,
            Self::NoRoom => "no-room",
            Self::TooFast => "too-fast",
            Self::NoBus => "no-bus",
        }
    }
}

impl FromPage {
    /// Reads a message, trims and checks its texts.
    ///
    /// # Errors
    /// The [`Refusal`] to send back.
    pub(super) fn decode(text: &str) -> Result<Self, Refusal> {
        let message: Self =
            serde_json::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
        Ok(match message {
            Self::Join { room, name } => Self::Join {
                room: checked("room", &room, ROOM_AT_MOST)?,
                name: checked("name", &name, NAME_AT_MOST)?,
            },
            Self::Say { id, text } => Self::Say {
                id: checked("id", &id, ID_AT_MOST)?,
                text: checked("text", &text, TEXT_AT_MOST)?,
            },
            hash @ Self::Hash { .. } => hash,
        })
    }
}

fn checked(what: &'static str, text: &str, at_most: usize) -> Result<String, Refusal> {
    let text = text.trim();
    let length = text.chars().count();
    if length == 0 || length > at_most || text.chars().any(char::is_control) {
        return Err(Refusal::Text { what, at_most });
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_trimmed_and_bounded_in_characters() {
        let joined = FromPage::decode(r#"{"type":"join","room":" lobby ","name":"Zoë"}"#);
        let expected = FromPage::Join {
            room: "lobby".into(),
            name: "Zoë".into(),
        };
        assert_eq!(joined, Ok(expected));
        let say = |text: &str| {
            let id = "1".to_owned();
            let message = serde_json::json!({"type": "say", "id": id, "text": text});
            FromPage::decode(&message.to_string()).map(drop)
        };
        assert_eq!(say(&"ü".repeat(500)), Ok(()));
        let refused = Err(Refusal::Text {
            what: "text",
            at_most: 500,
        });
        for bad in [
            "ü".repeat(501),
            "  ".to_owned(),
            "a\nb".to_owned(),
            "\u{0}".to_owned(),
        ] {
            assert_eq!(say(&bad), refused, "{bad:?}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"type":"sing"}"#,
            r#"{"type":"say","id":"1"}"#,
        ] {
            let refused = FromPage::decode(text).unwrap_err();
            assert_eq!(refused.code(), "malformed", "{text}");
        }
    }

    #[test]
    fn a_hash_is_flat_with_or_without_a_result() {
        let full = ToPage::Hash {
            id: 7,
            status: 429,
            hashed: None,
        };
        assert_eq!(
            full.encode().as_str(),
            r#"{"type":"hash","id":7,"status":429}"#
        );
        let done = ToPage::Hash {
            id: 7,
            status: 200,
            hashed: Some(Hashed {
                hash: "ab".into(),
                ms: 1.5,
                on: Place::Loop,
            }),
        };
        assert_eq!(
            done.encode().as_str(),
            r#"{"type":"hash","id":7,"status":200,"hash":"ab","ms":1.5,"on":"loop"}"#
        );
    }
}
