//! Values as people write them: names, durations, text. Both the file and the command line read
//! them here, and the effective configuration is written with their inverse.
//!
//! Errors are sentences for the person who wrote the value: what is wrong, and what to write.

use std::{fmt, num::NonZeroU32, time::Duration};

use super::{OnDown, Records};

/// The longest name of a listener, cluster or slot.
const MAX_NAME: usize = 64;
/// The timers of the runtime tick in milliseconds.
const MIN_DURATION: Duration = Duration::from_millis(1);
/// Far beyond any use, and far from overflowing a clock.
const MAX_DURATION: Duration = Duration::from_secs(365 * 86_400);

/// The name of a listener, a cluster or a slot.
pub(super) fn name(text: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() {
        return Err("a name must not be empty".to_owned());
    }
    if let Some(odd) = text.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "a name may have letters, digits, `-`, `_` and `.`, but not {}",
            quoted(odd.encode_utf8(&mut [0; 4]))
        ));
    }
    if text.len() > MAX_NAME {
        let long = text.len();
        return Err(format!(
            "a name may have {MAX_NAME} characters, this one has {long}"
        ));
    }
    Ok(())
}

/// A length of time: `500ms`, `2s`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let typed = quoted(text);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "{typed} has no unit: write \"{text}s\" or \"{text}ms\""
        ));
    }
    let parsed = humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::UnknownUnit { unit, .. } if !unit.is_empty() => {
            format!("{typed}: unknown unit {unit}; use ms, s, m, h or d")
        }
        humantime::DurationError::NumberOverflow => format!("{typed} is too long or too exact"),
        _ => format!("{typed} is not a duration; write one as in \"500ms\", \"2s\" or \"1h30m\""),
    })?;
    if parsed < MIN_DURATION {
        return Err(format!("must be at least 1ms, is {typed}"));
    }
    if parsed > MAX_DURATION {
        return Err(format!("must be at most 365d, is {typed}"));
    }
    Ok(parsed)
}

/// A duration as [`duration`] reads it, exactly.
pub(super) fn duration_of(value: Duration) -> String {
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    let mut left = value.as_nanos();
    let mut text = String::new();
    for (unit, nanos) in UNITS {
        if left >= nanos {
            text += &format!("{}{unit}", left / nanos);
            left %= nanos;
        }
    }
    text
}

/// Units of bytes, the largest first; `KB` and its kin are decimal (IEC 80000-13).
const BYTE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

/// `32KiB`, `10MB`, `512B`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let unit = BYTE_UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let parsed = unit.and_then(|(unit, size)| {
        let number = text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?;
        number.checked_mul(*size)
    });
    parsed.ok_or_else(|| {
        let typed = quoted(text);
        format!("{typed} is not a number of bytes; write one as in \"32KiB\", \"10MB\" or 4096")
    })
}

/// A number of bytes as [`bytes`] reads it, exactly.
pub(super) fn bytes_of(value: u64) -> String {
    let binary = BYTE_UNITS
        .iter()
        .filter(|(unit, _)| unit.contains('i') || *unit == "B");
    let mut fitting = binary.filter(|(_, size)| value > 0 && value.is_multiple_of(*size));
    fitting.next().map_or_else(
        || "0B".to_owned(),
        |(unit, size)| format!("{}{unit}", value / size),
    )
}

/// `all`, `off`, or a share as in 0.1.
pub(super) fn records(text: &str) -> Result<Records, String> {
    let share = match text {
        "all" => return Ok(Records::ALL),
        "off" => return Ok(Records::OFF),
        text => text.parse::<f64>().ok(),
    };
    let per_million = share.map(|share| (share * 1e6).round());
    match per_million.filter(|share| (1.0..=1e6).contains(share)) {
        Some(share) => Ok(Records(share as u32)),
        None => Err(format!(
            "must be \"all\", \"off\" or a share from 0.000001 to 1, as in 0.1, is {text}"
        )),
    }
}

/// A share as [`records`] reads it, as TOML.
pub(super) fn records_of(records: Records) -> String {
    match records {
        Records::ALL => "\"all\"".to_owned(),
        Records::OFF => "\"off\"".to_owned(),
        Records(share) => format!("{}", f64::from(share) / 1e6),
    }
}

/// The most of something a second that may be asked for.
const MAX_PER_SECOND: u32 = 1000;

/// So many a second: `10/s`.
pub(super) fn per_second(text: &str) -> Result<NonZeroU32, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "{text} has no unit: write \"{text}/s\", or \"off\""
        ));
    }
    let number = text.strip_suffix("/s").map(str::trim_end);
    let number = number.and_then(|number| number.parse().ok());
    let valid = number.filter(|number: &NonZeroU32| number.get() <= MAX_PER_SECOND);
    valid.ok_or_else(|| {
        format!(
            "must be a number a second from \"1/s\" to \"{MAX_PER_SECOND}/s\", or \"off\", is {}",
            quoted(text)
        )
    })
}

/// A number a second as [`per_second`] reads it.
pub(super) fn per_second_of(value: NonZeroU32) -> String {
    format!("{value}/s")
}

/// `hold 2s`, `next` or `reject`.
pub(super) fn on_down(text: &str) -> Result<OnDown, String> {
    match text.split_once(' ').unwrap_or((text, "")) {
        ("next", "") => Ok(OnDown::Next),
        ("reject", "") => Ok(OnDown::Reject),
        ("hold", "") => Err("must say for how long, as in \"hold 2s\"".to_owned()),
        ("hold", time) => duration(time.trim()).map(OnDown::Hold),
        _ => Err(format!(
            "must be \"hold 2s\" (or another time), \"next\" or \"reject\", is {}",
            quoted(text)
        )),
    }
}

impl fmt::Display for OnDown {
    /// As it is written in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold(time) => write!(f, "hold {}", duration_of(*time)),
            Self::Next => f.write_str("next"),
            Self::Reject => f.write_str("reject"),
        }
    }
}

/// Text as a TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            '\r' => quoted += "\\r",
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A TOML key: quoted where it must be.
pub(super) fn key(text: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    match !text.is_empty() && text.bytes().all(bare) {
        true => text.to_owned(),
        false => quoted(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn durations_survive_the_way_back(nanos in 1_000_000_u64..=365 * 86_400 * 1_000_000_000) {
            let value = Duration::from_nanos(nanos);
            prop_assert_eq!(duration(&duration_of(value)), Ok(value));
        }

        #[test]
        fn shares_survive_the_way_back(share in 1..=1_000_000_u32) {
            let text = records_of(Records(share));
            prop_assert_eq!(records(text.trim_matches('"')), Ok(Records(share)));
        }

        #[test]
        fn rates_survive_the_way_back(rate in 1..=MAX_PER_SECOND) {
            let rate = NonZeroU32::new(rate).unwrap();
            prop_assert_eq!(per_second(&per_second_of(rate)), Ok(rate));
        }

        #[test]
        fn bytes_survive_the_way_back(number in any::<u64>(), shift in 0..64u32) {
            let value = number >> shift;
            prop_assert_eq!(bytes(&bytes_of(value)), Ok(value));
        }

        #[test]
        fn text_and_keys_survive_the_way_back(text in any::<String>(), name in any::<String>()) {
            let toml = format!("{} = {}", key(&name), quoted(&text));
            let table: toml::Table = toml.parse().unwrap();
            prop_assert_eq!(table[&name].as_str(), Some(&*text));
        }

        #[test]
        fn nothing_that_is_typed_makes_a_panic(text in any::<String>()) {
            let _ = (duration(&text), bytes(&text), name(&text), on_down(&text), per_second(&text));
        }
    }
}
