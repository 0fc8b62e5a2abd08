//! An id that a backend makes for a client, learned as it goes by: with `affinity.key =
//! "query:sid"`, the `sid` of socket.io's first answer, `0{"sid":"…","upgrades":…`.
//!
//! Bodies are looked at, and neither held back nor changed.

use std::{ops::ControlFlow, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::response::Response;
use crate::{
    affinity::SlotId,
    cluster::{Cluster, Giver},
    handover::text,
};

/// How far into a body the id may stand.
const REACH: usize = 1024;
/// The longest id that is learned.
const LONGEST: usize = 128;

/// What watches a response for the client's id; nothing, for most.
#[derive(Debug, Default)]
pub(super) struct Lesson(Option<Box<Watch>>);

#[derive(Debug)]
struct Watch {
    cluster: Cluster,
    giver: Giver,
    finder: Finder,
}

/// A [`Lesson`] that goes on, for the next image of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedLesson {
    slot: u64,
    generation: u32,
    name: Arc<str>,
    left: usize,
    state: State,
    #[serde(with = "text")]
    value: Vec<u8>,
}

impl Lesson {
    /// What the next image has to know of it, if it goes on.
    pub(super) fn saved(&self) -> Option<SavedLesson> {
        let Watch { giver, finder, .. } = self.0.as_deref()?;
        Some(SavedLesson {
            slot: giver.slot.bits(),
            generation: giver.generation,
            name: Arc::clone(&finder.name),
            left: finder.left,
            state: finder.state,
            value: finder.value.clone(),
        })
    }

    /// The same again.
    pub(super) fn resumed(saved: Option<SavedLesson>, cluster: &Cluster) -> Self {
        Self(saved.map(|saved| {
            let giver = Giver {
                slot: SlotId::from_bits(saved.slot),
                generation: saved.generation,
            };
            let finder = Finder {
                name: saved.name,
                left: saved.left,
                state: saved.state,
                value: saved.value,
            };
            Box::new(Watch {
                cluster: cluster.clone(),
                giver,
                finder,
            })
        }))
    }

    /// Watches for the parameter of this name in what a generation of a slot answers.
    pub(super) fn new(cluster: &Cluster, name: &Arc<str>, giver: Giver) -> Self {
        Self(Some(Box::new(Watch {
            cluster: cluster.clone(),
            giver,
            finder: Finder::new(Arc::clone(name)),
        })))
    }

    /// The final head: whether the body is worth a look.
    pub(super) fn head(&mut self, response: &Response<'_>) {
        if self.0.is_some() {
            let is_coded = |(name, _): (&str, _)| name.eq_ignore_ascii_case("content-encoding");
            let is_good = matches!(response.head.status, 200..=299);
            if !is_good || response.fields().any(is_coded) {
                self.0 = None;
            }
        }
    }

    /// The next piece of the body, before the client gets it: with the id in hand, it may be back
    /// at once.
    pub(super) fn data(&mut self, data: &[u8]) {
        let Some(watch) = &mut self.0 else { return };
        if let ControlFlow::Break(found) = watch.finder.feed(data) {
            if let Some(id) = found {
                watch
                    .cluster
                    .learned()
                    .note(&id, watch.giver, Instant::now());
            }
            self.0 = None;
        }
    }
}

/// Finds `"NAME":"VALUE"` at the beginning of a text that comes in pieces.
#[derive(Debug)]
struct Finder {
    name: Arc<str>,
    /// Bytes that are still looked at.
    left: usize,
    state: State,
    value: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// So many bytes of `"NAME"` were met.
    Name(usize),
    /// It was met whole.
    Colon,
    /// … and the colon.
    Quote,
    /// … and the quote before the value.
    Value,
}

impl Finder {
    const fn new(name: Arc<str>) -> Self {
        Self {
            name,
            left: REACH,
            state: State::Name(0),
            value: Vec::new(),
        }
    }

