//! A tracker between two bytes, for the next image of the program. What no tracker says is not read.

use serde::{Deserialize, Serialize};

use super::{Direction, State, Tracker};

/// A [`Tracker`] for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedTracker {
    direction: Direction,
    frames: u64,
    /// The status code, in a list that is empty where the frame had none.
    close: Option<Vec<u16>>,
    /// The present frame.
    frame: SavedFrame,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum SavedFrame {
    Header {
        bytes: Vec<u8>,
    },
    Payload {
        left: u64,
    },
    Close {
        left: u64,
        key: [u8; 4],
        code: Vec<u8>,
    },
    Lost,
}

impl From<Tracker> for SavedTracker {
    fn from(tracker: Tracker) -> Self {
        let frame = match tracker.state {
            State::Header { bytes, have } => SavedFrame::Header {
                bytes: bytes[..usize::from(have)].to_vec(),
            },
            State::Payload { left } => SavedFrame::Payload { left },
            State::Close {
                left,
                key,
                code,
                have,
            } => SavedFrame::Close {
                left: left.into(),
                key,
                code: code[..usize::from(have)].to_vec(),
            },
            State::Lost => SavedFrame::Lost,
        };
        Self {
            direction: tracker.direction,
            frames: tracker.frames,
            close: tracker.close.map(|code| code.into_iter().collect()),
            frame,
        }
    }
}

impl TryFrom<SavedTracker> for Tracker {
    type Error = &'static str;

    fn try_from(saved: SavedTracker) -> Result<Self, Self::Error> {
        let mut tracker = Self::new(saved.direction);
        match saved.frame {
            SavedFrame::Header { bytes } => {
                tracker.feed(&bytes);
                let have = bytes.len();
                if !matches!(tracker.state, State::Header { have: now, .. } if usize::from(now) == have)
                {
                    return Err("more than the beginning of a frame's header");
                }
            }
            SavedFrame::Payload { left } if left > 0 && i64::try_from(left).is_ok() => {
                tracker.state = State::Payload { left };
            }
            SavedFrame::Close { left, key, code } if (1..=125).contains(&left) => {
                let mut bytes = [0; 2];
                let begun = bytes
                    .get_mut(..code.len())
                    .ok_or("a code of more than two bytes")?;
                begun.copy_from_slice(&code);
                tracker.state = State::Close {
                    left: left as u8,
                    key,
                    code: bytes,
                    have: code.len() as u8,
                };
            }
            SavedFrame::Lost => tracker.state = State::Lost,
            SavedFrame::Payload { .. } | SavedFrame::Close { .. } => {
                return Err("a frame of an impossible length");
            }
        }
        tracker.frames = saved.frames;
        tracker.close = match saved.close.as_deref() {
            None => None,
            Some([]) => Some(None),
            Some([code]) => Some(Some(*code)),
            Some(_) => return Err("a Close frame of two codes"),
        };
        Ok(tracker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_tracker_says_is_not_read() {
        let read = |frame: &str| {
            let text = format!(
                r#"{{"direction": "FromBackend", "frames": 1, "close": null, "frame": {frame}}}"#
            );
            serde_json::from_str::<Tracker>(&text)
        };
        for good in [
            r#"{"Header": {"bytes": []}}"#,
            r#"{"Header": {"bytes": [130, 127, 0]}}"#,
            r#"{"Payload": {"left": 1}}"#,
            r#"{"Close": {"left": 123, "key": [0, 0, 0, 0], "code": [3, 232]}}"#,
            r#""Lost""#,
        ] {
            read(good).unwrap();
        }
        for bad in [
            r#"{"Header": {"bytes": [130, 0]}}"#,
            r#"{"Header": {"bytes": [131, 1]}}"#,
            r#"{"Header": {"bytes": [130, 1, 7]}}"#,
            r#"{"Payload": {"left": 0}}"#,
            r#"{"Payload": {"left": 9223372036854775808}}"#,
            r#"{"Close": {"left": 0, "key": [0, 0, 0, 0], "code": []}}"#,
            r#"{"Close": {"left": 1, "key": [0, 0, 0, 0], "code": [3, 232, 1]}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
