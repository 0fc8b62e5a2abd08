//! A line in a pipe or a file, as programs read it: `TIME LEVEL message key=value …`.
//!
//! There is one for every request. So what records are made of, words and numbers, is written as it
//! is, and only the rest by the machinery of `format!`, which takes ten times as long.

use std::fmt::{self, Write as _};

use tracing::{
    Level,
    field::{Field, Visit},
};
use tracing_subscriber::fmt::format::Writer;

/// The name of what is said in words.
const MESSAGE: &str = "message";

/// Most lines are shorter.
const CAPACITY: usize = 512;

/// What stands within quotes as it is; looked up, as it is asked of every byte.
const IS_PLAIN: [bool; 256] = {
    let mut set = [false; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        set[byte as usize] = byte != b'"' && byte != b'\\';
        byte += 1;
    }
    set
};

/// A line as far as it was written.
#[derive(Debug)]
pub(super) struct Line(String);

impl Line {
    pub(super) fn new(time: &str, level: Level) -> Self {
        let mut line = String::with_capacity(CAPACITY);
        line.push_str(time);
        line.push_str(match level {
            Level::ERROR => " ERROR",
            Level::WARN => " WARN ",
            Level::INFO => " INFO ",
            Level::DEBUG => " DEBUG",
            Level::TRACE => " TRACE",
        });
        Self(line)
    }

    pub(super) fn write(mut self, to: &mut Writer<'_>) -> fmt::Result {
        self.0.push('\n');
        to.write_str(&self.0)
    }

    /// Writes what a terminal might obey so that it is only seen, from `start` on.
    fn disarm(&mut self, start: usize) {
        for character in self.0.split_off(start).chars() {
            let code = u32::from(character);
            let written = match is_command(character) {
                false => self.0.write_char(character),
                true if character.is_ascii() => write!(self.0, "\\x{code:02x}"),
                true => write!(self.0, "\\u{{{code:x}}}"),
            };
            written.expect("a string takes everything");
        }
    }

    fn begin(&mut self, field: &Field) {
        self.0.push(' ');
        if field.name() != MESSAGE {
            self.0.push_str(field.name());
            self.0.push('=');
        }
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.begin(field);
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            return self.record_debug(field, &format_args!("{value}"));
        }
        if !value.bytes().all(|byte| IS_PLAIN[usize::from(byte)]) {
            return self.record_debug(field, &value);
        }
        self.begin(field);
        for part in ["\"", value, "\""] {
            self.0.push_str(part);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.begin(field);
        let start = self.0.len();
        write!(self.0, "{value:?}").expect("a string takes everything");
        if field.name() == MESSAGE && self.0[start..].contains(is_command) {
            self.disarm(start);
        }
    }
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

    use tracing::{Event, Subscriber, info, warn};
    use tracing_subscriber::{Layer, Registry, layer::Context, layer::SubscriberExt as _};

    use super::*;

    /// What is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let mut line = Line::new("now", *event.metadata().level());
            event.record(&mut line);
            let mut text = String::new();
            line.write(&mut Writer::new(&mut text)).unwrap();
            self.0.lock().unwrap().push(text);
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
            "now INFO  request slot=\"app/0\" path=\"/\\\"\\\\\u{e9}\\u{1b}\" up=0 down=18446744073709551615 \
             pid=12 client=127.0.0.1:1 ok=true less=-1\n"
        );
    }

    #[test]
    fn a_message_commands_no_terminal() {
        let text = "a \x1b[31m\u{9b} \u{e9}";
        let line = logged(|| warn!("{text}"));
        assert_eq!(line, "now WARN  a \\x1b[31m\\u{9b} \u{e9}\n");
    }
}
