//! What workers print, line by line into the log: read at full speed so that no worker ever
//! waits for us, and bounded so that none can flood the log or forge a line of it.

mod saved;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io,
    process::{ChildStderr, ChildStdout},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::unix::pipe,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(super) use self::saved::SavedOutput;
use super::halt::{Member, Piece};

/// Longer lines are cut.
const LINE: usize = 8 * 1024;
/// What a worker may log in the long run, and at once.
const LINES_A_SECOND: f64 = 200.0;
const BYTES_A_SECOND: f64 = 256.0 * 1024.0;
const BURST_SECONDS: f64 = 5.0;
/// The lines of stderr that a crash-loop message shows.
const TAIL: usize = 20;
/// Read from each pipe after the end of the process; more than a pipe holds.
const REST: usize = 1024 * 1024;
const REPORT_EVERY: Duration = Duration::from_secs(1);
const CHUNK: usize = 64 * 1024;

/// Whose output it is.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// `app/0`.
    pub slot: Arc<str>,
    /// 1, 2, 3 …
    pub generation: u32,
    /// The process.
    pub pid: u32,
}

/// The output of one generation.
#[derive(Debug)]
pub(super) struct Output {
    source: Source,
    stdout: Stream,
    stderr: Stream,
    budget: Budget,
    dropped: Dropped,
    tail: Tail,
}

impl Output {
    /// Takes over both pipes.
    ///
    /// # Errors
    /// When they cannot be registered with the runtime.
    pub(super) fn new(
        source: Source,
        stdout: ChildStdout,
        stderr: ChildStderr,
    ) -> io::Result<Self> {
        Ok(Self {
            source,
            stdout: Stream::new("stdout", pipe::Receiver::from_owned_fd(stdout.into())?),
            stderr: Stream::new("stderr", pipe::Receiver::from_owned_fd(stderr.into())?),
            budget: Budget::new(Instant::now()),
            dropped: Dropped::default(),
            tail: Tail::default(),
        })
    }

    /// Logs until both pipes are closed, or, once `ended`, until they are empty: somebody who
    /// keeps a pipe of a dead worker open keeps nobody waiting. Gives the last lines of stderr.
    pub(super) async fn run(mut self, ended: CancellationToken, mut member: Member) -> Vec<String> {
        member.may_begin().await;
        let mut buffer = vec![0; CHUNK];
        let mut report = tokio::time::interval(REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stdout.open || self.stderr.open {
            let from_stderr = tokio::select! {
                () = ended.cancelled() => break,
                () = member.called() => {
                    self.report_dropped();
                    let saved = |outgoing: &mut _| self.saved(outgoing).map(Box::new);
                    member.describe(|outgoing| saved(outgoing).map(Piece::Output));
                    member.goes_on().await;
                    continue;
                }
                _ = report.tick() => {
                    self.report_dropped();
                    continue;
                }
                () = self.stdout.readable() => false,
                () = self.stderr.readable() => true,
            };
            self.read(from_stderr, &mut buffer);
            // A pipe that is always full must not have the thread to itself.
            tokio::task::yield_now().await;
        }
        for from_stderr in [false, true] {
            let mut rest = 0;
            while rest < REST {
                match self.read(from_stderr, &mut buffer) {
                    0 => break,
                    read => rest += read,
                }
            }
            self.finish(from_stderr);
        }
        self.report_dropped();
        self.tail.into_lines()
    }

    /// Takes what is in one pipe, if anything.
    fn read(&mut self, from_stderr: bool, buffer: &mut [u8]) -> usize {
        let stream = self.stream(from_stderr);
        if !stream.open {
            return 0;
        }
        let Some(pipe) = &stream.pipe else { return 0 };
        let read = match pipe.try_read(buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(_) => 0,
        };
        if read == 0 {
            stream.open = false;
        }
        let mut lines = std::mem::take(&mut stream.lines);
        let name = stream.name;
        let cut = lines.push(&buffer[..read], |line| self.line(name, line));
        self.dropped.bytes += cut;
        self.stream(from_stderr).lines = lines;
        read
    }

    /// Logs the last line of a stream, which nobody has ended.
    fn finish(&mut self, from_stderr: bool) {
        let stream = self.stream(from_stderr);
        let name = stream.name;
        let last = stream.lines.take_partial();
        if !last.is_empty() {
            self.line(name, &last);
        }
    }

    fn line(&mut self, stream: &'static str, line: &[u8]) {
        if stream == "stderr" {
            self.tail.push(line);
        }
        if !self.budget.take(line.len(), Instant::now()) {
            self.dropped.lines += 1;
            self.dropped.bytes += line.len() as u64;
            return;
        }
        let Source {
            slot,
            generation,
            pid,
        } = &self.source;
        // Most programs write everything to stderr, so the stream says nothing about severity.
        info!(target: "worker", %slot, generation, pid, stream, "{}", printable(line));
    }

    fn report_dropped(&mut self) {
        let Dropped { lines, bytes } = std::mem::take(&mut self.dropped);
        if lines == 0 && bytes == 0 {
            return;
        }
        let Source {
            slot,
            generation,
            pid,
        } = &self.source;
        warn!(
            %slot, generation, pid,
            "{slot} (pid {pid}): {} lines ({}) of output dropped",
            grouped(lines), size(bytes),
        );
    }

    const fn stream(&mut self, from_stderr: bool) -> &mut Stream {
        if from_stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        }
    }
}

#[derive(Debug)]
struct Stream {
    name: &'static str,
    /// There while it is open, or was when this image of the program began.
    pipe: Option<pipe::Receiver>,
    open: bool,
    lines: Lines,
}

