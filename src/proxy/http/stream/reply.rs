//! What the client of a stream is told.

use std::{
    future::poll_fn,
    mem,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream, server::SendResponse};
use http::{HeaderMap, Response};

/// The answer to a request. One that is dropped before it is whole resets the client's stream, so
/// that nobody takes it for complete.
#[derive(Debug)]
pub(super) struct Reply(State);

#[derive(Debug)]
enum State {
    /// Nothing was said.
    Unsaid(SendResponse<Bytes>),
    /// The head was.
    Begun(SendStream<Bytes>),
    /// All was.
    Over,
}

/// The client has given its request up, or its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl From<h2::Error> for Gone {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl Reply {
    pub(super) const fn new(respond: SendResponse<Bytes>) -> Self {
        Self(State::Unsaid(respond))
    }

    pub(super) const fn is_unsaid(&self) -> bool {
        matches!(self.0, State::Unsaid(_))
    }

    pub(super) const fn is_over(&self) -> bool {
        matches!(self.0, State::Over)
    }

    /// Ready when the client does not want it any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            State::Unsaid(respond) => respond.poll_reset(cx).map(drop),
            State::Begun(stream) => stream.poll_reset(cx).map(drop),
            State::Over => Poll::Pending,
        }
    }

    /// Waits until the client does not want it any more.
    pub(super) async fn gone(&mut self) {
        poll_fn(|cx| self.poll_gone(cx)).await;
    }

    /// Says the head, which may be all.
    pub(super) fn head(&mut self, head: Response<()>, is_all: bool) -> Result<(), Gone> {
        let State::Unsaid(respond) = &mut self.0 else {
            return Err(Gone);
        };
        let stream = respond.send_response(head, is_all)?;
        self.0 = match is_all {
            true => State::Over,
            false => State::Begun(stream),
        };
        Ok(())
    }

    /// Waits until the client takes more of the body.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let State::Begun(stream) = &mut self.0 else {
            return Poll::Ready(Err(Gone));
        };
        poll_room(stream, cx)
    }

    /// Says a piece of the body. What the client does not take yet, waits.
    pub(super) fn data(&mut self, data: Bytes, is_last: bool) -> Result<(), Gone> {
        let State::Begun(stream) = &mut self.0 else {
            return Err(Gone);
        };
        stream.send_data(data, is_last)?;
        if is_last {
            self.0 = State::Over;
        }
        Ok(())
    }

    /// Says what comes after the body.
    pub(super) fn trailers(&mut self, trailers: HeaderMap) -> Result<(), Gone> {
        let State::Begun(stream) = &mut self.0 else {
            return Err(Gone);
        };
        stream.send_trailers(trailers)?;
        self.0 = State::Over;
        Ok(())
    }

    /// Breaks off.
    pub(super) fn reset(&mut self) {
        match mem::replace(&mut self.0, State::Over) {
            State::Unsaid(mut respond) => respond.send_reset(Reason::INTERNAL_ERROR),
            State::Begun(mut stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            State::Over => {}
        }
    }

    /// The stream, for something else than the rest of a body.
    pub(super) fn take_stream(&mut self) -> Option<SendStream<Bytes>> {
        match mem::replace(&mut self.0, State::Over) {
            State::Begun(stream) => Some(stream),
            before => {
                self.0 = before;
                None
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Waits until the client takes something.
pub(super) fn poll_room(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Gone>> {
    // No more than that: what is reserved here is kept from the connection's other streams.
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
        }
    }
    Poll::Ready(Ok(()))
}
