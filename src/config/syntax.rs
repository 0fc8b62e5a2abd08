//! Faults of TOML itself, in words that say what to do.

use toml::de::Error;

use super::{fault::Ledger, value::quoted};

/// How many of the parser's errors are looked at.
const MAX_READ: usize = 1000;

/// Writes down the syntax errors of a file. The parser goes on after an error as well as it can
/// guess; what it says is kept as far as the guesses are good: one error a line, and nothing
/// after a bracket has gone wrong.
pub(super) fn write_down(errors: &[Error], text: &str, ledger: &Ledger) {
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (error.span().unwrap_or_default(), error.message()))
        .collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut last_line = None;
    for (span, message) in errors.into_iter().take(MAX_READ) {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count();
        if last_line.replace(line) == Some(line) {
            continue;
        }
        let typed = text.get(span.clone()).unwrap_or_default();
        let header = text.lines().nth(line).and_then(header);
        let (key, told) = match (message, header) {
            ("duplicate key", Some(table)) => {
                let told = format!("the table [{table}] is there twice; make one of the two");
                (table.to_owned(), told)
            }
            _ => explain(message, typed),
        };
        ledger.add(span.start, key, told);
        if is_of_brackets(message) {
            return;
        }
    }
}

/// The path in a table's header.
fn header(line: &str) -> Option<&str> {
    let (path, _) = line.trim().strip_prefix('[')?.split_once(']')?;
    Some(path.trim_start_matches('['))
}

fn is_of_brackets(message: &str) -> bool {
    ["comma", "array", "inline table", "unclosed"]
        .iter()
        .any(|word| message.contains(word))
}

/// The key that a syntax error concerns (`syntax` when none), and what to do.
fn explain(message: &str, typed: &str) -> (String, String) {
    let say = |message: String| ("syntax".to_owned(), message);
    let is_word = typed.starts_with(|c: char| c.is_ascii_alphabetic());
    if message == "duplicate key" {
        return (typed.to_owned(), "is set twice; keep one".to_owned());
    }
    if typed.contains(['“', '”', '‘', '’', '„']) {
        return say(format!(
            "{typed} has curly quotes; write straight ones (\")"
        ));
    }
    let lower = typed.to_lowercase();
    if matches!(lower.as_str(), "true" | "false") {
        return say(format!("write {lower}, not {typed}"));
    }
    if message.starts_with("string values must be quoted") || (is_word && !typed.contains('\n')) {
        return say(match typed {
            "" => "the value is missing after `=`".to_owned(),
            _ => format!("`{typed}` must be quoted: write {}", quoted(typed)),
        });
    }
    let known = KNOWN.iter().find(|(begin, _)| message.starts_with(begin));
    say(known.map_or(message, |(_, told)| told).to_owned())
}

/// How the parser's messages begin, and what is said instead.
const KNOWN: [(&str, &str); 12] = [
    (
        "missing comma between array elements",
        "a comma is missing between two values of a list, or a `]` at its end",
    ),
    (
        "missing comma between key-value pairs",
        "a comma is missing between two keys of a `{ … }`, or a `}` at its end",
    ),
    (
        "missing key for inline table element",
        "this does not belong in a `{ … }`: a `}` is missing before it",
    ),
    (
        "unclosed table",
        "the table's name is not closed: a `]` is missing",
    ),
    ("unclosed array", "the list is not closed: a `]` is missing"),
    (
        "unclosed inline table",
        "the `{ … }` is not closed: a `}` is missing",
    ),
    (
        "unexpected key or value",
        "does not belong on this line: write one key and its value a line",
    ),
    (
        "key with no value",
        "a key needs a value: write `key = value`",
    ),
    (
        "invalid basic string, expected `\"`",
        "the text is not closed: a `\"` is missing",
    ),
    (
        "invalid literal string, expected `'`",
        "the text is not closed: a `'` is missing",
    ),
    (
        "missing escaped value",
        "write `\\\\` for a backslash in text, or put the text in single quotes",
    ),
    (
        "unexpected leading zero",
        "a number does not begin with a zero",
    ),
];
