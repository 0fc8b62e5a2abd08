//! What would be the end of an image that has not come up yet: a crash, or that it never comes up.
//!
//! Within the handler of a signal hardly anything is allowed, but execve(2) is (signal-safety(7)). So
//! all that it needs is made ready before.

use std::{
    ffi::{CString, c_char},
    io, ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicPtr, Ordering::SeqCst},
    },
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
    unistd::{alarm, getpid, gettid},
};

use super::{execute::Revival, way_back::WayBack};
use crate::handover::{Number, let_all_pass};

/// For an image to come up, in seconds: much longer than it takes.
const UP_WITHIN: u32 = 10;

/// The signals, and what each of them says.
const CAUSES: [(Signal, &str); 6] = [
    (Signal::SIGSEGV, "it crashed (SIGSEGV)"),
    (Signal::SIGBUS, "it crashed (SIGBUS)"),
    (Signal::SIGILL, "it crashed (SIGILL)"),
    (Signal::SIGFPE, "it crashed (SIGFPE)"),
    (Signal::SIGABRT, "it aborted"),
    (Signal::SIGALRM, "it was not up within 10 s"),
];

/// What the handler needs; never freed, as a handler may be about to use it.
static READY: AtomicPtr<Ready> = AtomicPtr::new(ptr::null_mut());
/// What the signals did before.
static BEFORE: Mutex<Vec<(Signal, SigAction)>> = Mutex::new(Vec::new());

struct Ready {
    descriptors: Vec<Number>,
    path: CString,
    /// Of each cause.
    arguments: Vec<Strings>,
    environment: Strings,
}

/// Strings as execve(2) takes them.
struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

impl Strings {
    fn new(owned: Vec<CString>) -> Self {
        let pointers = owned.iter().map(|text| text.as_ptr());
        Self {
            pointers: pointers.chain([ptr::null()]).collect(),
            _owned: owned,
        }
    }
}

impl Ready {
    fn new(way: &WayBack, why: Option<&str>) -> io::Result<Self> {
        let mut arguments = Vec::new();
        let (mut path, mut environment) = (CString::default(), Vec::new());
        for (_, cause) in CAUSES {
            let revival = way.revival(why.unwrap_or(cause))?;
            let Revival {
                path: image,
                arguments: of_cause,
                environment: variables,
            } = revival;
            arguments.push(Strings::new(of_cause));
            (path, environment) = (image, variables);
        }
        Ok(Self {
            descriptors: way.descriptors.clone(),
            path,
            arguments,
            environment: Strings::new(environment),
        })
    }
}

/// From now on each of these signals goes back.
pub(super) fn watch(way: &WayBack) -> io::Result<()> {
    prepare(way, None)?;
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    // A handler that is interrupted by its own signal would only do the same; and a signal that is
    // blocked would be so in the image before, too.
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(go_back), flags, SigSet::empty());
    for (signal, _) in CAUSES {
        #[expect(unsafe_code, reason = "a handler of a signal")]
        // SAFETY: the handler calls nothing but what is allowed there.
        let replaced = unsafe { sigaction(signal, &action) }?;
        before.push((signal, replaced));
    }
    let _none = alarm::set(UP_WITHIN);
    Ok(())
}

/// From now on they do what they did before.
pub(super) fn ignore() {
    let _left = alarm::cancel();
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    for (signal, action) in before.drain(..) {
        #[expect(unsafe_code, reason = "a handler of a signal")]
        // SAFETY: it was this before.
        let _replaced = unsafe { sigaction(signal, &action) };
    }
}

/// Goes back from a thread that is not the main one; returns when that cannot be.
pub(super) fn end(way: &WayBack, why: &str) {
    if prepare(way, Some(why)).is_ok() {
        let _handled = raise(Signal::SIGABRT);
    }
}

fn prepare(way: &WayBack, why: Option<&str>) -> io::Result<()> {
    let ready = Box::new(Ready::new(way, why)?);
    READY.store(Box::into_raw(ready), SeqCst);
    Ok(())
}

extern "C" fn go_back(signal: libc::c_int) {
    #[expect(unsafe_code, reason = "what a handler may know is static")]
    // SAFETY: null, or a box that is never freed.
    let ready = unsafe { READY.load(SeqCst).as_ref() };
    let cause = CAUSES.iter().position(|(one, _)| *one as i32 == signal);
    let (Some(ready), Some(cause)) = (ready, cause) else {
        return;
    };
    if gettid() != getpid() {
        // The workers get a signal when the thread ends that has spawned them, which is the main one:
        // it goes.
        #[expect(unsafe_code, reason = "no safe wrapper names a thread by its number")]
        // SAFETY: it has no memory of ours.
        unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                getpid().as_raw(),
                getpid().as_raw(),
                signal,
            );
            loop {
                libc::pause();
            }
        }
    }
    let _left = alarm::cancel();
    let_all_pass(&ready.descriptors);
    let arguments = ready.arguments[cause].pointers.as_ptr();
    let environment = ready.environment.pointers.as_ptr();
    #[expect(unsafe_code, reason = "nothing may be allocated here")]
    // SAFETY: all pointers lead to strings of `ready`, and both lists end with null.
    unsafe {
        libc::execve(ready.path.as_ptr(), arguments, environment);
        libc::_exit(70);
    }
}
