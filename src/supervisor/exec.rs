//! `homescar __exec-worker`: the moment between homescar and a worker's command.
//!
//! What must happen inside the new process, before it becomes the worker, happens here in plain
//! safe code rather than between `fork(2)` and `exec(2)`, where hardly anything is allowed.

use std::{
    ffi::{CString, OsString},
    fs::File,
    io::{self, Write},
    os::{fd::IntoRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::{self, ExitCode},
};

use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd::{Pid, User, chdir, dup2_raw, dup2_stdin, getppid, initgroups, setgid, setuid},
};

use super::pass;

/// Where a worker finds the first descriptor that is passed to it (`SD_LISTEN_FDS_START`).
pub(super) const FIRST_FD: i32 = 3;
/// As in shells.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// What is to be done before the command runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The process that must be the parent; when it is not, homescar has died meanwhile.
    pub parent: i32,
    /// The soft limit of open files.
    pub nofile: Option<u64>,
    /// The user to become.
    pub user: Option<String>,
    /// The working directory.
    pub cwd: Option<PathBuf>,
    /// Stdin is a socket with so many descriptors in it, the worker's 3, 4, …
    pub pass: usize,
    /// `LISTEN_PID` is wanted.
    pub listen: bool,
    /// `WATCHDOG_PID` is wanted.
    pub watchdog: bool,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl Plan {
    /// As arguments of `homescar __exec-worker`.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["--parent".into(), self.parent.to_string().into()];
        if let Some(nofile) = self.nofile {
            args.extend(["--nofile".into(), nofile.to_string().into()]);
        }
        if let Some(user) = &self.user {
            args.extend(["--user".into(), user.into()]);
        }
        if let Some(cwd) = &self.cwd {
            args.extend(["--cwd".into(), cwd.into()]);
        }
        if self.pass > 0 {
            args.extend(["--pass".into(), self.pass.to_string().into()]);
        }
        args.extend(self.listen.then(|| "--listen".into()));
        args.extend(self.watchdog.then(|| "--watchdog".into()));
        args.push("--".into());
        args.extend(self.command.iter().cloned());
        args
    }

    fn from_args(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut plan = Self::default();
        loop {
            let name = args.next()?;
            match name.to_str()? {
                "--parent" => plan.parent = args.next()?.to_str()?.parse().ok()?,
                "--nofile" => plan.nofile = Some(args.next()?.to_str()?.parse().ok()?),
                "--user" => plan.user = Some(args.next()?.into_string().ok()?),
                "--cwd" => plan.cwd = Some(args.next()?.into()),
                "--pass" => plan.pass = args.next()?.to_str()?.parse().ok()?,
                "--listen" => plan.listen = true,
                "--watchdog" => plan.watchdog = true,
                "--" => break,
                _ => return None,
            }
        }
        plan.command = args.collect();
        (!plan.command.is_empty()).then_some(plan)
    }
}

/// The main function of `homescar __exec-worker OPTIONS -- COMMAND…`; returns only when the
/// command could not be run, with 127 when there is no such program, else with 126.
pub fn exec_worker_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(plan) = Plan::from_args(args) else {
        return complain(NOT_RUN, "homescar __exec-worker is not for use by hand");
    };
    if let Err(fault) = prepare(&plan) {
        return complain(NOT_RUN, &fault);
    }
    let program = &plan.command[0];
    let mut command = command(program);
    command.args(&plan.command[1..]);
    let me = process::id().to_string();
    if plan.listen {
        command.env("LISTEN_PID", &me);
    }
    if plan.watchdog {
        command.env("WATCHDOG_PID", &me);
    }
    // This also gives SIGPIPE, which Rust ignores, its default back.
    let error = command.exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_RUN,
    };
    complain(code, &format!("cannot run {program:?}: {error}"))
}

