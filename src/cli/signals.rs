//! Signals, as what is asked of homescar.
//!
//! They are blocked in every thread and read from a descriptor (`signalfd(2)`). One that comes while
//! another image of the program takes over has no handler that it could miss: it stays pending, and
//! that image reads it.

use std::io;

use nix::sys::{
    signal::{SigSet, Signal as Number},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::{net::unix::pipe, sync::mpsc};
use tokio_util::task::TaskTracker;

use crate::app::Signal;

const MEANINGS: [(Number, Signal); 6] = [
    (Number::SIGHUP, Signal::Reload),
    (Number::SIGUSR2, Signal::Upgrade),
    (Number::SIGTTIN, Signal::More),
    (Number::SIGTTOU, Signal::Fewer),
    (Number::SIGTERM, Signal::Shutdown),
    (Number::SIGINT, Signal::Shutdown),
];

/// Signals that may wait to be handled.
const PENDING: usize = 8;
/// One of them as it is read (`struct signalfd_siginfo`), which begins with its number.
const RECORD: usize = size_of::<libc::signalfd_siginfo>();

/// Blocks those that mean something, in this thread and in all that it starts from now on.
pub(super) fn block() -> io::Result<()> {
    Ok(wanted().thread_block()?)
}

/// Where they come in. They must be blocked. Until somebody receives them they stay pending, for
/// whichever image of the program does.
pub(super) fn open() -> io::Result<pipe::Receiver> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let source = SignalFd::with_flags(&wanted(), flags)?;
    // A pipe in that it is read when it is readable, which is all that is needed.
    pipe::Receiver::from_owned_fd_unchecked(source.into())
}

/// What is asked from now on.
pub(super) fn receive(source: pipe::Receiver, tasks: &TaskTracker) -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(PENDING);
    tasks.spawn(async move {
        while let Ok(meanings) = next(&source).await {
            for meaning in meanings {
                if sender.send(meaning).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

async fn next(source: &pipe::Receiver) -> io::Result<Vec<Signal>> {
    let mut records = [0; 4 * RECORD];
    loop {
        source.readable().await?;
        match source.try_read(&mut records) {
            Ok(len) => return Ok(records[..len].chunks(RECORD).filter_map(meaning).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn meaning(record: &[u8]) -> Option<Signal> {
    let number = u32::from_ne_bytes(*record.first_chunk()?);
    let is_it = |(signal, _): &&(Number, Signal)| u32::try_from(*signal as i32) == Ok(number);
    MEANINGS.iter().find(is_it).map(|(_, meaning)| *meaning)
}

fn wanted() -> SigSet {
    MEANINGS.iter().map(|(signal, _)| *signal).collect()
}
