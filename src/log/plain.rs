//! A line in a pipe or a file, as programs read it: `TIME LEVEL message key=value …`.
//!
//! Words and numbers are written as they are, and only the rest by the machinery of `format!`, which takes
//! ten times as long.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt::{self, Write as _},
    time::SystemTime,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{queue::Queue, second::Second};

/// The name of what is said in words.
const MESSAGE: &str = "message";

/// What a thread keeps for its next line; most are shorter.
const KEPT: usize = 4 * 1024;

/// Whether all of it can stand as it is, but for so many quotes. Asked of every byte of every record,
/// and so without a branch: compilers look at many at a time then.
fn is_plain(text: &str, quotes: usize) -> bool {
    let (mut odd, mut found) = (0, 0);
    // As many as a byte can count.
    for part in text.as_bytes().chunks(255) {
        let mut quotes = 0_u8;
        for byte in part {
            let is_outside = byte.wrapping_sub(b' ') > b'~' - b' ';
            odd |= u8::from(is_outside) | u8::from(*byte == b'\\');
            quotes += u8::from(*byte == b'"');
        }
        found += usize::from(quotes);
    }
    odd == 0 && found == quotes
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::default();
}

/// Writes each event as a line.
#[derive(Debug)]
pub(super) struct Lines(Queue);

impl Lines {
    pub(super) const fn new(queue: Queue) -> Self {
        Self(queue)
    }

    fn write(&self, line: &mut Line, event: &Event<'_>) {
        line.write(SystemTime::now(), event);
        self.0.push(line.end().as_bytes());
        if line.text.capacity() > KEPT {
            line.text = String::new();
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let written = LINE.try_with(|line| {
            let mut line = line.try_borrow_mut().ok()?;
            self.write(&mut line, event);
            Some(())
        });
        if written != Ok(Some(())) {
            // Another event is being written, or the thread ends.
            self.write(&mut Line::default(), event);
        }
    }
}

/// A line as far as it was written.
#[derive(Debug, Default)]
struct Line {
    text: String,
    second: Second,
    /// Quotes around words so far.
    quotes: usize,
    /// Each word is looked at before it is written.
    is_careful: bool,
}

impl Line {
    /// Writes it as if there were nothing but plain words in it, and once more if that is not so.
    fn write(&mut self, now: SystemTime, event: &Event<'_>) {
        let level = *event.metadata().level();
        self.is_careful = false;
        self.start(now, level);
        event.record(self);
        if !is_plain(&self.text, self.quotes) {
            self.is_careful = true;
            self.start(now, level);
            event.record(self);
        }
    }

    fn start(&mut self, now: SystemTime, level: Level) {
        self.text.clear();
        self.quotes = 0;
        let (second, micros) = self.second.of(now);
        self.text.push_str(second);
        self.text.push('.');
        self.text
            .extend(micros.iter().take(3).map(|digit| char::from(*digit)));
        self.text.push('Z');
        self.text.push_str(match level {
            Level::ERROR => " ERROR",
            Level::WARN => " WARN ",
            Level::INFO => " INFO ",
            Level::DEBUG => " DEBUG",
            Level::TRACE => " TRACE",
        });
    }

    fn end(&mut self) -> &str {
        self.text.push('\n');
        &self.text
    }

    fn begin(&mut self, field: &Field) {
        self.text.push(' ');
        let name = field.name();
        if name != MESSAGE {
            self.text.push_str(name);
            self.text.push('=');
        }
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.begin(field);
        self.text.push_str(itoa::Buffer::new().format(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_message = field.name() == MESSAGE;
        if self.is_careful && !is_plain(value, 0) {
            return match is_message {
                true => self.record_debug(field, &format_args!("{value}")),
                false => self.record_debug(field, &value),
            };
        }
        self.begin(field);
        if is_message {
            return self.text.push_str(value);
        }
        self.text.push('"');
        self.text.push_str(value);
        self.text.push('"');
        self.quotes += 2;
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let start = self.text.len();
        write!(self.text, "{value:?}").expect("a string takes everything");
        if field.name() == MESSAGE {
            let message = self.text.split_off(start);
            self.text.push_str(&disarmed(&message));
        }
    }
}

/// A text in which all that a terminal might obey is only seen.
pub(super) fn disarmed(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return text.into();
    }
    let mut harmless = String::with_capacity(2 * text.len());
    for character in text.chars() {
        let code = u32::from(character);
        let written = match is_command(character) {
            false => harmless.write_char(character),
            true if character.is_ascii() => write!(harmless, "\\x{code:02x}"),
            true => write!(harmless, "\\u{{{code:x}}}"),
        };
        written.expect("a string takes everything");
    }
    harmless.into()
}

/// Whether a terminal may take it for the beginning of a command.
const fn is_command(character: char) -> bool {
    matches!(
        character,
        '\x07' | '\x08' | '\x0c' | '\x1b' | '\x7f' | '\u{80}'..='\u{9f}'
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{info, warn};
    use tracing_subscriber::{Registry, layer::SubscriberExt as _};

    use super::*;

    /// What is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let mut line = Line::default();
            line.write(SystemTime::UNIX_EPOCH, event);
            self.0.lock().unwrap().push(line.end().to_owned());
        }
    }

    fn logged(log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let subscriber = Registry::default().with(lines.clone());
        tracing::subscriber::with_default(subscriber, log);
        lines.0.lock().unwrap().concat()
    }

    #[test]
    fn words_are_quoted_and_numbers_are_not() {
        let line = logged(|| {
            info!(
                slot = "app/0",
                path = "/\"\\\u{e9}\x1b",
                none = None::<u64>,
                up = 0_u64,
                down = u64::MAX,
                pid = Some(12_u32),
                client = display("127.0.0.1:1"),
                ok = true,
                less = -1,
                "request"
            );
        });
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000Z INFO  request slot=\"app/0\" path=\"/\\\"\\\\\u{e9}\\u{1b}\" up=0 down=18446744073709551615 \
             pid=12 client=127.0.0.1:1 ok=true less=-1\n"
        );
    }

    #[test]
    fn a_message_may_be_a_word() {
        let line = logged(|| info!(message = "request", up = 1));
        assert!(line.ends_with(" INFO  request up=1\n"), "{line}");
        let line = logged(|| info!(message = "\x1b\"\u{e9}"));
        assert!(line.ends_with(" INFO  \\x1b\"\u{e9}\n"), "{line}");
    }

    #[test]
    fn a_message_commands_no_terminal() {
        let text = "a \x1b[31m\u{9b} \u{e9}";
        let line = logged(|| warn!("{text}"));
        assert_eq!(
            line,
            "1970-01-01T00:00:00.000Z WARN  a \\x1b[31m\\u{9b} \u{e9}\n"
        );
    }
}
