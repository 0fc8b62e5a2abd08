//! Points in time as text, of which many share a second.

use std::time::SystemTime;

/// The second of the last one, as text.
#[derive(Debug, Default)]
pub(super) struct Second {
    number: u64,
    /// `2026-11-23T18:08:47`.
    text: String,
}

impl Second {
    /// The second, and the digits of the microseconds within it.
    pub(super) fn of(&mut self, now: SystemTime) -> (&str, [u8; 6]) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        if self.number != since.as_secs() || self.text.is_empty() {
            self.number = since.as_secs();
            self.text = humantime::format_rfc3339_seconds(now).to_string();
            self.text.pop();
        }
        let mut digits = [0; 6];
        let mut rest = since.subsec_micros();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        (&self.text, digits)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_humantime_writes_them() {
        let mut second = Second::default();
        for micros in [0, 7, 999_999, 1_000_000, 1_795_737_600_042_001] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
            let (text, digits) = second.of(now);
            let written = format!("{text}.{}Z", str::from_utf8(&digits).unwrap());
            let expected = humantime::format_rfc3339_micros(now).to_string();
            assert_eq!(written, expected);
        }
    }
}
