//! Records, of which there is one for every connection or request. They look like events and are none:
//! the machinery of those takes several times as long as to write each value straight into the line.

use std::{
    cell::Cell,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use super::{Format, level, plain::disarmed, second::Second};
use crate::text;

/// What a thread keeps for its next record; most are shorter.
const KEPT: usize = 4 * 1024;

/// A vector takes everything.
const TAKEN: &str = "a vector takes everything";

/// Writes a record, as an event of this target would be: its values by their names, those left out that
/// are `None`, and its message.
macro_rules! record {
    (target: $target:literal, $($name:ident = $value:expr,)+ $message:literal $(,)?) => {
        $crate::log::write_record($target, $message, |record| {
            $($crate::log::record!(in record: $name = $value);)+
        })
    };
    (in $record:ident: $name:ident = $value:expr) => {
        let value = $value;
        if $crate::log::Value::is_there(&value) {
            $record.name(
                concat!(" ", stringify!($name), "="),
                concat!(",\"", stringify!($name), "\":"),
            );
            $crate::log::Value::write(&value, $record);
        }
    };
}

pub(crate) use record;

thread_local! {
    static RECORD: Cell<Record> = Cell::default();
}

/// Writes a record, if it is to be seen at all; what `record!` calls.
pub fn write_record(target: &'static str, message: &'static str, fill: impl FnOnce(&mut Record)) {
    let Some(log) = super::LOG.get().filter(|_| level::shows_records()) else {
        return;
    };
    let mut record = RECORD.try_with(Cell::take).unwrap_or_default();
    record.format = log.format;
    record.begin(SystemTime::now(), message);
    fill(&mut record);
    record.end(target);
    log.queue.push(&record.bytes);
    record.bytes.clear();
    record.bytes.shrink_to(KEPT);
    // A thread that ends keeps none.
    let _ends = RECORD.try_with(|kept| kept.set(record));
}

/// A record as far as it was written.
#[derive(Debug, Default)]
pub struct Record {
    bytes: Vec<u8>,
    format: Format,
    /// Where what belongs to the message begins, and where the last value's name does.
    start: usize,
    last: usize,
    second: Second,
}

/// What a record tells.
pub trait Value {
    /// Whether there is anything to tell.
    fn is_there(&self) -> bool {
        true
    }

    /// Writes it; its name stands there already.
    fn write(&self, record: &mut Record);
}

impl<T: Value> Value for Option<T> {
    fn is_there(&self) -> bool {
        self.is_some()
    }

    fn write(&self, record: &mut Record) {
        if let Some(value) = self {
            value.write(record);
        }
    }
}

impl Value for &str {
    fn write(&self, record: &mut Record) {
        record.word(self);
    }
}

impl Value for u64 {
    fn write(&self, record: &mut Record) {
        text::decimal(&mut record.bytes, *self);
    }
}

impl Value for u32 {
    fn write(&self, record: &mut Record) {
        text::decimal(&mut record.bytes, (*self).into());
    }
}

impl Value for u16 {
    fn write(&self, record: &mut Record) {
        text::decimal(&mut record.bytes, (*self).into());
    }
}

impl Value for IpAddr {
    fn write(&self, record: &mut Record) {
        record.bare(|record| text::address(&mut record.bytes, *self));
    }
}

impl Value for SocketAddr {
    fn write(&self, record: &mut Record) {
        record.bare(|record| match self {
            Self::V4(socket) => {
                text::address(&mut record.bytes, (*socket.ip()).into());
                record.bytes.push(b':');
                text::decimal(&mut record.bytes, socket.port().into());
            }
            Self::V6(socket) => write!(record.bytes, "{socket}").expect(TAKEN),
        });
    }
}

impl Record {
    /// Writes the name of the next value, as it stands in text and in JSON.
    #[inline]
    pub fn name(&mut self, text: &'static str, json: &'static str) {
        self.last = self.bytes.len();
        match self.format {
            Format::Text | Format::Terminal => self.bytes.extend_from_slice(text.as_bytes()),
            Format::Json => self.bytes.extend_from_slice(json.as_bytes()),
        }
    }

    fn begin(&mut self, now: SystemTime, message: &str) {
        let (second, micros) = self.second.of(now);
        let line = &mut self.bytes;
        let mut put = |part: &[u8]| line.extend_from_slice(part);
        match self.format {
            Format::Text => {
                put(second.as_bytes());
                put(b".");
                put(&micros[..3]);
                put(b"Z INFO  ");
                put(message.as_bytes());
            }
            Format::Terminal => {
                put(b"\x1b[2m");
                // The date is left out.
                put(second.get(11..).unwrap_or(second).as_bytes());
                put(b".");
                put(&micros[..3]);
                put(b"\x1b[0m \x1b[32mINFO \x1b[0m ");
                put(message.as_bytes());
                put(b"\x1b[2m");
            }
            Format::Json => {
                put(b"{\"timestamp\":\"");
                put(second.as_bytes());
                put(b".");
                put(&micros);
                put(b"Z\",\"level\":\"INFO\",\"message\":\"");
                put(message.as_bytes());
                put(b"\"");
            }
        }
        self.start = self.bytes.len();
    }

    fn end(&mut self, target: &str) {
        match self.format {
            Format::Text => self.bytes.push(b'\n'),
            Format::Terminal => self.bytes.extend_from_slice(b"\x1b[0m\n"),
            Format::Json => {
                self.bytes.extend_from_slice(b",\"target\":\"");
                self.bytes.extend_from_slice(target.as_bytes());
                self.bytes.extend_from_slice(b"\"}\n");
            }
        }
    }

    /// Writes a value that is no number, and needs quotes in JSON only.
    fn bare(&mut self, write: impl FnOnce(&mut Self)) {
        let is_quoted = self.format == Format::Json;
        if is_quoted {
            self.bytes.push(b'"');
        }
        write(self);
        if is_quoted {
            self.bytes.push(b'"');
        }
    }

    fn word(&mut self, word: &str) {
        if self.format == Format::Terminal {
            return self.word_for_people(word);
        }
        // All are looked at, many at a time: to stop at the first that is not takes longer.
        if word.bytes().fold(true, |all, byte| all & is_plain(byte)) {
            self.bytes.push(b'"');
            self.bytes.extend_from_slice(word.as_bytes());
            self.bytes.push(b'"');
        } else if self.format == Format::Json {
            serde_json::to_writer(&mut self.bytes, word).expect(TAKEN);
        } else {
            write!(self.bytes, "{word:?}").expect(TAKEN);
        }
    }

    /// Without quotes, and which slot it is about in front of all else.
    fn word_for_people(&mut self, word: &str) {
        self.bytes.extend_from_slice(disarmed(word).as_bytes());
        if self.bytes[self.last..].starts_with(b" slot=") {
            let part = self.bytes.len() - self.last;
            self.bytes[self.start..].rotate_right(part);
        }
    }
}

/// Whether it stands for itself in quotes, in text as in JSON.
const fn is_plain(byte: u8) -> bool {
    let is_visible = byte.wrapping_sub(b' ') <= b'~' - b' ';
    is_visible & (byte != b'"') & (byte != b'\\')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What `record!` makes of it, without a log.
    macro_rules! written {
        ($format:expr, $($name:ident = $value:expr,)+ $message:literal) => {{
            let mut written = Record { format: $format, ..Record::default() };
            let record = &mut written;
            let now = SystemTime::UNIX_EPOCH + Duration::from_micros(61_000_042);
            record.begin(now, $message);
            $(record!(in record: $name = $value);)+
            record.end("homescar::test");
            String::from_utf8(written.bytes).unwrap()
        }};
    }

    macro_rules! record_in {
        ($format:expr) => {{
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
            written!(
                $format,
                listener = "web",
                client = socket("127.0.0.10:65535"),
                peer = Some(socket("[fe80::1%7]:80")),
                from = ip("10.0.200.1"),
                also = ip("::ffff:1.2.3.4"),
                slot = Some("app/0"),
                none = None::<u64>,
                nobody = None::<&str>,
                status = Some(200_u16),
                pid = Some(12_u32),
                request = "GET /\"\\\u{e9}\x1b\u{9b}",
                up = 0_u64,
                down = u64::MAX,
                "connection"
            )
        }};
    }

    #[test]
    fn as_text_words_are_quoted_and_all_else_is_not() {
        assert_eq!(
            record_in!(Format::Text),
            "1970-01-01T00:01:01.000Z INFO  connection listener=\"web\" client=127.0.0.10:65535 \
             peer=[fe80::1%7]:80 from=10.0.200.1 also=::ffff:1.2.3.4 slot=\"app/0\" status=200 pid=12 \
             request=\"GET /\\\"\\\\\u{e9}\\u{1b}\\u{9b}\" up=0 down=18446744073709551615\n"
        );
    }

    #[test]
    fn json_has_numbers_and_strings() {
        assert_eq!(
            record_in!(Format::Json),
            "{\"timestamp\":\"1970-01-01T00:01:01.000042Z\",\"level\":\"INFO\",\
             \"message\":\"connection\",\"listener\":\"web\",\"client\":\"127.0.0.10:65535\",\
             \"peer\":\"[fe80::1%7]:80\",\"from\":\"10.0.200.1\",\"also\":\"::ffff:1.2.3.4\",\
             \"slot\":\"app/0\",\"status\":200,\"pid\":12,\
             \"request\":\"GET /\\\"\\\\\u{e9}\\u001b\u{9b}\",\"up\":0,\
             \"down\":18446744073709551615,\"target\":\"homescar::test\"}\n"
        );
    }

    #[test]
    fn people_see_the_slot_first_and_no_command() {
        assert_eq!(
            record_in!(Format::Terminal),
            "\x1b[2m00:01:01.000\x1b[0m \x1b[32mINFO \x1b[0m connection\x1b[2m slot=app/0 \
             listener=web client=127.0.0.10:65535 peer=[fe80::1%7]:80 from=10.0.200.1 \
             also=::ffff:1.2.3.4 status=200 pid=12 request=GET /\"\\\u{e9}\\x1b\\u{9b} up=0 \
             down=18446744073709551615\x1b[0m\n"
        );
    }
}
