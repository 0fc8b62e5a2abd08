//! Where the frames of one direction of a WebSocket begin and end (RFC 6455 §5.2).
//!
//! Payloads are counted and not looked at, but for the two bytes of a status code. What is no frame
//! is no business of a tunnel: from there on it is carried as bytes, and the endpoints judge it.

mod saved;

use serde::{Deserialize, Serialize};

/// The most bytes of a header: two, eight of length, four of the key.
const MAX_HEADER: usize = 14;
/// The opcode of a Close frame.
const CLOSE: u8 = 0x8;

/// Which way the frames go: a client's are masked, a backend's are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Direction {
    FromClient,
    FromBackend,
}

/// Follows the frames of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "saved::SavedTracker", into = "saved::SavedTracker")]
pub(in super::super) struct Tracker {
    direction: Direction,
    state: State,
    /// Frames that are complete.
    pub(in super::super) frames: u64,
    /// The Close frame that has passed whole: with its status code, if it has one.
    pub(in super::super) close: Option<Option<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Header {
        bytes: [u8; MAX_HEADER],
        have: u8,
    },
    Payload {
        left: u64,
    },
    /// The payload of a Close frame.
    Close {
        left: u8,
        key: [u8; 4],
        code: [u8; 2],
        have: u8,
    },
    /// This is no frame.
    Lost,
}

impl State {
    const START: Self = Self::Header {
        bytes: [0; MAX_HEADER],
        have: 0,
    };
}

impl Tracker {
    pub(in super::super) const fn new(direction: Direction) -> Self {
        Self {
            direction,
            state: State::START,
            frames: 0,
            close: None,
        }
    }

    pub(super) const fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether a frame may begin here.
    pub(in super::super) const fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Goes on over all these bytes.
    pub(in super::super) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = &rest[self.feed_frame(rest)..];
        }
    }

    /// Goes on up to the end of the present frame; how many bytes that were, at least one.
    pub(in super::super) fn feed_frame(&mut self, bytes: &[u8]) -> usize {
        if self.is_between_frames()
            && let Some(len) = self.plain(bytes)
        {
            self.frames += 1;
            return len;
        }
        let mut used = 0;
        while used < bytes.len() {
            used += self.step(&bytes[used..]);
            if self.is_between_frames() {
                break;
            }
        }
        used
    }

    /// How long the frame is that all of this begins with, where it is whole and one of data, of less
    /// than 64 KiB: nearly all are.
    #[inline]
    fn plain(&self, bytes: &[u8]) -> Option<usize> {
        let &[first, second, ..] = bytes else {
            return None;
        };
        let is_masked = second & 0x80 != 0;
        if first & 0xf > 2 || is_masked != (self.direction == Direction::FromClient) {
            return None;
        }
        let key = if is_masked { 4 } else { 0 };
        let len = key
            + match second & 0x7f {
                127 => return None,
                126 => 4 + usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])),
                short => 2 + usize::from(short),
            };
        (len <= bytes.len()).then_some(len)
    }

    /// Takes some bytes, at least one.
    fn step(&mut self, input: &[u8]) -> usize {
        match &mut self.state {
            State::Lost => input.len(),
            State::Header { have: 0, .. } if input.len() >= MAX_HEADER => {
                let mut header = [0; MAX_HEADER];
                header.copy_from_slice(&input[..MAX_HEADER]);
                let have = header_len(header);
                self.judge(header, have);
                have
            }
            State::Header { bytes, have } => {
                bytes[usize::from(*have)] = input[0];
                *have += 1;
                let (header, have) = (*bytes, usize::from(*have));
                if have == header_len(header) || have == 2 {
                    self.judge(header, have);
                }
                1
            }
            State::Payload { left } => {
                let taken = take(left, input.len());
                if *left == 0 {
                    self.end_frame();
                }
                taken
            }
            State::Close {
                left,
                key,
                code,
                have,
            } => {
                let at = usize::from(*have);
                if at == code.len() {
                    let taken = input.len().min(usize::from(*left));
                    *left -= taken as u8;
                    if *left == 0 {
                        let code = u16::from_be_bytes(*code);
                        self.end_close(Some(code));
                    }
                    return taken;
                }
                code[at] = input[0] ^ key[at];
                *have += 1;
                *left -= 1;
                if *left == 0 {
                    let code = (at + 1 == code.len()).then(|| u16::from_be_bytes(*code));
                    self.end_close(code);
                }
                1
            }
        }
    }

    /// Decides on a header of which `have` bytes are there: two, or all.
    fn judge(&mut self, header: [u8; MAX_HEADER], have: usize) {
        let opcode = header[0] & 0xf;
        let is_final = header[0] & 0x80 != 0;
        let is_masked = header[1] & 0x80 != 0;
        let short = header[1] & 0x7f;
        let is_control = opcode >= CLOSE;
        let is_known = matches!(opcode, 0..=2 | 8..=10);
        let is_wrong_control = is_control && (!is_final || short > 125);
        if !is_known || is_wrong_control || is_masked != (self.direction == Direction::FromClient) {
            self.state = State::Lost;
            return;
        }
        if have < header_len(header) {
            return;
        }
        let length = match short {
            126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
            127 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&header[2..10]);
                u64::from_be_bytes(bytes)
            }
            short => u64::from(short),
        };
        let mut key = [0; 4];
        if is_masked {
            key.copy_from_slice(&header[have - 4..have]);
        }
        match (opcode, length) {
            (_, length) if i64::try_from(length).is_err() => self.state = State::Lost,
            (CLOSE, 0) => self.end_close(None),
            // One whose length is not in its first byte is none.
            (CLOSE, _) => {
                self.state = State::Close {
                    left: short,
                    key,
                    code: [0; 2],
                    have: 0,
                };
            }
            (_, 0) => self.end_frame(),
            (_, left) => self.state = State::Payload { left },
        }
    }

    fn end_frame(&mut self) {
        self.frames += 1;
        self.state = State::START;
    }

    fn end_close(&mut self, code: Option<u16>) {
        self.close.get_or_insert(code);
        self.end_frame();
    }
}

