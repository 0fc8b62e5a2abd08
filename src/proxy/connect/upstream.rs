//! An open connection to a backend, of whichever kind.

use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::{proxy::relay::Side, tls::ClientStream};

/// An open connection to a backend.
#[derive(Debug)]
pub(in crate::proxy) enum Upstream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(ClientStream<TcpStream>),
    /// TLS over a Unix socket.
    TlsUnix(ClientStream<UnixStream>),
}

/// Calls the same method of whichever stream it is.
macro_rules! each {
    ($upstream:expr, $stream:ident => $call:expr) => {
        match $upstream {
            Upstream::Tcp($stream) => $call,
            Upstream::Unix($stream) => $call,
            Upstream::Tls($stream) => $call,
            Upstream::TlsUnix($stream) => $call,
        }
    };
}

impl Upstream {
    pub(super) const fn is_encrypted(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(_) | Self::TlsUnix(_) => true,
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Side for Upstream {
    // Some do, and to flush the others costs nothing.
    const BUFFERS: bool = true;

    fn reset_on_close(&self) {
        each!(self, stream => stream.reset_on_close());
    }

    fn was_reset(&self) -> bool {
        each!(self, stream => stream.was_reset())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        each!(self, stream => stream.descriptor())
    }

    fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_send(bytes))
    }

    fn may_read(&self) -> bool {
        each!(self, stream => stream.may_read())
    }

    fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::TlsUnix(_))
    }
}