    /// Looks at the next piece. Ends with the value, or without one when there will be none.
    ///
    /// A value is learned when it stands in a URL as it stands here, so that it is known again:
    /// not with escapes of JSON, nor with characters that URLs write otherwise (RFC 3986 §2.3).
    fn feed(&mut self, data: &[u8]) -> ControlFlow<Option<Vec<u8>>> {
        let looked_at = data.len().min(self.left);
        for &byte in &data[..looked_at] {
            self.state = match (self.state, byte) {
                (State::Name(met), _) => self.name_goes_on(met, byte),
                (State::Colon, b':') => State::Quote,
                (State::Quote, b'"') => State::Value,
                (State::Colon | State::Quote, b' ' | b'\t' | b'\r' | b'\n') => self.state,
                (State::Colon | State::Quote, _) => self.name_goes_on(0, byte),
                (State::Value, b'"') => {
                    let value = std::mem::take(&mut self.value);
                    return ControlFlow::Break(Some(value).filter(|value| !value.is_empty()));
                }
                (State::Value, _) if is_plain(byte) && self.value.len() < LONGEST => {
                    self.value.push(byte);
                    State::Value
                }
                (State::Value, _) => return ControlFlow::Break(None),
            };
        }
        self.left -= looked_at;
        match self.left {
            0 => ControlFlow::Break(None),
            _ => ControlFlow::Continue(()),
        }
    }

    fn name_goes_on(&self, met: usize, byte: u8) -> State {
        let name = self.name.as_bytes();
        let wanted = match met {
            0 => b'"',
            met => *name.get(met - 1).unwrap_or(&b'"'),
        };
        match byte {
            _ if byte == wanted && met > name.len() => State::Colon,
            _ if byte == wanted => State::Name(met + 1),
            b'"' => State::Name(1),
            _ => State::Name(0),
        }
    }
}

/// Whether a character is in URLs what it is by itself.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a text that comes in pieces of this size.
    fn found(text: &str, step: usize) -> Option<String> {
        let mut finder = Finder::new("sid".into());
        for piece in text.as_bytes().chunks(step) {
            if let ControlFlow::Break(value) = finder.feed(piece) {
                return value.map(|value| String::from_utf8(value).unwrap());
            }
        }
        None
    }

    #[test]
    fn an_id_is_found_however_the_text_arrives() {
        let long = "x".repeat(LONGEST);
        for (text, expected) in [
            (
                r#"0{"sid":"lv_VI97HAXpY6yYWAAAB","upgrades":["websocket"]}"#,
                Some("lv_VI97HAXpY6yYWAAAB"),
            ),
            (r#"97:0{"sid":"abc","upgrades":[]}2:40"#, Some("abc")),
            (
                "{\"upgrades\": [\"sid\"], \"sid\" :\r\n\t\"a.b~c-d_e\"}",
                Some("a.b~c-d_e"),
            ),
            (
                r#"{"xsid":"no","sidx":"no","":"","si":"no","sid":"yes"}"#,
                Some("yes"),
            ),
            (r#"{"sid":{"sid":"yes"}}"#, Some("yes")),
            (r#"{"sid":1,"sid":"yes"}"#, Some("yes")),
            (r#"""sid":"yes""#, Some("yes")),
            (&format!(r#"{{"sid":"{long}"}}"#), Some(&*long)),
            (&format!(r#"{{"sid":"{long}x"}}"#), None),
            (r#"{"sid":""}"#, None),
            (r#"{"sid":"a\u0062"}"#, None),
            (r#"{"sid":"a b"}"#, None),
            (r#"{"sid":"a%20b"}"#, None),
            (r#"{"sid":"never ends"#, None),
            (r#"{"sid":"cut"#, None),
            (r#"{'sid':'abc'}"#, None),
            (r#"{"SID":"abc"}"#, None),
            (r#"{"x":"\"sid\":\"no\""}"#, None),
            ("sid=abc", None),
            ("", None),
        ] {
            for step in [1, 2, 3, 7, 2000] {
                assert_eq!(found(text, step).as_deref(), expected, "{text} by {step}");
            }
        }
    }

    #[test]
    fn only_the_beginning_is_looked_at() {
        let id = r#""sid":"abc""#;
        for (before, expected) in [
            (REACH - id.len(), Some("abc")),
            (REACH - id.len() + 1, None),
        ] {
            let text = format!("{}{id}", " ".repeat(before));
            for step in [1, 100, 2000] {
                assert_eq!(
                    found(&text, step).as_deref(),
                    expected,
                    "{before} by {step}"
                );
            }
        }
    }
}