fn prepare(plan: &Plan) -> Result<(), String> {
    // Homescar blocks those that it reads by itself.
    let unblocked = SigSet::empty().thread_set_mask();
    unblocked.map_err(|e| fault("cannot unblock signals", &e))?;
    if let Some(soft) = plan.nofile {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| fault("getrlimit", &e))?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)
            .map_err(|e| fault("cannot set the limit of open files", &e))?;
    }
    if plan.pass > 0 {
        take_descriptors(plan.pass).map_err(|e| fault("cannot pass the descriptors", &e))?;
    }
    if let Some(user) = &plan.user {
        become_user(user)?;
    }
    // After the change of user, which would undo it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| fault("prctl", &e))?;
    if getppid() != Pid::from_raw(plan.parent) {
        return Err("homescar has ended while its worker was being started".into());
    }
    if let Some(cwd) = &plan.cwd {
        chdir(cwd).map_err(|e| fault(&format!("cannot enter the directory {cwd:?}"), &e))?;
    }
    Ok(())
}

/// Moves the descriptors that wait in stdin to 3, 4, …, and `/dev/null` to stdin.
fn take_descriptors(count: usize) -> io::Result<()> {
    let end = i32::try_from(count).map_err(io::Error::other)? + FIRST_FD;
    let received = pass::unpack(&io::stdin(), end)?;
    if received.len() != count {
        let text = format!("{} of {count} have arrived", received.len());
        return Err(io::Error::other(text));
    }
    for (number, descriptor) in (FIRST_FD..end).zip(received) {
        #[expect(
            unsafe_code,
            reason = "no safe call puts a descriptor at a chosen number"
        )]
        // SAFETY: nothing in this process owns a descriptor of this number: all that it has opened
        // are at `end` or above, so at most one that was inherited by accident is closed by this.
        let passed = unsafe { dup2_raw(descriptor, number) }?;
        // The command inherits it.
        let _inherited = passed.into_raw_fd();
    }
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(())
}

fn become_user(name: &str) -> Result<(), String> {
    let cannot = |e: &nix::Error| fault(&format!("cannot become user {name:?}"), e);
    let user = User::from_name(name)
        .map_err(|e| cannot(&e))?
        .ok_or_else(|| format!("no user {name:?} on this machine"))?;
    let c_name = CString::new(name).map_err(|e| fault("user name", &e))?;
    initgroups(&c_name, user.gid).map_err(|e| cannot(&e))?;
    setgid(user.gid).map_err(|e| cannot(&e))?;
    setuid(user.uid).map_err(|e| cannot(&e))
}

fn fault(what: &str, error: &dyn std::error::Error) -> String {
    format!("{what}: {error}")
}

#[expect(
    clippy::disallowed_methods,
    reason = "it replaces this process and spawns none"
)]
fn command(program: &OsString) -> process::Command {
    process::Command::new(program)
}

fn complain(code: u8, text: &str) -> ExitCode {
    let _nobody_to_tell = writeln!(io::stderr(), "homescar: {text}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_the_command_line() {
        let plan = Plan {
            parent: 42,
            nofile: Some(1024),
            user: Some("www-data".into()),
            cwd: Some("/srv/my app".into()),
            pass: 2,
            listen: true,
            watchdog: true,
            command: vec!["node".into(), "--".into(), "--parent".into()],
        };
        assert_eq!(Plan::from_args(plan.to_args().into_iter()), Some(plan));
        let least = Plan {
            parent: 1,
            command: vec!["true".into()],
            ..Plan::default()
        };
        assert_eq!(Plan::from_args(least.to_args().into_iter()), Some(least));
    }

    #[test]
    fn nonsense_is_refused() {
        let from = |args: &[&str]| Plan::from_args(args.iter().map(OsString::from));
        assert_eq!(from(&[]), None);
        assert_eq!(from(&["--parent", "1"]), None);
        assert_eq!(from(&["--parent", "1", "--"]), None);
        assert_eq!(from(&["--parent", "x", "--", "true"]), None);
        assert_eq!(from(&["--shell", "--", "true"]), None);
    }
}
