//! A stream whose end is not orderly until it was found to be.

use std::{
    io::{self, IoSlice},
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::relay::{Side, as_inside};

/// A stream that is reset when it is dropped, unless its end was found to be orderly and it was
/// [closed](Self::close): nobody shall take a stream that was cut for one that is complete.
#[derive(Debug)]
pub(in crate::proxy) struct Open<S: Side>(Option<S>);

/// For the one case that cannot be.
const TAKEN: &str = "a stream is taken as its last use";

impl<S: Side> Open<S> {
    pub(in crate::proxy) const fn new(stream: S) -> Self {
        Self(Some(stream))
    }

    /// Gives the stream away: there is nothing to close here any more.
    pub(in crate::proxy) fn take(&mut self) -> S {
        self.0.take().expect(TAKEN)
    }

    /// Ends it in order.
    pub(in crate::proxy) fn close(&mut self) {
        self.0 = None;
    }
}

impl<S: Side> Deref for Open<S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.0.as_ref().expect(TAKEN)
    }
}

impl<S: Side> DerefMut for Open<S> {
    fn deref_mut(&mut self) -> &mut S {
        self.0.as_mut().expect(TAKEN)
    }
}

impl<S: Side> AsyncRead for Open<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_read(cx, buf)
    }
}

impl<S: Side> AsyncWrite for Open<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        (**self).is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_shutdown(cx)
    }
}

impl<S: Side> Side for Open<S> {
    as_inside!(S);
}

impl<S: Side> Drop for Open<S> {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.reset_on_close();
        }
    }
}
