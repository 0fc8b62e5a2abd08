//! `affinity = { … }`: how clients are told apart.

use std::sync::Arc;

use super::Context;
use crate::config::{
    Affinity, Cookie, Key, SameSite, Secure,
    file::{Item, Section},
    keys::{self, closest},
    value,
};

impl Context<'_> {
    pub(super) fn affinity(&self, section: &Section<'_>) -> Affinity {
        let default = Affinity::default();
        let affinity = section.get("affinity");
        let Some(affinity) = affinity.and_then(|item| item.section(&keys::AFFINITY)) else {
            return default;
        };
        let seed = affinity.get("seed");
        let seed = seed.and_then(|item| item.integer(0..=u64::MAX));
        let key = affinity.get("key").and_then(|item| item.parsed(key));
        let key = key.unwrap_or(default.key);
        let prefix = |name: &str, most: u8| {
            let item = affinity.get(name)?;
            if key == Key::None {
                item.fault("has no meaning with key = \"none\"; remove one of the two");
            }
            u8::try_from(item.integer(0..=most.into())?).ok()
        };
        let (v4, v6) = (prefix("prefix_v4", 32), prefix("prefix_v6", 128));
        let cookie = affinity.get("cookie");
        let key = match (key, cookie) {
            (Key::Cookie(_), Some(item)) => Key::Cookie(Arc::new(self.cookie(&item))),
            (key, Some(item)) => {
                item.fault("is for key = \"cookie\" only; say so, or remove it");
                key
            }
            (key, None) => key,
        };
        Affinity {
            key,
            prefix_v4: v4.unwrap_or(default.prefix_v4),
            prefix_v6: v6.unwrap_or(default.prefix_v6),
            seed: seed.unwrap_or(default.seed),
        }
    }

    fn cookie(&self, item: &Item<'_>) -> Cookie {
        let default = Cookie::default();
        let Some(section) = item.section(&keys::COOKIE) else {
            return default;
        };
        let attribute = |key: &str, what: &str| {
            let item = section.get(key)?;
            item.parsed(|text| match is_attribute(text) {
                true => Ok(text.to_owned()),
                false => Err(format!("must be {what}, is {}", value::quoted(text))),
            })
        };
        let name = section.get("name");
        let name = name.and_then(|item| item.parsed(|text| token(text, "the name of a cookie")));
        let secure = section.get("secure").and_then(|item| match item.as_text() {
            Some("auto") => Some(Secure::Auto),
            _ => Some(if item.boolean()? {
                Secure::On
            } else {
                Secure::Off
            }),
        });
        let secure = secure.unwrap_or(default.secure);
        let same_site = section.get("same_site").and_then(|item| {
            let word: SameSite = item.word()?;
            if word == SameSite::None && secure == Secure::Off {
                item.fault("browsers take SameSite=None only with Secure; remove secure = false");
            }
            Some(word)
        });
        let ttl = section.get("ttl").and_then(|item| item.duration());
        let secrets = section.get("secrets").and_then(|item| item.text());
        Cookie {
            name: name.unwrap_or(default.name),
            path: attribute("path", "a path, as in \"/\"").unwrap_or(default.path),
            domain: attribute("domain", "a domain, as in \"example.org\"").or(default.domain),
            secure,
            http_only: section
                .get("http_only")
                .and_then(|item| item.boolean())
                .unwrap_or(default.http_only),
            same_site: same_site.unwrap_or(default.same_site),
            ttl: ttl.unwrap_or(default.ttl),
            secrets: secrets.map(|text| self.folder.join(text)),
        }
    }
}

/// `address`, `cookie`, `header:NAME`, `query:NAME` or `none`.
pub(in crate::config) fn key(text: &str) -> Result<Key, String> {
    let choices = "\"address\", \"cookie\", \"header:NAME\", \"query:NAME\" or \"none\"";
    match text.split_once(':').unwrap_or((text, "")) {
        ("address", "") => Ok(Key::Address),
        ("cookie", "") => Ok(Key::Cookie(Arc::default())),
        ("none", "") => Ok(Key::None),
        ("header", name) if !name.is_empty() => {
            let name = token(name, "the name of a header")?;
            Ok(Key::Header(name.to_ascii_lowercase().into()))
        }
        ("query", name) if !name.is_empty() => {
            let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"&=#".contains(&byte);
            match name.bytes().all(is_plain) {
                true => Ok(Key::Query(name.into())),
                false => Err(format!(
                    "{} is not the name of a parameter as it stands in a URL",
                    value::quoted(name)
                )),
            }
        }
        (kind @ ("header" | "query"), _) => {
            Err(format!("must name the {kind}, as in \"{kind}:x-user\""))
        }
        _ => {
            let hint = closest(text, &["address", "cookie", "header:", "query:"]);
            let hint = hint.map(|meant| format!("; did you mean \"{meant}\"?"));
            Err(format!(
                "must be {choices}, is {}{}",
                value::quoted(text),
                hint.unwrap_or_default()
            ))
        }
    }
}

/// A token (RFC 9110 §5.6.2).
fn token(text: &str, what: &str) -> Result<String, String> {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_tchar) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "must be {what} (letters, digits and -_.), is {}",
            value::quoted(text)
        )),
    }
}

/// What can stand in an attribute of a cookie.
fn is_attribute(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b';')
}
