//! A stream of which something was read already, and which tells whether more came.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::relay::Side;

/// A client's stream.
#[derive(Debug)]
pub(super) struct Heard<S> {
    early: Vec<u8>,
    stream: S,
    heard: Arc<AtomicBool>,
}

impl<S: Side> Heard<S> {
    /// With it comes what is set whenever something was read.
    pub(super) fn new(early: Vec<u8>, stream: S) -> (Self, Arc<AtomicBool>) {
        let heard = Arc::default();
        let new = Self {
            early,
            stream,
            heard: Arc::clone(&heard),
        };
        (new, heard)
    }
}

impl<S: Side> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            self.heard.store(true, Relaxed);
            return Poll::Ready(Ok(()));
        }
        let len = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early[..len]);
        self.early.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl<S: Side> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    /// The head of a frame and its payload go together.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
