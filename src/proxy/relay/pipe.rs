//! Pipes, through which bulk goes from one socket to the other within the kernel, by splice(2).
//!
//! A direction has one only while something stands in it: most of the time a pipe of its thread
//! serves all.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, ErrorKind, Read as _},
    os::fd::{BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};

/// What one takes at most.
const CAPACITY: usize = 256 * 1024;

/// As many there are at most, of all threads. Twice as many descriptors come out of those that are
/// kept for everything but connections.
const MAX_OPEN: usize = 48;

/// Empty ones that a thread keeps.
const SPARE: usize = 2;

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// This kernel, or what is in its place, does not splice sockets.
static UNSUPPORTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    #[expect(clippy::vec_box, reason = "everywhere else they are boxes")]
    static EMPTY: RefCell<Vec<Box<Pipe>>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, and how much stands in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: File,
    write: OwnedFd,
    held: usize,
    _counted: Counted,
}

impl Pipe {
    /// An empty one. `None` when there are enough, or no descriptors for more.
    pub(super) fn take() -> Option<Box<Self>> {
        if UNSUPPORTED.load(Relaxed) {
            return None;
        }
        let spare = EMPTY.with_borrow_mut(Vec::pop);
        spare.or_else(|| Self::open().map(Box::new))
    }

    fn open() -> Option<Self> {
        let counted = Counted::enter()?;
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // A user who has many of them gets smaller ones, which do as well.
        let _smaller = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32));
        Some(Self {
            read: read.into(),
            write,
            held: 0,
            _counted: counted,
        })
    }

    /// Gives it back, for whoever needs one next; one that is not empty is closed.
    pub(super) fn put(self: Box<Self>) {
        EMPTY.with_borrow_mut(|empty| {
            if self.held == 0 && empty.len() < SPARE {
                empty.push(self);
            }
        });
    }

    /// Takes from a socket what is there, into an empty pipe: so if that would block, it is the socket
    /// that has nothing.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        match splice(from, None, &self.write, None, CAPACITY, FLAGS) {
            Ok(taken) => {
                self.held += taken;
                Ok(taken)
            }
            Err(nix::Error::EINVAL | nix::Error::ENOSYS) => {
                UNSUPPORTED.store(true, Relaxed);
                Err(ErrorKind::Unsupported.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a socket all that stands in it. When that takes less, it is full, and would block; what
    /// it took is counted.
    pub(super) fn empty(&mut self, to: BorrowedFd<'_>, count: &mut u64) -> io::Result<()> {
        let taken = splice(&self.read, None, to, None, self.held, FLAGS)?;
        self.held -= taken;
        *count += taken as u64;
        match (taken, self.held) {
            (_, 0) => Ok(()),
            (0, _) => Err(ErrorKind::WriteZero.into()),
            _ => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// What stands in it.
    pub(super) fn read_out(mut self: Box<Self>) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.held];
        self.read.read_exact(&mut bytes)?;
        self.held = 0;
        self.put();
        Ok(bytes)
    }
}

/// One of those that are open.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn enter() -> Option<Self> {
        // The guard is made first: when there are too many, its drop takes the count back.
        let before = OPEN.fetch_add(1, Relaxed);
        let counted = Self;
        (before < MAX_OPEN).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
    }
}
