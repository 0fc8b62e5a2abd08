//! Another program is tried before it takes our place.

use std::{
    ffi::OsString,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::io::ioctl_fionbio;
use tokio::time::timeout;

use super::{output::printable, process};

/// What a program answers that can take over, before its version.
pub const CAN_TAKE_OVER: &str = "can take over: homescar ";
/// Of what it says this much is read.
const ANSWER: u64 = 16 * 1024;

/// Runs the program that is to take over: it gets the state that it would go on with, and our
/// arguments. Gives its version, or why it could not, as a fragment behind its name.
///
/// # Errors
/// What it said, or that it said nothing that we understand.
pub async fn try_image(
    exe: &Path,
    arguments: &[OsString],
    state: OwnedFd,
    within: Duration,
) -> Result<String, String> {
    let spawned = process::spawn_check(exe, arguments, state);
    let (process, stdout, stderr) =
        spawned.map_err(|error| format!("cannot be executed: {error}"))?;
    // When it is dropped early, it is killed.
    if timeout(within, process.exited()).await.is_err() {
        return Err(format!(
            "did not say within {} whether it can take over",
            humantime::format_duration(within)
        ));
    }
    let ended = process.reap().map_err(|error| error.to_string())?;
    let (said, why) = (all_of(stdout), all_of(stderr));
    let version = said.trim_end().strip_prefix(CAN_TAKE_OVER);
    match version.filter(|_| ended.success()) {
        Some(version) => Ok(version.to_owned()),
        None if why.trim().is_empty() => Err(format!(
            "is no homescar that can take over: it ended with {}",
            process::describe(ended)
        )),
        None => Err(format!("cannot take over: {}", why.trim())),
    }
}

/// What has come through a pipe. Somebody may have kept its other end, who is not waited for.
fn all_of(pipe: impl Read + AsFd) -> String {
    let mut bytes = Vec::new();
    let _blocks = ioctl_fionbio(&pipe, true);
    let _cut = pipe.take(ANSWER).read_to_end(&mut bytes);
    let lines = bytes.split(|byte| *byte == b'\n');
    let lines: Vec<_> = lines.map(printable).collect();
    lines.join("\n")
}
