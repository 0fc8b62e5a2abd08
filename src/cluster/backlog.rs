//! The accept queue of a listening socket that homescar holds for a worker.
//!
//! A connection to such a socket succeeds whether or not the worker lives, as the kernel answers
//! for it. Whether the worker *accepts* shows only in how many connections wait.

use std::{fmt, io, mem, net::TcpListener, os::fd::AsRawFd, sync::Arc};

/// A listening socket that outlives the workers which accept from it.
#[derive(Clone)]
pub struct Backlog(Arc<TcpListener>);

impl Backlog {
    /// The accept queue of this socket.
    #[must_use]
    pub const fn new(listener: Arc<TcpListener>) -> Self {
        Self(listener)
    }

    /// The socket.
    #[must_use]
    pub const fn socket(&self) -> &Arc<TcpListener> {
        &self.0
    }

    /// Connections that the kernel has established and nobody has accepted yet
    /// (`tcpi_unacked`, which means that for a listening socket).
    ///
    /// # Errors
    /// What `getsockopt(2)` gives.
    pub fn waiting(&self) -> io::Result<u32> {
        self.info().map(|info| info.tcpi_unacked)
    }

    /// Whether one more would find no room (`tcpi_sacked` is the greatest length of the queue).
    ///
    /// # Errors
    /// What `getsockopt(2)` gives.
    pub fn is_full(&self) -> io::Result<bool> {
        let info = self.info()?;
        Ok(info.tcpi_unacked >= info.tcpi_sacked)
    }

    #[expect(unsafe_code, reason = "no safe wrapper offers TCP_INFO")]
    fn info(&self) -> io::Result<libc::tcp_info> {
        let mut info = mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the descriptor is open as long as `self.0` lives; `info` is valid for `len`
        // bytes and any bytes, also none at all, make a `tcp_info`, which is plain integers.
        let (failed, info) = unsafe {
            let failed = libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            );
            (failed, info.assume_init())
        };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(info)
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backlog({})", self.0.as_raw_fd())
    }
}

/// The same socket, not one that looks alike.
impl PartialEq for Backlog {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Backlog {}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    #[test]
    fn counts_what_nobody_has_accepted() {
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let backlog = Backlog::new(Arc::clone(&listener));
        assert_eq!(backlog.waiting().unwrap(), 0);
        let addr = listener.local_addr().unwrap();
        let _clients = [
            TcpStream::connect(addr).unwrap(),
            TcpStream::connect(addr).unwrap(),
        ];
        assert_eq!(backlog.waiting().unwrap(), 2);
        listener.accept().unwrap();
        assert_eq!(backlog.waiting().unwrap(), 1);
    }
}
