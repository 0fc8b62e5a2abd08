//! What is wrong with a configuration: all of it at once, each fault on one line.

use std::{cell::RefCell, error::Error, fmt};

/// Everything that is wrong with one configuration, in the order of the file; never empty.
///
/// Its `Display` prints one line for each fault, without a newline at the end:
/// `FILE:LINE:COLUMN: KEY: what is wrong, and what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file's name; `None` when the faults are in the command line.
    file: Option<String>,
    faults: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the file; `None` when it concerns the file as a whole, or the command line.
    pub position: Option<Position>,
    /// The path of the key (`cluster.app.workers.count`), the flag (`--listen`) or the
    /// environment variable; empty when it concerns the file as a whole.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Faults {
    /// The one fault of a file as a whole.
    pub(super) fn of_file(file: &str, message: String) -> Self {
        let fault = Fault {
            position: None,
            key: String::new(),
            message,
        };
        Self {
            file: Some(file.to_owned()),
            faults: vec![fault],
        }
    }

    /// The faults, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.faults.iter()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match (&self.file, fault.position) {
                (Some(file), Some(at)) => write!(f, "{file}:{}:{}: ", at.line, at.column)?,
                (Some(file), None) => write!(f, "{file}: ")?,
                (None, _) => {}
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl Error for Faults {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// How many faults are told; nobody reads more at once.
const MAX_TOLD: usize = 100;

/// Where faults are written down while a configuration is read, so that the first does not hide
/// the others.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// With the byte offset of each.
    faults: RefCell<Vec<(usize, Fault)>>,
}

impl Ledger {
    /// Writes down a fault. `at` is a byte offset in the file, or for the command line any
    /// number that puts its faults in order.
    pub(super) fn add(&self, at: usize, key: impl Into<String>, message: impl Into<String>) {
        let fault = Fault {
            position: None,
            key: printable(key.into()),
            message: printable(message.into()),
        };
        self.faults.borrow_mut().push((at, fault));
    }

    /// `Ok` when nothing was written down; `text` gives offsets their line and column.
    pub(super) fn close(self, file: Option<&str>, text: &str) -> Result<(), Faults> {
        let mut faults = self.faults.into_inner();
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort_by_key(|(at, _)| *at);
        let more = faults.len().saturating_sub(MAX_TOLD);
        let placed = faults.into_iter().take(MAX_TOLD).map(|(at, fault)| Fault {
            position: file.map(|_| Position::of(text, at)),
            ..fault
        });
        let rest = (more > 0).then(|| Fault {
            position: None,
            key: String::new(),
            message: format!("and {more} more faults"),
        });
        Err(Faults {
            file: file.map(str::to_owned),
            faults: placed.chain(rest).collect(),
        })
    }
}

impl Position {
    /// The position of a byte offset.
    pub(super) fn of(text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// The text on one line, without anything that a terminal would obey.
fn printable(text: String) -> String {
    match text.contains(char::is_control) {
        false => text,
        true => text
            .chars()
            .map(|c| match c.is_control() {
                true => c.escape_default().to_string(),
                false => c.to_string(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a = 1\nß = 2";
        let of = |at| {
            let Position { line, column } = Position::of(text, at);
            (line, column)
        };
        assert_eq!(of(0), (1, 1));
        assert_eq!(of(4), (1, 5));
        assert_eq!(of(6), (2, 1));
        assert_eq!(of(8), (2, 2), "ß is one character of two bytes");
        assert_eq!(of(text.len()), (2, 6));
        assert_eq!(of(1000), (2, 6), "past the end is the end");
    }

    #[test]
    fn a_fault_is_one_line_and_there_is_an_end_to_them() {
        let ledger = Ledger::default();
        for _ in 0..MAX_TOLD + 7 {
            ledger.add(0, "a", "two\nlines and \u{1b}[31m colour");
        }
        let told = ledger.close(Some("f"), "").unwrap_err().to_string();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), MAX_TOLD + 1);
        assert_eq!(lines[0], "f:1:1: a: two\\nlines and \\u{1b}[31m colour");
        assert_eq!(lines[MAX_TOLD], "f: and 7 more faults");
    }

    #[test]
    fn faults_come_in_the_order_of_the_file() {
        let ledger = Ledger::default();
        ledger.add(6, "b", "second");
        ledger.add(0, "a", "first");
        ledger.add(6, "b", "third");
        let faults = ledger.close(Some("f.toml"), "a = 1\nb = 2").unwrap_err();
        assert_eq!(
            faults.to_string(),
            "f.toml:1:1: a: first\nf.toml:2:1: b: second\nf.toml:2:1: b: third"
        );
    }
}
