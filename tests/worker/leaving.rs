//! The orderly end: nobody is accepted any more, who is there is answered once more and goes, and
//! the process ends with the last of them.

use std::{
    os::fd::AsFd,
    process,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Listener;

static LEAVING: AtomicBool = AtomicBool::new(false);
static OPEN: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn begin() {
    LEAVING.store(true, SeqCst);
}

pub(crate) fn is_on() -> bool {
    LEAVING.load(SeqCst)
}

/// Waits until somebody may be there; false when nobody is to be let in any more.
pub(crate) fn wait_for_client(listener: &Listener) -> bool {
    let socket = match listener {
        Listener::Tcp(listener) => listener.as_fd(),
        Listener::Unix(listener) => listener.as_fd(),
    };
    let often = PollTimeout::from(20_u8);
    while !is_on() {
        let mut sockets = [PollFd::new(socket, PollFlags::POLLIN)];
        if poll(&mut sockets, often).unwrap_or(0) > 0 {
            return true;
        }
    }
    false
}

/// A connection that is open.
pub(crate) struct Open;

impl Open {
    pub(crate) fn count() -> Self {
        OPEN.fetch_add(1, SeqCst);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, SeqCst);
    }
}

/// Ends the process with the last connection.
pub(crate) fn end() -> ! {
    while OPEN.load(SeqCst) > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    process::exit(0)
}
