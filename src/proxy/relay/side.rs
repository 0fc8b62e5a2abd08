//! What a relay carries between.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd as _, BorrowedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

/// One side of a relayed connection.
pub(in crate::proxy) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Whether what is written may stay here until it is flushed.
    const BUFFERS: bool = false;

    /// Makes the coming close a reset instead of an orderly end, where the protocol has one.
    fn reset_on_close(&self);

    /// Whether the peer has reset the connection, without reading from it.
    fn was_reset(&self) -> bool;

    /// Whether there is no connection any more, in either direction, as far as that can be told.
    fn is_gone(&self) -> bool {
        false
    }

    /// The descriptor, where that is all there is to it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Does something with the descriptor, where that is all there is to it, as soon as it does not
    /// block.
    fn poll_io<T>(
        &self,
        _cx: &mut Context<'_>,
        _interest: Interest,
        _act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        Poll::Ready(Err(ErrorKind::Unsupported.into()))
    }

    /// Writes what can be written now, where the kernel alone can say how much that is: whoever waits
    /// for an event does not know yet of a socket that has just been opened.
    fn try_send(&self, _bytes: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    /// Whether there may be something to read. If not, nothing has come since a read had to wait, and who
    /// waited then is still the one that is woken.
    fn may_read(&self) -> bool {
        true
    }

    /// Whether it is a Unix socket.
    fn is_unix(&self) -> bool {
        false
    }
}

/// What TCP and Unix sockets have in common.
macro_rules! socket {
    () => {
        fn was_reset(&self) -> bool {
            !matches!(self.take_error(), Ok(None))
        }

        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            Some(self.as_fd())
        }

        fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
            SockRef::from(self).send_with_flags(bytes, libc::MSG_NOSIGNAL)
        }

        fn may_read(&self) -> bool {
            self.try_io(Interest::READABLE, || Ok(())).is_ok()
        }

        fn poll_io<T>(
            &self,
            cx: &mut Context<'_>,
            interest: Interest,
            mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
        ) -> Poll<io::Result<T>> {
            loop {
                ready!(match interest.is_readable() {
                    true => self.poll_read_ready(cx),
                    false => self.poll_write_ready(cx),
                })?;
                match self.try_io(interest, || act(self.as_fd())) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done),
                }
            }
        }
    };
}

impl Side for TcpStream {
    socket!();

    fn reset_on_close(&self) {
        // It fails only when there is no connection to reset any more.
        let _gone = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }

    fn is_gone(&self) -> bool {
        self.peer_addr().is_err()
    }
}

impl Side for UnixStream {
    socket!();

    fn reset_on_close(&self) {}

    fn is_unix(&self) -> bool {
        true
    }
}

/// What a side is that only has another one inside.
macro_rules! as_inside {
    ($inside:ty) => {
        const BUFFERS: bool = <$inside>::BUFFERS;

        fn reset_on_close(&self) {
            <$inside>::reset_on_close(self);
        }

        fn was_reset(&self) -> bool {
            <$inside>::was_reset(self)
        }

        fn is_gone(&self) -> bool {
            <$inside>::is_gone(self)
        }

        fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            <$inside>::descriptor(self)
        }

        fn poll_io<T>(
            &self,
            cx: &mut std::task::Context<'_>,
            interest: tokio::io::Interest,
            act: impl FnMut(std::os::fd::BorrowedFd<'_>) -> std::io::Result<T>,
        ) -> std::task::Poll<std::io::Result<T>> {
            <$inside>::poll_io(self, cx, interest, act)
        }

        fn try_send(&self, bytes: &[u8]) -> std::io::Result<usize> {
            <$inside>::try_send(self, bytes)
        }

        fn may_read(&self) -> bool {
            <$inside>::may_read(self)
        }

        fn is_unix(&self) -> bool {
            <$inside>::is_unix(self)
        }
    };
}

pub(in crate::proxy) use as_inside;

impl<S: Side> Side for &mut S {
    as_inside!(S);
}