/// How long a header is, by its first two bytes.
const fn header_len(header: [u8; MAX_HEADER]) -> usize {
    let length = match header[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let key = if header[1] & 0x80 != 0 { 4 } else { 0 };
    2 + length + key
}

fn take(left: &mut u64, available: usize) -> usize {
    let taken = available.min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= taken as u64;
    taken
}

/// A Close frame. `reason` has at most 123 bytes.
pub(in super::super) fn close(out: &mut Vec<u8>, direction: Direction, code: u16, reason: &str) {
    let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
    let length = payload.len().min(125);
    out.push(0x80 | CLOSE);
    match direction {
        Direction::FromBackend => {
            out.push(length as u8);
            out.extend_from_slice(&payload[..length]);
        }
        Direction::FromClient => {
            let key = fastrand::u32(..).to_be_bytes();
            out.push(0x80 | length as u8);
            out.extend_from_slice(&key);
            let masked = payload[..length].iter().zip(key.iter().cycle());
            out.extend(masked.map(|(byte, key)| byte ^ key));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame,
        coding::{CloseCode, Data, OpCode},
    };

    use super::*;

    fn bytes_of(frame: Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    fn data(len: usize, is_final: bool, opcode: Data, key: Option<[u8; 4]>) -> Vec<u8> {
        let mut frame = Frame::message(vec![7; len], OpCode::Data(opcode), is_final);
        frame.header_mut().mask = key;
        bytes_of(frame)
    }

    #[test]
    fn a_close_shows_its_code() {
        for direction in [Direction::FromClient, Direction::FromBackend] {
            let mut bytes = Vec::new();
            close(&mut bytes, direction, 1012, "so long");
            let mut tracker = Tracker::new(direction);
            tracker.feed(&bytes);
            assert_eq!(tracker.close, Some(Some(1012)));
            assert!(tracker.is_between_frames());
        }
        let mut tracker = Tracker::new(Direction::FromBackend);
        tracker.feed(&[0x88, 0]);
        assert_eq!(tracker.close, Some(None));
        let frame = Frame::close(Some(tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: CloseCode::Away,
            reason: "".into(),
        }));
        let mut tracker = Tracker::new(Direction::FromBackend);
        tracker.feed(&bytes_of(frame));
        assert_eq!(tracker.close, Some(Some(1001)));
    }

    #[test]
    fn what_is_no_frame_loses_the_way_and_nothing_else() {
        for header in [
            &[0x83, 0][..],
            &[0x08, 0],
            &[0x89, 126, 0, 200],
            &[0x81, 0x80, 0, 0, 0, 0],
            &[0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            let mut tracker = Tracker::new(Direction::FromBackend);
            tracker.feed(header);
            tracker.feed(&[0x81, 0, 0x88, 0]);
            assert!(!tracker.is_between_frames(), "{header:?}");
            assert_eq!(tracker.close, None);
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            lens in prop::collection::vec(prop_oneof![0usize..300, 65_530..65_540usize], 1..8),
            masked: bool,
            step in 1usize..5000,
        ) {
            let (direction, key) = match masked {
                true => (Direction::FromClient, Some([1, 2, 3, 4])),
                false => (Direction::FromBackend, None),
            };
            let count = lens.len();
            let frames = lens.iter().enumerate().map(|(index, len)| {
                let opcode = if index == 0 { Data::Binary } else { Data::Continue };
                data(*len, index + 1 == count, opcode, key)
            });
            let frames: Vec<_> = frames.collect();
            let all = frames.concat();
            let mut whole = Tracker::new(direction);
            whole.feed(&all);
            prop_assert!(whole.is_between_frames());
            prop_assert_eq!(whole.frames, count as u64);
            let mut cut = Tracker::new(direction);
            for piece in all.chunks(step) {
                cut.feed(piece);
            }
            prop_assert_eq!(&cut, &whole);
            // Nor does another image of the program between two of them.
            let mut carried = Tracker::new(direction);
            for piece in all.chunks(step.max(all.len() / 50)) {
                carried.feed(piece);
                let text = serde_json::to_string(&carried).unwrap();
                carried = serde_json::from_str(&text).unwrap();
            }
            prop_assert_eq!(&carried, &whole);
            // One frame at a time: the boundaries are where they were made.
            let mut one = Tracker::new(direction);
            let mut rest = &all[..];
            for frame in &frames {
                prop_assert_eq!(one.feed_frame(rest), frame.len());
                rest = &rest[frame.len()..];
            }
            prop_assert_eq!(&one, &whole);
        }

        #[test]
        fn nor_do_they_whatever_the_bytes_are(
            pieces in prop::collection::vec(
                (prop_oneof![0x80u8..=0x8a, any::<u8>()], any::<u8>(), prop::collection::vec(any::<u8>(), 0..150)),
                1..6,
            ),
            from_client: bool,
        ) {
            let direction = if from_client { Direction::FromClient } else { Direction::FromBackend };
            let all: Vec<u8> = pieces
                .iter()
                .flat_map(|(first, second, rest)| [&[*first, *second], &rest[..]].concat())
                .collect();
            let mut bytewise = Tracker::new(direction);
            for byte in &all {
                bytewise.feed(&[*byte]);
            }
            let mut whole = Tracker::new(direction);
            whole.feed(&all);
            prop_assert_eq!(whole, bytewise);
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, from_client: bool) {
            let direction = if from_client { Direction::FromClient } else { Direction::FromBackend };
            let mut tracker = Tracker::new(direction);
            tracker.feed(&bytes);
        }
    }
}
