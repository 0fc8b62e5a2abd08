//! The system calls of a proxy, counted by strace.

use std::{fs, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Outcome, report::Sample, row::Spec};

/// For strace to attach, and to write its table.
const PATIENCE: Duration = Duration::from_secs(10);

/// strace at work on a proxy.
#[derive(Debug)]
pub(crate) struct Counting {
    strace: Child,
    table: NamedTempFile,
}

impl Counting {
    /// Counts from when this returns.
    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark has no supervisor to spawn with"
    )]
    pub(crate) async fn start(pids: &[Pid]) -> Outcome<Self> {
        let table = NamedTempFile::new()?;
        let mut strace = Command::new("strace")
            .args(["-c", "-f", "-o"])
            .arg(table.path())
            .args(pids.iter().map(|pid| format!("-p{pid}")))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start strace: {error}"))?;
        let stderr = strace.stderr.take().ok_or("strace has no standard error")?;
        // It speaks when it has attached to all threads of a process, and is silent until its end.
        let mut lines = BufReader::new(stderr).lines();
        for _ in pids {
            let line = timeout(PATIENCE, lines.next_line()).await;
            let line = line.map_err(|_| format!("strace has not attached in {PATIENCE:?}"))??;
            let line = line.unwrap_or_default();
            if !line.contains("attached") {
                return Err(format!("strace does not attach: {line}").into());
            }
        }
        Ok(Self { strace, table })
    }

    /// Stops counting.
    pub(crate) async fn end(mut self) -> Outcome<Counted> {
        let pid = self.strace.id().ok_or("strace has ended by itself")?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
        let ended = timeout(PATIENCE, self.strace.wait()).await;
        ended.map_err(|_| format!("strace has not ended in {PATIENCE:?}"))??;
        Counted::parse(&fs::read_to_string(self.table.path())?)
    }
}

/// How often each system call was made, the most frequent first.
#[derive(Debug)]
pub(crate) struct Counted(Vec<(String, u64)>);

impl Counted {
    /// Reads lines of `% time, seconds, usecs/call, calls, errors (when any), syscall`.
    fn parse(table: &str) -> Outcome<Self> {
        let mut counted = Vec::new();
        for line in table.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            if let [_, _, _, calls, .., name] = fields[..]
                && name != "total"
                && let Ok(calls) = calls.parse()
            {
                counted.push((name.to_owned(), calls));
            }
        }
        if counted.is_empty() {
            return Err(format!("strace counted nothing: {table}").into());
        }
        counted.sort_unstable_by_key(|&(_, calls)| std::cmp::Reverse(calls));
        Ok(Self(counted))
    }

    /// The calls per unit, and which they are.
    pub(crate) fn sample(&self, spec: Spec, units: u64) -> Sample {
        let each = |calls: u64| calls as f64 / units as f64;
        let all = self.0.iter().map(|(_, calls)| calls).sum();
        let which = self.0.iter().filter(|&&(_, calls)| each(calls) >= 0.005);
        let which = which.map(|(name, calls)| format!("{name} {:.2}", each(*calls)));
        let note = which.collect::<Vec<_>>().join(", ");
        let unit = format!("calls a {}", spec.work.unit());
        Sample::new(spec.name, &unit, each(all)).with_note(note)
    }
}
