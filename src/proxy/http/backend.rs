//! The backend's side of a request: its connection, and what it has said so far.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead as _, ReadBuf};

use super::{
    super::connect::Upstream,
    body::{BadBody, Decoder, Encoder, Piece},
    buffers::{self, equip, release},
    head::{NotHttp, ResponseHead, Room},
    out::{Out, SavedOut},
    request::Terms,
    response::Response,
    scan::Scan,
};

/// A response's head is larger than this only if something is wrong.
const MAX_HEAD: usize = 128 * 1024;
/// Responses that announce another one.
const MAX_INTERIM: u8 = 16;

/// A connection to a backend that carries a request.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) stream: Upstream,
    /// The request.
    pub(super) out: Out,
    /// Read, and not used yet.
    input: Vec<u8>,
    scan: Scan,
    state: State,
    interims: u8,
    keep_alive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Head,
    Body(Decoder),
    Ended,
}

/// A [`Backend`] without its connection, for the next image of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedBackend {
    out: SavedOut,
    #[serde(with = "crate::handover::text")]
    input: Vec<u8>,
    state: State,
    interims: u8,
    keep_alive: bool,
}

/// What a response is made of, in its order.
pub(super) trait Receiver {
    /// A head; of an interim response or of the final one.
    fn head(&mut self, response: &Response<'_>);
    /// A piece of the body.
    fn data(&mut self, cx: &mut Context<'_>, data: &[u8]);
    /// The end.
    fn end(&mut self, trailers: &[u8]);
}

/// Why there is no response, or no more of it.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection ended or was reset before the response was complete.
    Gone,
    /// It is no HTTP, or can be read in two ways.
    NotHttp,
}

impl From<NotHttp> for Failure {
    fn from(NotHttp: NotHttp) -> Self {
        Self::NotHttp
    }
}

impl From<BadBody> for Failure {
    fn from(BadBody: BadBody) -> Self {
        Self::NotHttp
    }
}

impl Backend {
    /// `out` has the request's head.
    pub(super) fn new(stream: Upstream, out: Out) -> Self {
        Self {
            stream,
            out,
            input: Vec::new(),
            scan: Scan::default(),
            state: State::Head,
            interims: 0,
            keep_alive: false,
        }
    }

    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> SavedBackend {
        SavedBackend {
            out: self.out.saved(),
            input: self.input.clone(),
            state: self.state.clone(),
            interims: self.interims,
            keep_alive: self.keep_alive,
        }
    }

    /// The same again; its input is looked at from the front.
    pub(super) fn resumed(saved: SavedBackend, stream: Upstream) -> Self {
        Self {
            stream,
            out: Out::resumed(saved.out),
            input: saved.input,
            scan: Scan::default(),
            state: saved.state,
            interims: saved.interims,
            keep_alive: saved.keep_alive,
        }
    }

    /// Sends what waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.out.poll_flush(cx, &mut self.stream)
    }

    /// Sends a piece of the request's body.
    pub(super) fn data(
        &mut self,
        cx: &mut Context<'_>,
        encoder: Encoder,
        data: &[u8],
    ) -> io::Result<()> {
        self.out.data(cx, &mut self.stream, encoder, data)
    }

