//! What the user typed: the file's tables and values with their positions, and readers of them
//! that write down what is not as it should be.

use std::{cell::RefCell, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::Ledger,
    keys::{self, Keys},
    value,
    word::{self, Word},
};

/// A table of the file, of which the keys are known.
#[derive(Debug)]
pub(super) struct Section<'a> {
    ledger: &'a Ledger,
    path: String,
    at: usize,
    table: &'a DeTable<'a>,
    /// Keys that are not there but were likely meant, by others that are.
    meant: RefCell<Vec<&'static str>>,
}

/// A value of the file.
#[derive(Debug)]
pub(super) struct Item<'a> {
    ledger: &'a Ledger,
    /// The path of its key.
    pub(super) path: String,
    /// Its byte offset.
    pub(super) at: usize,
    value: &'a DeValue<'a>,
}

/// A key that the user chose (the name of a listener, a variable) and its value.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// The key.
    pub(super) name: &'a str,
    /// The byte offset of the key.
    pub(super) at: usize,
    /// The value.
    pub(super) item: Item<'a>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(ledger: &'a Ledger, table: &'a DeTable<'a>, keys: &Keys) -> Self {
        Self::opened(ledger, String::new(), 0, table, keys)
    }

    fn opened(
        ledger: &'a Ledger,
        path: String,
        at: usize,
        table: &'a DeTable<'a>,
        keys: &Keys,
    ) -> Self {
        let section = Self {
            ledger,
            path,
            at,
            table,
            meant: RefCell::default(),
        };
        for (key, value) in table {
            let name = key.get_ref();
            let Some(odd) = keys.check(name, &section.path, value.get_ref().is_table()) else {
                continue;
            };
            ledger.add(key.span().start, section.path_of(name), odd.message);
            section.meant.borrow_mut().extend(odd.meant);
        }
        section
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<Item<'a>> {
        let value = self.table.get(key)?;
        Some(self.item(key, value))
    }

    /// The value of a key that must be there; `what` says what to write.
    pub(super) fn require(&self, key: &str, what: &str) -> Option<Item<'a>> {
        let item = self.get(key);
        if item.is_none() && !self.meant(key) {
            let message = format!("is missing; {what}");
            self.ledger.add(self.at, self.path_of(key), message);
        }
        item
    }

    /// Whether the key was likely meant by one that is there (a typing error, which has been
    /// written down), so that its absence is no news.
    pub(super) fn meant(&self, key: &str) -> bool {
        let meant = self.meant.borrow();
        meant.contains(&key) || meant.contains(&keys::ANY)
    }

    /// Writes down a fault of the table as a whole.
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.ledger.add(self.at, self.path.as_str(), message);
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => value::key(key),
            path => format!("{path}.{}", value::key(key)),
        }
    }

    fn item(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        Item {
            ledger: self.ledger,
            path: self.path_of(key),
            at: value.span().start,
            value: value.get_ref(),
        }
    }
}

