//! Starts, signals and reaps processes; the only file that spawns any.

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, SysconfVar, sysconf},
};
use rustix::{
    io::retry_on_intr,
    process::{PidfdFlags, WaitOptions, pidfd_open, waitpid},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{exec::Plan, pass};

/// The subcommand that becomes a worker.
pub const EXEC_WORKER: &str = "__exec-worker";
/// The subcommand that is the guard.
pub const GUARD: &str = "__guard";
/// The subcommand that says whether it could take over.
pub const CHECK_UPGRADE: &str = "__check-upgrade";

/// How a worker is started.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub exe: &'a Path,
    pub plan: Plan,
    /// Set in its environment, on top of ours.
    pub env: Vec<(OsString, OsString)>,
    /// Removed from what it would inherit.
    pub without: Vec<OsString>,
    /// What becomes its descriptors 3, 4, …; as many as the plan says.
    pub pass: Vec<OwnedFd>,
}

/// A process that we have started, also in an earlier image of the program. Its number is its own
/// until we have waited for it.
#[derive(Debug)]
pub(super) struct Offspring(Pid);

impl Offspring {
    fn of(child: &Child) -> io::Result<Self> {
        Self::with_id(child.id())
    }

    /// The one with this number.
    pub(super) fn with_id(id: u32) -> io::Result<Self> {
        let raw = i32::try_from(id).map_err(io::Error::other)?;
        Ok(Self(Pid::from_raw(raw)))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.as_raw().unsigned_abs()
    }

    pub(super) fn kill(&self) {
        let _gone_already = kill(self.0, Signal::SIGKILL);
    }

    /// Waits for its end, and reaps it.
    pub(super) fn wait(&self) -> io::Result<ExitStatus> {
        let pid = pid_of(self.0)?;
        let ended = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
        let (_, status) = ended.ok_or(io::ErrorKind::NotFound)?;
        Ok(ExitStatus::from_raw(status.as_raw()))
    }
}

fn pid_of(pid: Pid) -> io::Result<rustix::process::Pid> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw());
    Ok(pid.ok_or(io::ErrorKind::InvalidInput)?)
}

/// A running worker: the leader of its own process group. Dropping it kills the group.
#[derive(Debug)]
pub(super) struct Process {
    offspring: Offspring,
    /// Readable once the process has ended.
    exit: AsyncFd<OwnedFd>,
    reaped: bool,
}

impl Process {
    /// Starts it. The kernel kills a worker when the *thread* that spawned it ends (see
    /// `PR_SET_PDEATHSIG` in `prctl(2)`), so this belongs on the thread that runs the control
    /// plane, which lives as long as homescar: no thread pool.
    pub(super) fn spawn(launch: Launch<'_>) -> io::Result<(Self, ChildStdout, ChildStderr)> {
        let mut command = program(launch.exe);
        for name in &launch.without {
            command.env_remove(name);
        }
        let stdin = match launch.pass.as_slice() {
            [] => Stdio::null(),
            descriptors => Stdio::from(pass::pack(descriptors)?),
        };
        let mut child = command
            .arg(EXEC_WORKER)
            .args(launch.plan.to_args())
            .envs(launch.env)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both were asked to be pipes");
        };
        let process = Self::of(Offspring::of(&child)?)?;
        Ok((process, stdout, stderr))
    }

    /// The one with this number, which an earlier image of the program has started.
    pub(super) fn with_id(id: u32) -> io::Result<Self> {
        Self::of(Offspring::with_id(id)?)
    }

    /// Kills it when it cannot be watched.
    fn of(offspring: Offspring) -> io::Result<Self> {
        match watch(offspring.0) {
            Ok(exit) => Ok(Self {
                offspring,
                exit,
                reaped: false,
            }),
            Err(error) => {
                let _gone_already = killpg(offspring.0, Signal::SIGKILL);
                let _status = offspring.wait();
                Err(error)
            }
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.offspring.id()
    }

    /// Its process group, which has the number of the process.
    pub(super) const fn group(&self) -> i32 {
        self.offspring.0.as_raw()
    }

    /// TERM for the whole group, as at a terminal: a command may be a script that does not pass
    /// it on.
    pub(super) fn term(&self) {
        let _gone_already = killpg(self.offspring.0, Signal::SIGTERM);
    }

    /// KILL for the whole group.
    pub(super) fn kill(&self) {
        let _gone_already = killpg(self.offspring.0, Signal::SIGKILL);
    }

    /// Waits until it has ended, without reaping it: until then its number is its own.
    pub(super) async fn exited(&self) {
        // An error would mean that it cannot be waited for, so that reaping is all that is left.
        let _ready = self.exit.readable().await;
    }

    /// Kills what is left of the group of a process that has ended, and reaps it.
    pub(super) fn reap(mut self) -> io::Result<ExitStatus> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<ExitStatus> {
        // Before the wait, which makes the group's number free for others.
        self.kill();
        self.reaped = true;
        self.offspring.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _status = self.finish();
        }
    }
}

