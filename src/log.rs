//! The log: one line an event, to standard error, through a bounded queue that never makes
//! anybody wait.

mod level;
mod plain;
mod queue;
mod record;
mod second;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    warn,
};
use tracing_subscriber::{
    Layer as _,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use self::queue::Queue;
pub(crate) use self::record::record;
pub use self::{
    level::set_level,
    record::{Record, Value, write_record},
};
use crate::config::{self, LogFormat};

static LOG: OnceLock<Started> = OnceLock::new();

#[derive(Debug)]
struct Started {
    queue: Queue,
    format: Format,
}

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    /// For programs, in a pipe or a file.
    #[default]
    Text,
    /// For people.
    Terminal,
    Json,
}

/// For queued lines to be written.
const FLUSHED_WITHIN: Duration = Duration::from_secs(1);

/// Keeps the log's writer alive; what is queued is written when it is dropped.
#[derive(Debug)]
pub struct Log {
    _writer: Option<queue::Writer>,
}

impl Log {
    /// Starts the log of this process. Later calls in the same process change nothing.
    #[must_use]
    pub fn start(config: config::Log) -> Self {
        let Ok((queue, writer)) = Queue::start(io::stderr()) else {
            // No thread is left to be had: the program will not get far.
            return Self { _writer: None };
        };
        let format = match config.format {
            LogFormat::Text if io::stderr().is_terminal() => Format::Terminal,
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        let started = Started {
            queue: queue.clone(),
            format,
        };
        if LOG.set(started).is_err() {
            return Self { _writer: None };
        }
        set_level(config.level);
        let lines = match format {
            Format::Text => plain::Lines::new(queue).boxed(),
            Format::Terminal => tracing_subscriber::fmt::layer()
                .with_writer(move || Handed(queue.clone()))
                .with_ansi(true)
                .event_format(AtTerminal)
                .boxed(),
            Format::Json => tracing_subscriber::fmt::layer()
                .with_writer(move || Handed(queue.clone()))
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed(),
        };
        let _started_before = tracing_subscriber::registry()
            .with(level::Filter)
            .with(lines)
            .try_init();
        Self {
            _writer: Some(writer),
        }
    }

    /// Says now and then how many lines were dropped, for ever.
    pub async fn report_dropped(&self) {
        let mut reported = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let dropped = dropped_lines();
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
    LOG.get().map_or(0, |log| log.queue.dropped())
}

/// Waits until all that is queued now is written, for a second at most.
pub async fn flush() {
    let Some(Started { queue, .. }) = LOG.get() else {
        return;
    };
    let (wanted, _) = queue.progress();
    let deadline = tokio::time::Instant::now() + FLUSHED_WITHIN;
    while queue.progress().1 < wanted && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Hands lines over to be written.
#[derive(Debug)]
struct Handed(Queue);

impl Write for Handed {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `TIME LEVEL message key=value …`, for people (see [`Line`]).
#[derive(Clone, Copy, Debug)]
struct AtTerminal;

impl<S, N> FormatEvent<S, N> for AtTerminal
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
        let mut parts = Line::default();
        event.record(&mut parts);
        // The date is left out: `2026-11-23T18:08:47.123Z`.
        let time = now.get(11..23).unwrap_or(&now);
        parts.write(&mut line, time, *event.metadata().level())
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
