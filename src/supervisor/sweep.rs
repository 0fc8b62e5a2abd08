//! Finds and kills what a worker has left behind: processes that moved to a session of their own
//! but still carry its environment.
//!
//! A process that was started with an emptied environment, or has written over it (some programs
//! do, to set their title), is not found by this.

use std::{ffi::OsStr, fs, io, os::unix::ffi::OsStrExt};

use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that names the running homescar.
pub(super) const INSTANCE: &str = "HOMESCAR_INSTANCE";
/// The variable that names the slot.
pub(super) const SLOT: &str = "HOMESCAR_SLOT";
/// The variable that names the slot's generation.
pub(super) const GENERATION: &str = "HOMESCAR_GENERATION";

/// A killed process may just have forked, so one pass is not enough; but for an adversary who
/// forks faster than we kill, this is.
const PASSES: usize = 50;

/// What a process must carry in its environment to be ours to kill.
#[derive(Clone, Debug)]
pub(super) struct Cookie(Vec<Vec<u8>>);

impl Cookie {
    /// All workers of a running homescar.
    #[must_use]
    pub(super) fn instance(id: &str) -> Self {
        Self(vec![format!("{INSTANCE}={id}").into_bytes()])
    }

    /// One generation of one slot.
    #[must_use]
    pub(super) fn generation(id: &str, slot: &str, generation: u32) -> Self {
        let mut cookie = Self::instance(id);
        cookie.0.push(format!("{SLOT}={slot}").into_bytes());
        let generation = format!("{GENERATION}={generation}");
        cookie.0.push(generation.into_bytes());
        cookie
    }

    fn is_carried_by(&self, environ: &[u8]) -> bool {
        let mut variables = self.0.iter();
        variables.all(|wanted| environ.split(|byte| *byte == 0).any(|have| have == wanted))
    }
}

/// Kills every process that carries the cookie, until none is left; gives their number. Reads
/// all of `/proc`, so it is not for the thread that serves others.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn kill_all(cookie: &Cookie) -> io::Result<usize> {
    let mut killed = 0;
    for _ in 0..PASSES {
        match kill_once(cookie)? {
            0 => break,
            found => killed += found,
        }
    }
    Ok(killed)
}

fn kill_once(cookie: &Cookie) -> io::Result<usize> {
    let me = Pid::this();
    let mut killed = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = pid_of(&entry.file_name()).filter(|pid| *pid != me) else {
            continue;
        };
        killed += usize::from(kill_one(pid, cookie));
    }
    Ok(killed)
}

/// The descriptor is opened before the environment is read: should the pid be reused in between,
/// the signal goes to the process that is gone.
fn kill_one(pid: Pid, cookie: &Cookie) -> bool {
    let path = format!("/proc/{pid}/environ");
    // Most processes are not ours: look first, then once more with the process held.
    let carried = || fs::read(&path).is_ok_and(|environ| cookie.is_carried_by(&environ));
    if !carried() {
        return false;
    }
    let Some(raw) = rustix::process::Pid::from_raw(pid.as_raw()) else {
        return false;
    };
    let Ok(process) = pidfd_open(raw, PidfdFlags::empty()) else {
        return false;
    };
    carried() && pidfd_send_signal(&process, Signal::KILL).is_ok()
}

fn pid_of(name: &OsStr) -> Option<Pid> {
    let digits = std::str::from_utf8(name.as_bytes()).ok()?;
    digits.parse().ok().map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_variables_count() {
        let cookie = Cookie::generation("abc", "app/1", 1);
        let environ = b"A=1\0HOMESCAR_INSTANCE=abc\0HOMESCAR_SLOT=app/1\0HOMESCAR_GENERATION=1\0";
        assert!(cookie.is_carried_by(environ));
        assert!(Cookie::instance("abc").is_carried_by(environ));
        assert!(!Cookie::instance("ab").is_carried_by(environ));
        let other = b"HOMESCAR_INSTANCE=abc\0HOMESCAR_SLOT=app/1\0HOMESCAR_GENERATION=12\0";
        assert!(!cookie.is_carried_by(other));
        assert!(!cookie.is_carried_by(b""));
    }
}