fn watch(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    let exit = pidfd_open(pid_of(pid)?, PidfdFlags::NONBLOCK)?;
    #[expect(
        unsafe_code,
        reason = "the safe way is deprecated; this one needs a promise"
    )]
    // SAFETY: an OwnedFd is open, and stays the same descriptor, until it is dropped, and the
    // AsyncFd owns it.
    let exit = unsafe { AsyncFd::register_with_interest(exit, Interest::READABLE) }?;
    Ok(exit)
}

/// Starts another image of the program, which is to say whether it could take over: with what it
/// would get as its stdin, and our own arguments.
pub(super) fn spawn_check(
    exe: &Path,
    arguments: &[OsString],
    state: OwnedFd,
) -> io::Result<(Process, ChildStdout, ChildStderr)> {
    let mut child = program(exe)
        .arg(CHECK_UPGRADE)
        .args(arguments)
        .stdin(state)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both were asked to be pipes");
    };
    let process = Process::of(Offspring::of(&child)?)?;
    Ok((process, stdout, stderr))
}

/// Starts the guard, with `socket` as its stdin.
pub(super) fn spawn_guard(
    exe: &Path,
    id: &str,
    dir: &Path,
    socket: OwnedFd,
) -> io::Result<Offspring> {
    let child = program(exe)
        .arg(GUARD)
        .arg(id)
        .arg(dir)
        .stdin(socket)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {exe:?}: {error}")))?;
    Offspring::of(&child)
}

#[expect(clippy::disallowed_methods, reason = "this is the file that spawns")]
fn program(exe: &Path) -> Command {
    let mut command = Command::new(exe);
    command.arg0("homescar");
    command
}

/// The resident memory of a process in bytes (`/proc/PID/statm`, in pages).
#[must_use]
pub fn resident(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

/// The processor time that a process has used (`/proc/PID/stat`, fields 14 and 15).
#[must_use]
pub fn processor_time(pid: u32) -> Option<Duration> {
    /// What the kernel tells it in, whatever it counts it in.
    const TICK_MS: u64 = 10;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have blanks and brackets.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields = fields.split(' ').skip(11).take(2);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Some(Duration::from_millis(TICK_MS * (user + system))),
        _ => None,
    }
}

/// How a process ended, for people: `exit code 3`, `signal SEGV (core dumped)`.
pub(super) fn describe(status: ExitStatus) -> String {
    if let Some(code) = status.code() {
        return format!("exit code {code}");
    }
    let number = status.signal().unwrap_or_default();
    let name = match Signal::try_from(number) {
        Ok(signal) => signal.as_str().trim_start_matches("SIG").to_owned(),
        Err(_) => number.to_string(),
    };
    let core = if status.core_dumped() {
        " (core dumped)"
    } else {
        ""
    };
    format!("signal {name}{core}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_described_for_people() {
        let of = |raw| describe(ExitStatus::from_raw(raw));
        assert_eq!(of(0), "exit code 0");
        assert_eq!(of(3 << 8), "exit code 3");
        assert_eq!(of(9), "signal KILL");
        assert_eq!(of(11 | 0x80), "signal SEGV (core dumped)");
        assert_eq!(of(35), "signal 35");
    }
}
