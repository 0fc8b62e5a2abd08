//! Choices: types of which each value has a word.

use std::{fmt, str::FromStr};

use super::{
    Contract, LogFormat, LogLevel, Mode, OnFull, ProxyVersion, ReadyBy, SameSite, TlsVersion,
    keys::closest, value::quoted,
};

/// A type with a word for each of its values.
pub(super) trait Word: Copy + PartialEq + 'static {
    /// The words. A value's first word is the one that is printed.
    const WORDS: &'static [(&'static str, Self)];
    /// Words that later versions will have.
    const LATER: &'static [&'static str] = &[];
}

/// The value of a word.
pub(super) fn word<T: Word>(text: &str) -> Result<T, String> {
    if let Some((_, value)) = T::WORDS.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let typed = quoted(text);
    let choices = choices::<T>();
    let prefixed = |word: &str| word.ends_with(':') && text.starts_with(word);
    if T::LATER.iter().any(|word| *word == text || prefixed(word)) {
        return Err(format!(
            "{typed} is not available in this version; use {choices}"
        ));
    }
    // Among short words everything is alike.
    let words = T::WORDS.iter().map(|(word, _)| *word);
    let words: Vec<_> = words.filter(|word| word.len() > 3).collect();
    let hint = closest(text, &words).map(|meant| format!("; did you mean \"{meant}\"?"));
    Err(format!(
        "must be {choices}, is {typed}{}",
        hint.unwrap_or_default()
    ))
}

/// The word of a value.
pub(super) fn word_of<T: Word>(value: T) -> &'static str {
    let found = T::WORDS.iter().find(|(_, candidate)| *candidate == value);
    found.map_or("", |(word, _)| word)
}

/// All words of a type, for a message.
pub(super) fn choices<T: Word>() -> String {
    let words: Vec<_> = T::WORDS
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    match words.as_slice() {
        [] => String::new(),
        [word] => word.clone(),
        [words @ .., last] => format!("{} or {last}", words.join(", ")),
    }
}

impl Word for Mode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("tcp", Self::Tcp),
        ("http", Self::Http),
        ("direct", Self::Direct),
    ];
}

impl Word for SameSite {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("lax", Self::Lax),
        ("strict", Self::Strict),
        ("none", Self::None),
    ];
}

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::V12), ("1.3", Self::V13)];
}

impl Word for Contract {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("port", Self::Port),
        ("unix", Self::Unix),
        ("fd", Self::Fd),
        ("node", Self::Node),
    ];
}

/// A contract, or the one that suits the command.
impl Word for Option<Contract> {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("port", Some(Contract::Port)),
        ("unix", Some(Contract::Unix)),
        ("fd", Some(Contract::Fd)),
        ("node", Some(Contract::Node)),
        ("auto", None),
    ];
}

impl Word for ReadyBy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("notify", Self::Notify),
        ("check", Self::Check),
    ];
}

impl Word for OnFull {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("queue", Self::Queue),
        ("next", Self::Next),
        ("reject", Self::Reject),
    ];
}

impl Word for Option<ProxyVersion> {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("v1", Some(ProxyVersion::V1)),
        ("v2", Some(ProxyVersion::V2)),
        ("off", None),
    ];
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

impl Word for LogLevel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// A contract as it is typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContractChoice(
    /// `None` for `auto`: the one that suits the command.
    pub Option<Contract>,
);

impl FromStr for ContractChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text).map(Self)
    }
}

/// As in the file.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word_of(*self))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text)
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text)
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text)
    }
}
