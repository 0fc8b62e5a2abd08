//! The log: one line an event, to standard error, through a bounded queue that never makes
//! anybody wait.

mod plain;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write},
    mem,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, SystemTime},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    warn,
};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer as _, Registry,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::{self, LogFormat, LogLevel};

/// Lines that may wait to be written; more are dropped and counted.
const QUEUE: usize = 16 * 1024;

/// Bytes that are written in one piece, and a line more.
const BATCH: usize = 64 * 1024;

/// Between two looks at the queue: a busy log wakes its writer once for many lines, as a wake-up
/// costs whoever logs more than the line does.
const NAP: Duration = Duration::from_millis(5);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that were handed over to be written, and those that were.
static HANDED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// For queued lines to be written.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Keeps the log's writer alive; what is queued is written when it is dropped.
#[derive(Debug)]
pub struct Log {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Starts the log of this process. Later calls in the same process change nothing.
    #[must_use]
    pub fn start(config: config::Log) -> Self {
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(QUEUE)
            .thread_name("log")
            .finish(Stderr::default());
        let dropped = writer.error_counter();
        let _set_before = DROPPED.set(dropped.clone());
        let (filter, level) = reload::Layer::new(level_filter(config.level));
        let counted = move || {
            HANDED.fetch_add(1, SeqCst);
            writer.clone()
        };
        let lines = tracing_subscriber::fmt::layer().with_writer(counted);
        let lines = match config.format {
            LogFormat::Json => lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed(),
            LogFormat::Text => {
                let is_terminal = io::stderr().is_terminal();
                lines
                    .with_ansi(is_terminal)
                    .event_format(Text { is_terminal })
                    .boxed()
            }
        };
        let _started_before = tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init();
        let _set_before = LEVEL.set(level);
        Self {
            _writer: guard,
            dropped,
        }
    }

    /// Says now and then how many lines were dropped, for ever.
    pub async fn report_dropped(&self) {
        let mut reported = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let dropped = self.dropped.dropped_lines();
            if dropped > reported {
                warn!(
                    "{} log lines were dropped: they came faster than they could be written",
                    dropped - reported
                );
                reported = dropped;
            }
        }
    }
}

/// Lines that were dropped so far, as they came faster than they could be written.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Waits until all that is queued now is written, for a second at most.
pub async fn flush() {
    let wanted = HANDED.load(SeqCst);
    let deadline = tokio::time::Instant::now() + FLUSHED_WITHIN;
    while WRITTEN.load(SeqCst) < wanted && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Standard error, with a count of what was written: what waits in the queue is written at once.
#[derive(Debug, Default)]
struct Stderr {
    lines: Vec<u8>,
    count: u64,
}

impl Stderr {
    fn write_lines(&mut self) -> io::Result<()> {
        let written = io::stderr().write_all(&self.lines);
        self.lines.clear();
        WRITTEN.fetch_add(mem::take(&mut self.count), SeqCst);
        written
    }
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.extend_from_slice(line);
        self.count += 1;
        if self.lines.len() >= BATCH {
            self.write_lines()?;
        }
        Ok(line.len())
    }

    /// Called when the queue is empty.
    #[expect(
        clippy::disallowed_methods,
        reason = "there is no event to wait for, but for more lines to come"
    )]
    fn flush(&mut self) -> io::Result<()> {
        let written = self.write_lines();
        thread::sleep(NAP);
        written
    }
}

/// Changes the level of the running log.
pub fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get() {
        // Fails only when the subscriber has gone, and the log with it.
        let _gone = handle.reload(level_filter(level));
    }
}

const fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// `TIME LEVEL message key=value …`: in a pipe plain and with the whole time, at a terminal for
/// people (see [`Line`]).
#[derive(Clone, Copy, Debug)]
struct Text {
    is_terminal: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let level = *event.metadata().level();
        if self.is_terminal {
            let mut parts = Line::default();
            event.record(&mut parts);
            // The date is left out: `2026-11-23T18:08:47.123Z`.
            return parts.write(&mut line, now.get(11..23).unwrap_or(&now), level);
        }
        let mut plain = plain::Line::new(&now, level);
        event.record(&mut plain);
        plain.write(&mut line)
    }
}

/// A line at a terminal: short time, colour, message, and dimmed what belongs to it. What a worker
/// writes stands behind its slot and a bar; what the message says already is not said again.
#[derive(Debug, Default)]
struct Line {
    message: String,
    slot: String,
    is_output: bool,
    fields: String,
}

impl Line {
    fn write(&self, line: &mut Writer<'_>, time: &str, level: Level) -> fmt::Result {
        const DIM: &str = "\x1b[2m";
        const PLAIN: &str = "\x1b[0m";
        let Self {
            message,
            slot,
            is_output,
            fields,
        } = self;
        if *is_output {
            return writeln!(
                line,
                "{DIM}{time}{PLAIN}       {DIM}{slot} |{PLAIN} {message}"
            );
        }
        let (colour, name) = match level {
            Level::ERROR => ("\x1b[1;31m", "ERROR"),
            Level::WARN => ("\x1b[33m", "WARN "),
            Level::INFO => ("\x1b[32m", "INFO "),
            Level::DEBUG => ("\x1b[34m", "DEBUG"),
            Level::TRACE => ("\x1b[35m", "TRACE"),
        };
        write!(
            line,
            "{DIM}{time}{PLAIN} {colour}{name}{PLAIN} {message}{DIM}"
        )?;
        if !slot.is_empty() && !message.starts_with(slot) {
            write!(line, " slot={slot}")?;
        }
        writeln!(line, "{fields}{PLAIN}")
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "slot" => write!(self.slot, "{value:?}"),
            "stream" => {
                self.is_output = true;
                Ok(())
            }
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
