//! Descriptors on their way to a worker: sent over a Unix socket (`SCM_RIGHTS`, `unix(7)`) before
//! its process is spawned, and put in their places by `homescar __exec-worker`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// The most that are passed to one worker.
pub(super) const MOST: usize = 64;

/// A socket in which all of these wait to be received, in one message.
pub(super) fn pack(descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
    if descriptors.len() > MOST {
        return Err(io::Error::other(format!(
            "{} descriptors for one worker; at most {MOST} can be passed",
            descriptors.len()
        )));
    }
    let (ours, theirs) = UnixStream::pair()?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    send(&ours, b"\n", &descriptors, SendFlags::empty())?;
    Ok(theirs.into())
}

/// Sends bytes with descriptors at their beginning; gives how many bytes went out.
pub(super) fn send(
    socket: &impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        flags | SendFlags::NOSIGNAL,
    )?;
    Ok(sent)
}

/// Receives what [`pack`] has put into a socket. None of them has a number below `above`.
pub(super) fn unpack(socket: &impl AsFd, above: i32) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut received = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            received.extend(descriptors);
        }
    }
    let moved = received
        .into_iter()
        .map(|descriptor| Ok(fcntl_dupfd_cloexec(descriptor, above)?));
    moved.collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsRawFd,
    };

    use super::*;

    #[test]
    fn what_is_packed_comes_out_in_order_and_above() {
        let (mut one, first) = UnixStream::pair().unwrap();
        let (mut two, second) = UnixStream::pair().unwrap();
        let packed = pack(&[first.into(), second.into()]).unwrap();
        let unpacked = unpack(&packed, 100).unwrap();
        assert_eq!(unpacked.len(), 2);
        assert!(unpacked.iter().all(|fd| fd.as_raw_fd() >= 100));
        for (fd, text) in unpacked.into_iter().zip([b"1", b"2"]) {
            File::from(fd).write_all(text).unwrap();
        }
        let mut byte = [0];
        one.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"1");
        two.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"2");
    }

    #[test]
    fn too_many_are_refused() {
        let many: Vec<OwnedFd> = (0..=MOST)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect();
        let error = pack(&many).unwrap_err();
        assert!(error.to_string().contains("65 descriptors"), "{error}");
        pack(&many[..MOST]).unwrap();
    }
}