    /// Reads once, and hands on what came. Ready with whether the response is complete.
    pub(super) fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        terms: &Terms,
        receiver: &mut impl Receiver,
    ) -> Poll<Result<bool, Failure>> {
        if let State::Ended = self.state {
            return Poll::Ready(Ok(true));
        }
        buffers::scratch(|scratch| {
            let mut read = ReadBuf::new(scratch);
            let outcome = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read));
            let bytes = read.filled();
            if outcome.is_err() || bytes.is_empty() {
                return Poll::Ready(self.end_of_stream(receiver));
            }
            Poll::Ready(self.take(cx, bytes, terms, receiver))
        })
    }

    /// Whether the final response has begun.
    pub(super) const fn has_begun(&self) -> bool {
        !matches!(self.state, State::Head)
    }

    /// Whether not a byte of a response has come.
    pub(super) const fn is_silent(&self) -> bool {
        !self.has_begun() && self.input.is_empty() && self.interims == 0
    }

    /// What came behind the response: after a 101, the first bytes of the new protocol.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// The connection, whatever it carries from now on.
    pub(super) fn into_stream(mut self) -> Upstream {
        self.out.release();
        self.stream
    }

    /// The connection, when it can carry another request.
    pub(super) fn into_reusable(mut self) -> Option<Upstream> {
        let is_over = matches!(self.state, State::Ended) && self.input.is_empty();
        self.out.release();
        release(&mut self.input);
        (is_over && self.keep_alive && !self.out.is_waiting()).then_some(self.stream)
    }

    fn end_of_stream(&mut self, receiver: &mut impl Receiver) -> Result<bool, Failure> {
        match &self.state {
            State::Body(decoder) if decoder.may_end() => {
                receiver.end(&[]);
                self.state = State::Ended;
                Ok(true)
            }
            State::Head if !self.input.is_empty() => Err(Failure::NotHttp),
            _ => Err(Failure::Gone),
        }
    }

    fn take(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        terms: &Terms,
        receiver: &mut impl Receiver,
    ) -> Result<bool, Failure> {
        if !matches!(self.state, State::Head) {
            return self.body(cx, bytes, receiver);
        }
        if self.input.is_empty() {
            let used = self.heads(bytes, terms, receiver)?;
            let rest = &bytes[used..];
            if self.has_begun() {
                return self.body(cx, rest, receiver);
            }
            equip(&mut self.input);
            self.input.extend_from_slice(rest);
            return Ok(false);
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let used = self.heads(&input, terms, receiver)?;
        if !self.has_begun() {
            input.drain(..used);
            self.input = input;
            return Ok(false);
        }
        let outcome = self.body(cx, &input[used..], receiver);
        input.clear();
        release(&mut input);
        outcome
    }

    /// Hands on the heads at the front of `bytes`, up to the final one; how long they are.
    fn heads(
        &mut self,
        bytes: &[u8],
        terms: &Terms,
        receiver: &mut impl Receiver,
    ) -> Result<usize, Failure> {
        let mut used = 0;
        while let State::Head = self.state {
            let rest = &bytes[used..];
            let Some(len) = self.scan.end(rest).map_err(|_| Failure::NotHttp)? else {
                if rest.len() > MAX_HEAD {
                    return Err(Failure::NotHttp);
                }
                break;
            };
            let mut room: Room<'_> = [const { std::mem::MaybeUninit::uninit() }; _];
            let head = ResponseHead::parse(&rest[..len], &mut room)?;
            let response = Response::judge(head, terms)?;
            used += len;
            self.scan = Scan::default();
            if response.is_interim() {
                self.interims += 1;
                if self.interims > MAX_INTERIM {
                    return Err(Failure::NotHttp);
                }
            } else {
                self.keep_alive = response.keep_alive;
                self.state = match response.head.status {
                    101 => State::Ended,
                    _ => State::Body(Decoder::new(response.framing)),
                };
            }
            receiver.head(&response);
        }
        Ok(used)
    }

    fn body(
        &mut self,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
        receiver: &mut impl Receiver,
    ) -> Result<bool, Failure> {
        while let State::Body(decoder) = &mut self.state {
            match decoder.next(bytes)? {
                Piece::Data(range) => {
                    let end = range.end;
                    receiver.data(cx, &bytes[range]);
                    bytes = &bytes[end..];
                }
                Piece::More => return Ok(false),
                Piece::End(used) => {
                    bytes = &bytes[used..];
                    receiver.end(decoder.trailers());
                    self.state = State::Ended;
                }
            }
        }
        if !bytes.is_empty() {
            equip(&mut self.input);
            self.input.extend_from_slice(bytes);
        }
        Ok(matches!(self.state, State::Ended))
    }
}
