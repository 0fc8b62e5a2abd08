//! The guard: a tiny process that outlives homescar by a moment, also when that is killed with
//! -9, and takes its workers down.
//!
//! Workers get a death signal from the kernel, but their children do not. The guard reads from a
//! socket which closes when homescar ends; lines on it say which process groups live (`+PID`),
//! which have ended (`-PID`), and that the end is an orderly one (`end`).

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::{Pid, chdir, setsid},
};

use super::sweep::{self, Cookie};

/// How the name of a runtime directory begins; it removes no other.
pub(super) const DIR_PREFIX: &str = "homescar-";

/// What it says once it is in a session of its own.
pub(super) const READY: &[u8] = b"ready\n";

/// The main function of `homescar __guard ID DIR`, with the socket as its stdin.
pub fn guard_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let [id, dir] = &args[..] else {
        complain("homescar's guard is not for use by hand");
        return ExitCode::FAILURE;
    };
    match guard(&id.to_string_lossy(), &PathBuf::from(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("homescar's guard: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn guard(id: &str, dir: &Path) -> io::Result<()> {
    // Neither a Ctrl-C at the terminal nor a TERM to everything in the control group may end it
    // before homescar: blocked for good, as it ends by itself.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    setsid()?;
    chdir("/")?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut socket = UnixStream::from(socket);
    socket.write_all(READY)?;
    let mut groups = BTreeSet::new();
    for line in BufReader::new(socket).lines() {
        // A reset is an end like any other.
        let Ok(line) = line else { break };
        match line.split_at_checked(1) {
            Some(("+", pid)) => groups.extend(pid.parse::<i32>()),
            Some(("-", pid)) => {
                let _ended = pid.parse().is_ok_and(|pid: i32| groups.remove(&pid));
            }
            // Workers are gone and so is the directory.
            _ if line == "end" => return Ok(()),
            _ => {}
        }
    }
    // Groups that were alive a moment ago. A group's number cannot be reused while it has a
    // member, and that all of them end and another takes the number within this moment would
    // need the kernel to have gone through all pids.
    for group in groups {
        let _gone_already = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    sweep::kill_all(&Cookie::instance(id))?;
    let ours = dir.file_name().and_then(|name| name.to_str());
    if ours.is_some_and(|name| name.starts_with(DIR_PREFIX)) {
        let _gone_already = fs::remove_dir_all(dir);
    }
    Ok(())
}

fn complain(text: &str) {
    let _nobody_to_tell = writeln!(io::stderr(), "{text}");
}