impl<'a> Item<'a> {
    /// Writes down a fault of this value.
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.ledger.add(self.at, self.path.as_str(), message);
    }

    fn wrong_type(&self, expected: &str) {
        self.fault(format!("must be {expected}, is {}", self.describe()));
    }

    /// The value as it may stand in a message.
    fn describe(&self) -> String {
        match self.value {
            DeValue::String(text) => value::quoted(text),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }

    /// The text, when it is text; nothing is written down when it is not.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The first text of a list.
    pub(super) fn first_text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::Array(items) => match items.first()?.get_ref() {
                DeValue::String(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is a list.
    pub(super) const fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// Whether it is a table.
    pub(super) const fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// Whether it is a whole number.
    pub(super) const fn is_integer(&self) -> bool {
        matches!(self.value, DeValue::Integer(_))
    }

    /// Text.
    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.as_text();
        match (text, self.value) {
            (Some(_), _) => {}
            (None, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)) => {
                let typed = self.describe();
                self.fault(format!("must be text: write \"{typed}\", not {typed}"));
            }
            (None, _) => self.wrong_type("text in quotes"),
        }
        text
    }

    /// Text with a form of its own.
    pub(super) fn parsed<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let is_scalar = !self.is_list() && !self.is_table() && self.as_text().is_none();
        if let (true, Err(why)) = (is_scalar, parse(&self.describe())) {
            // Quotes alone would not help.
            self.fault(why);
            return None;
        }
        let text = self.text()?;
        parse(text).map_err(|why| self.fault(why)).ok()
    }

    /// A number or text with a form of its own, as it is written.
    pub(super) fn number_or_text<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = match self.as_text() {
            Some(text) => text.to_owned(),
            None => self.describe(),
        };
        parse(&text).map_err(|why| self.fault(why)).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Word>(&self) -> Option<T> {
        match self.as_text() {
            Some(_) => self.parsed(word::word),
            None => {
                self.wrong_type(&word::choices::<T>());
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        let truth = self.value.as_bool();
        if truth.is_none() {
            self.wrong_type("true or false (without quotes)");
        }
        truth
    }

    /// A whole number in a range.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let DeValue::Integer(number) = self.value else {
            match self.as_text().map(|text| (text, text.parse::<u64>())) {
                Some((text, Ok(_))) => {
                    self.fault(format!("must be a number: write {text}, not \"{text}\""));
                }
                _ => self.wrong_type("a whole number"),
            }
            return None;
        };
        let parsed = u64::from_str_radix(number.as_str(), number.radix()).ok();
        let valid = parsed.filter(|number| range.contains(number));
        if valid.is_none() {
            let (least, most) = (range.start(), range.end());
            let bounds = match *most {
                u64::MAX => format!("at least {least}"),
                _ => format!("between {least} and {most}"),
            };
            self.wrong_type(&bounds);
        }
        valid
    }

    /// A number in a range, whole or not.
    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let typed = match self.value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            _ => {
                match self.as_text().map(|text| (text, text.parse::<f64>())) {
                    Some((text, Ok(_))) => {
                        self.fault(format!("must be a number: write {text}, not \"{text}\""));
                    }
                    _ => self.wrong_type("a number"),
                }
                return None;
            }
        };
        let valid = typed.filter(|number| range.contains(number));
        if valid.is_none() {
            let (least, most) = (range.start(), range.end());
            self.wrong_type(&format!("between {least} and {most}"));
        }
        valid
    }

    /// A number of bytes in a range: `"32KiB"`, or a whole number.
    pub(super) fn bytes(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let Some(text) = self.as_text() else {
            return self.integer(range);
        };
        let bytes = self.parsed(value::bytes)?;
        if !range.contains(&bytes) {
            let (least, most) = (range.start(), range.end());
            let typed = value::quoted(text);
            self.fault(format!(
                "must be between {} and {}, is {typed}",
                value::bytes_of(*least),
                value::bytes_of(*most)
            ));
            return None;
        }
        Some(bytes)
    }

    /// A length of time.
    pub(super) fn duration(&self) -> Option<Duration> {
        if let DeValue::Integer(_) | DeValue::Float(_) = self.value {
            let typed = self.describe();
            self.fault(format!(
                "has no unit: write \"{typed}s\" or \"{typed}ms\", not {typed}"
            ));
            return None;
        }
        self.parsed(value::duration)
    }

    /// A value that can be turned off with `"off"`: `Some(None)` when it is.
    pub(super) fn unless_off<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Option<T>> {
        match self.as_text() {
            Some("off") => Some(None),
            _ => read(self).map(Some),
        }
    }

    /// A list; `example` shows one.
    pub(super) fn list(&self, example: &str) -> Option<Vec<Self>> {
        let DeValue::Array(items) = self.value else {
            self.fault(format!("must be a list, as in {example}"));
            return None;
        };
        let items = items.iter().enumerate().map(|(index, item)| Self {
            ledger: self.ledger,
            path: format!("{}[{index}]", self.path),
            at: item.span().start,
            value: item.get_ref(),
        });
        Some(items.collect())
    }

    /// A list with something in it.
    pub(super) fn filled_list(&self, example: &str) -> Option<Vec<Self>> {
        let items = self.list(example)?;
        if items.is_empty() {
            self.fault(format!("is empty; write at least one, as in {example}"));
            return None;
        }
        Some(items)
    }

    /// A table with known keys.
    pub(super) fn section(&self, keys: &Keys) -> Option<Section<'a>> {
        let table = self.table()?;
        let path = self.path.clone();
        Some(Section::opened(self.ledger, path, self.at, table, keys))
    }

    /// The value of a key of this table, if both are what they should be. Of a table that is read
    /// elsewhere; nothing is written down.
    pub(super) fn inner(&self, key: &str) -> Option<Self> {
        let DeValue::Table(table) = self.value else {
            return None;
        };
        let value = table.get(key)?;
        Some(Self {
            ledger: self.ledger,
            path: format!("{}.{key}", self.path),
            at: value.span().start,
            value: value.get_ref(),
        })
    }

    /// A table whose keys the user chose, in the order of the file.
    pub(super) fn entries(&self) -> Vec<Entry<'a>> {
        let Some(table) = self.table() else {
            return Vec::new();
        };
        let mut entries: Vec<_> = table
            .iter()
            .map(|(key, value)| {
                let name = key.get_ref().as_ref();
                let item = Item {
                    ledger: self.ledger,
                    path: format!("{}.{}", self.path, value::key(name)),
                    at: value.span().start,
                    value: value.get_ref(),
                };
                let at = key.span().start;
                Entry { name, at, item }
            })
            .collect();
        entries.sort_by_key(|entry| entry.at);
        entries
    }

    fn table(&self) -> Option<&'a DeTable<'a>> {
        match self.value {
            DeValue::Table(table) => return Some(table),
            DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                let path = &self.path;
                self.fault(format!(
                    "must be one table, is a list of them; write [{path}], not [[{path}]]"
                ));
            }
            _ => match self.path.rsplit('.').next().unwrap_or_default() {
                named @ ("listener" | "cluster") => {
                    self.wrong_type(&format!("a table for each, as in [{named}.NAME]"));
                }
                key => self.wrong_type(&format!("a table, as in {key} = {{ … }}")),
            },
        }
        None
    }
}

impl Entry<'_> {
    /// Writes down a fault of the key.
    pub(super) fn fault(&self, message: impl Into<String>) {
        let Item { ledger, path, .. } = &self.item;
        ledger.add(self.at, path.as_str(), message);
    }
}
