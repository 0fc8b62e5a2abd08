//! How much of what went into a socket was not yet taken out at its other end.

use std::{io, os::fd::AsRawFd};

/// The bytes, as the kernel accounts for them; 0 when all was read (`SIOCOUTQ`, which has the number
/// of `TIOCOUTQ`).
#[expect(unsafe_code, reason = "no safe wrapper offers SIOCOUTQ")]
pub(super) fn unread(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut unread: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and `unread` is valid for the
    // one integer that this request writes.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    match failed {
        0 => Ok(usize::try_from(unread).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn what_was_read_is_not_unread() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(unread(&ours).unwrap(), 0);
        ours.write_all(b"hello").unwrap();
        assert!(unread(&ours).unwrap() > 0);
        theirs.read_exact(&mut [0; 2]).unwrap();
        assert!(unread(&ours).unwrap() > 0);
        theirs.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(unread(&ours).unwrap(), 0);
    }
}
