//! Where the body of a message ends, and how a body is written on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::fields::{self, Kind};
use crate::text;

/// How the end of a body is known (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// It has this many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
    /// It ends with the connection; of responses only.
    UntilClose,
}

/// Longest line of a chunk's size: 16 digits.
const MAX_SIZE_DIGITS: u8 = 16;
/// Bytes of trailer fields.
const MAX_TRAILERS: usize = 8 * 1024;
/// Trailer fields.
const MAX_TRAILER_FIELDS: usize = 32;

impl Framing {
    /// Whether not one byte of body follows the head.
    pub(super) const fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }

    /// Writes the field that says it, if there is one.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::None | Self::UntilClose => {}
            Self::Length(length) => write_length(out, length),
            Self::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
    }
}

/// Writes `Content-Length`.
pub(super) fn write_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    text::decimal(out, length);
    out.extend_from_slice(b"\r\n");
}

/// Finds the data in a body as it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Decoder {
    /// Bytes that are still to come.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// All that comes.
    UntilClose,
}

/// What the next bytes of a body are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// `data` of the input is part of the body; the input up to its end is used up.
    Data(Range<usize>),
    /// All input is used up, and more is to come.
    More,
    /// The body is over. This much of the input belonged to it.
    End(usize),
}

/// A body that is not well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadBody;

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Looks at the next bytes.
    pub(super) fn next(&mut self, input: &[u8]) -> Result<Piece, BadBody> {
        match self {
            Self::Length(0) => Ok(Piece::End(0)),
            Self::UntilClose | Self::Length(_) if input.is_empty() => Ok(Piece::More),
            Self::UntilClose => Ok(Piece::Data(0..input.len())),
            Self::Length(left) => {
                let len = input
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                Ok(Piece::Data(0..len))
            }
            Self::Chunked(chunks) => chunks.next(input),
        }
    }

    /// Whether the body is complete when the connection ends here.
    pub(super) const fn may_end(&self) -> bool {
        matches!(self, Self::UntilClose | Self::Length(0))
    }

    /// Trailer fields, as lines, after the end of a chunked body.
    pub(super) fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(chunks) => &chunks.trailers,
            Self::Length(_) | Self::UntilClose => &[],
        }
    }
}

/// Reads chunks (RFC 9112 §7.1): sizes of plain digits, no extensions, CR LF everywhere. What is
/// laxer has been read in two ways by servers in the wild.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chunks {
    state: State,
    /// Bytes of the present chunk that are still to come.
    left: u64,
    digits: u8,
    #[serde(with = "crate::handover::text")]
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    #[default]
    Size,
    SizeFeed,
    Data,
    DataReturn,
    DataFeed,
    Trailers,
}

impl Chunks {
    fn next(&mut self, input: &[u8]) -> Result<Piece, BadBody> {
        let mut at = 0;
        while let Some(byte) = input.get(at) {
            match (self.state, byte) {
                (State::Data, _) => {
                    let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let len = left.min(input.len() - at);
                    self.left -= len as u64;
                    if self.left == 0 {
                        self.state = State::DataReturn;
                    }
                    return Ok(Piece::Data(at..at + len));
                }
                (State::Trailers, _) => return self.trailers(input, at),
                (State::Size, b'\r') if self.digits > 0 => self.state = State::SizeFeed,
                (State::Size, digit) => self.take_digit(*digit)?,
                (State::SizeFeed, b'\n') => {
                    self.digits = 0;
                    self.state = match self.left {
                        0 => State::Trailers,
                        _ => State::Data,
                    };
                }
                (State::DataReturn, b'\r') => self.state = State::DataFeed,
                (State::DataFeed, b'\n') => self.state = State::Size,
                _ => return Err(BadBody),
            }
            at += 1;
        }
        Ok(Piece::More)
    }

    fn take_digit(&mut self, digit: u8) -> Result<(), BadBody> {
        let value = (digit as char).to_digit(16).ok_or(BadBody)?;
        if self.digits >= MAX_SIZE_DIGITS {
            return Err(BadBody);
        }
        self.digits += 1;
        // Sixteen digits fit exactly; the top bit is refused, as some count in signed numbers.
        self.left = (self.left << 4) | u64::from(value);
        if i64::try_from(self.left).is_err() {
            return Err(BadBody);
        }
        Ok(())
    }

    /// Reads lines up to the empty one.
    fn trailers(&mut self, input: &[u8], from: usize) -> Result<Piece, BadBody> {
        for (index, byte) in input.iter().enumerate().skip(from) {
            self.trailers.push(*byte);
            if self.trailers.len() > MAX_TRAILERS {
                return Err(BadBody);
            }
            if *byte != b'\n' {
                continue;
            }
            if !self.trailers.ends_with(b"\r\n") {
                return Err(BadBody);
            }
            if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                self.trailers = judge_trailers(&self.trailers)?;
                return Ok(Piece::End(index + 1));
            }
        }
        Ok(Piece::More)
    }
}

/// The trailer fields that may go on (RFC 9110 §6.5.1): none that frames, routes or identifies.
fn judge_trailers(lines: &[u8]) -> Result<Vec<u8>, BadBody> {
    let mut room = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let parsed = httparse::parse_headers(lines, &mut room);
    let Ok(httparse::Status::Complete((len, trailers))) = parsed else {
        return Err(BadBody);
    };
    if len != lines.len() {
        return Err(BadBody);
    }
    let mut out = Vec::new();
    for field in trailers {
        if !is_private_trailer(field.name) {
            fields::write(&mut out, field.name, field.value);
        }
    }
    Ok(out)
}

/// Whether a trailer field stops here.
pub(super) fn is_private_trailer(name: &str) -> bool {
    let is_identity = ["authorization", "cookie", "set-cookie"]
        .iter()
        .any(|private| name.eq_ignore_ascii_case(private));
    is_identity || Kind::of(name) != Kind::EndToEnd
}

/// Writes a body on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Encoder {
    /// As it is.
    Plain,
    /// In chunks.
    Chunked,
}

impl Encoder {
    pub(super) const fn new(framing: Framing) -> Self {
        match framing {
            Framing::Chunked => Self::Chunked,
            Framing::None | Framing::Length(_) | Framing::UntilClose => Self::Plain,
        }
    }

    /// Writes a piece of the body, which is not empty.
    pub(super) fn data(self, out: &mut Vec<u8>, data: &[u8]) {
        match self {
            Self::Plain => out.extend_from_slice(data),
            Self::Chunked => {
                text::hexadecimal(out, data.len());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(data);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    /// Writes the end of the body.
    pub(super) fn end(self, out: &mut Vec<u8>, trailers: &[u8]) {
        if self == Self::Chunked {
            for part in [b"0\r\n", trailers, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}
