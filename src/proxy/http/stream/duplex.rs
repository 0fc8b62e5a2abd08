//! An HTTP/2 stream as a stream of bytes, for a WebSocket (RFC 8441).

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::reply::{Gone, poll_room};
use crate::proxy::relay::Side;

/// What is handed to h2 in one piece.
const PIECE: usize = 16 * 1024;

/// Both directions of a stream.
#[derive(Debug)]
pub(super) struct Duplex<'a> {
    from: &'a mut RecvStream,
    to: SendStream<Bytes>,
    /// Came, and not read yet.
    rest: Bytes,
}

impl<'a> Duplex<'a> {
    pub(super) const fn new(from: &'a mut RecvStream, to: SendStream<Bytes>) -> Self {
        Self {
            from,
            to,
            rest: Bytes::new(),
        }
    }
}

impl From<Gone> for io::Error {
    fn from(Gone: Gone) -> Self {
        ErrorKind::BrokenPipe.into()
    }
}

impl AsyncRead for Duplex<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.from.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => {
                    return Poll::Ready(match error.reason() {
                        Some(Reason::NO_ERROR | Reason::CANCEL) => Ok(()),
                        _ => Err(io::Error::other(error)),
                    });
                }
            }
        }
        let len = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        let _gone = self.from.flow_control().release_capacity(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(poll_room(&mut self.to, cx))?;
        let piece = &buf[..buf.len().min(PIECE)];
        let sent = self.to.send_data(Bytes::copy_from_slice(piece), false);
        Poll::Ready(sent.map(|()| piece.len()).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.to.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(io::Error::other))
    }
}

impl Side for Duplex<'_> {
    /// A stream that is dropped before its end is reset by h2.
    fn reset_on_close(&self) {}

    fn was_reset(&self) -> bool {
        false
    }
}