impl Stream {
    fn new(name: &'static str, pipe: pipe::Receiver) -> Self {
        Self {
            name,
            pipe: Some(pipe),
            open: true,
            lines: Lines::default(),
        }
    }

    /// Waits until something is in it; for ever when it is closed.
    async fn readable(&self) {
        match &self.pipe {
            Some(pipe) if self.open => {
                let _ready = pipe.readable().await;
            }
            _ => std::future::pending().await,
        }
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    /// The rest of a line that was too long is passed over.
    skipping: bool,
}

impl Lines {
    /// Hands out each line that `bytes` completes, without its end. Gives the number of bytes
    /// that were cut off long lines.
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) -> u64 {
        let mut cut = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if self.skipping {
                cut += text.len() as u64;
                self.skipping = !complete;
            } else if complete && self.partial.is_empty() && text.len() <= LINE {
                line(text.strip_suffix(b"\r").unwrap_or(text));
            } else {
                let fits = text.len().min(LINE - self.partial.len());
                self.partial.extend_from_slice(&text[..fits]);
                cut += (text.len() - fits) as u64;
                if complete || fits < text.len() {
                    let whole = std::mem::take(&mut self.partial);
                    line(whole.strip_suffix(b"\r").unwrap_or(&whole));
                    self.skipping = !complete;
                }
            }
        }
        cut
    }

    fn take_partial(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

/// How much may be logged: a bucket of lines and one of bytes.
#[derive(Debug)]
struct Budget {
    lines: f64,
    bytes: f64,
    at: Instant,
}

impl Budget {
    const fn new(now: Instant) -> Self {
        Self {
            lines: LINES_A_SECOND * BURST_SECONDS,
            bytes: BYTES_A_SECOND * BURST_SECONDS,
            at: now,
        }
    }

    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let passed = (now - self.at).as_secs_f64();
        self.at = now;
        self.lines = (self.lines + passed * LINES_A_SECOND).min(LINES_A_SECOND * BURST_SECONDS);
        self.bytes = (self.bytes + passed * BYTES_A_SECOND).min(BYTES_A_SECOND * BURST_SECONDS);
        let bytes = bytes as f64;
        let granted = self.lines >= 1.0 && self.bytes >= bytes;
        if granted {
            self.lines -= 1.0;
            self.bytes -= bytes;
        }
        granted
    }
}

#[derive(Debug, Default)]
struct Dropped {
    lines: u64,
    bytes: u64,
}

/// The last lines of a stream.
#[derive(Debug, Default)]
struct Tail(VecDeque<Vec<u8>>);

impl Tail {
    fn push(&mut self, line: &[u8]) {
        let mut kept = if self.0.len() < TAIL {
            Vec::new()
        } else {
            self.0.pop_front().unwrap_or_default()
        };
        kept.clear();
        kept.extend_from_slice(line);
        self.0.push_back(kept);
    }

    fn into_lines(self) -> Vec<String> {
        self.0.iter().map(|line| printable(line)).collect()
    }
}

/// A line as it may stand in a log or on a terminal: one line, no escape sequences, no change of
/// writing direction.
pub(super) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        let turns = matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (char.is_control() && char != '\t') || turns {
            // Writing to a String cannot fail.
            let _infallible = write!(safe, "{}", char.escape_unicode());
        } else {
            safe.push(char);
        }
    }
    safe
}

/// `91233` as `91,233`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> (Vec<String>, u64) {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut cut = 0;
        for piece in pieces {
            cut += lines.push(piece, |line| out.push(printable(line)));
        }
        (out, cut)
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let (lines, cut) = lines_of(&[b"one\ntw", b"o\r\n", b"\nthree"]);
        assert_eq!(lines, ["one", "two", ""]);
        assert_eq!(cut, 0);
    }

    #[test]
    fn long_lines_are_cut_and_the_next_one_is_whole() {
        let long = vec![b'x'; LINE];
        let (lines, cut) = lines_of(&[&long, &long, b"yz\nnext\n", &long, b"\n"]);
        assert_eq!(lines[0].len(), LINE);
        assert_eq!(lines[1], "next");
        assert_eq!(lines[2].len(), LINE);
        assert_eq!(cut, LINE as u64 + 2);
    }

    #[test]
    fn a_worker_cannot_forge_lines_or_reach_the_terminal() {
        let forged = b"ok\r2026 ERROR \x1b[2J\x07 \xff\tand \xe2\x80\xae\xc2\x85";
        assert_eq!(
            printable(forged),
            "ok\\u{d}2026 ERROR \\u{1b}[2J\\u{7} \u{fffd}\tand \\u{202e}\\u{85}"
        );
    }

    #[test]
    fn the_budget_grants_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let granted = (0..5_000).filter(|_| budget.take(10, start)).count();
        assert_eq!(granted, 1_000);
        let later = start + Duration::from_millis(500);
        let granted = (0..5_000).filter(|_| budget.take(10, later)).count();
        assert_eq!(granted, 100);
        let later = start + Duration::from_secs(3600);
        let granted = (0..5_000).filter(|_| budget.take(LINE, later)).count();
        assert_eq!(granted, 160, "by bytes, and no more than a burst");
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for number in 0..50 {
            tail.push(format!("line {number}").as_bytes());
        }
        let lines = tail.into_lines();
        assert_eq!(lines.len(), TAIL);
        assert_eq!(lines[0], "line 30");
        assert_eq!(lines[19], "line 49");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(91_233), "91,233");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(size(98_400_000), "98 MB");
        assert_eq!(size(1_500), "1 kB");
    }
}
