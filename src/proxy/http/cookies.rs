//! The cookie that tells a client its slot.

use std::fmt::Write as _;

use super::fields::list;
use crate::{
    affinity::{Secrets, SlotId, Token},
    config::{Cookie, SameSite, Secure},
};

/// Whether a client that came with `token` and was served by this generation of this slot is given
/// a new cookie. A cookie of a generation before leads to that while it drains.
///
/// A client whose slot is down and that was served by another keeps its cookie: the slot comes
/// back. `is_known` says that the token's slot still exists. `now` is in seconds since 1970.
pub(super) fn is_due(
    token: Option<Token>,
    (slot, generation): (SlotId, u32),
    is_known: bool,
    now: u64,
    config: &Cookie,
) -> bool {
    token.is_none_or(|token| match token.slot == slot {
        true => {
            let is_half_over = token.expires.saturating_sub(now) < config.ttl.as_secs() / 2;
            is_half_over || token.generation != generation
        }
        false => !is_known,
    })
}

/// The value of a `Set-Cookie` (RFC 6265 §4.1).
pub(super) fn set_cookie(
    config: &Cookie,
    secrets: &Secrets,
    slot: SlotId,
    generation: u32,
    now: u64,
    is_encrypted: bool,
) -> String {
    let ttl = config.ttl.as_secs();
    let token = secrets.sign(Token {
        slot,
        generation,
        expires: now.saturating_add(ttl),
    });
    let Cookie { name, path, .. } = config;
    let mut text = format!("{name}={token}; Path={path}; Max-Age={ttl}");
    if let Some(domain) = &config.domain {
        let _infallible = write!(text, "; Domain={domain}");
    }
    let is_secure = match config.secure {
        Secure::Auto => is_encrypted,
        Secure::On => true,
        Secure::Off => false,
    };
    if is_secure {
        text.push_str("; Secure");
    }
    if config.http_only {
        text.push_str("; HttpOnly");
    }
    text.push_str(match config.same_site {
        SameSite::Strict => "; SameSite=Strict",
        SameSite::Lax => "; SameSite=Lax",
        SameSite::None => "; SameSite=None",
    });
    text
}

/// Whether a cache that many clients share may store a response (RFC 9111 §3). It would hand a
/// cookie that came with it to all of them: `Set-Cookie` by itself keeps no cache from storing
/// (§7.3).
pub(super) fn may_be_shared<'a>(
    status: u16,
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> bool {
    let (mut is_said, mut is_forbidden, mut is_allowed_again) = (false, false, false);
    for (name, value) in fields {
        is_said |= name.eq_ignore_ascii_case("expires");
        if !name.eq_ignore_ascii_case("cache-control") {
            continue;
        }
        for directive in list(value) {
            let word = directive.split(|byte| *byte == b'=').next();
            let word = word.unwrap_or_default().to_ascii_lowercase();
            match &*word {
                // With names of fields it is about those alone.
                b"private" if directive.len() == word.len() => return false,
                b"no-store" => is_forbidden = true,
                b"must-understand" => is_allowed_again = true,
                b"public" | b"max-age" | b"s-maxage" => is_said = true,
                _ => {}
            }
        }
    }
    let is_by_default = matches!(
        status,
        // RFC 9110 §15.1; and a 304 brings its fields into what is stored already (§3.2).
        200 | 203 | 204 | 206 | 300 | 301 | 304 | 308 | 404 | 405 | 410 | 414 | 501
    );
    (is_said || is_by_default) && (!is_forbidden || is_allowed_again)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_given_once_and_anew_half_way() {
        let config = Cookie::default();
        let ttl = config.ttl.as_secs();
        let (here, there) = (SlotId::of("app/0"), SlotId::of("app/1"));
        let token = |slot| {
            let generation = 1;
            Some(Token {
                slot,
                generation,
                expires: ttl,
            })
        };
        let due = |token, is_known, now| is_due(token, (here, 1), is_known, now, &config);
        assert!(due(None, false, 0));
        assert!(!due(token(here), true, 0));
        assert!(due(token(here), true, ttl / 2 + 1));
        assert!(!due(token(there), true, 0), "it comes back");
        assert!(due(token(there), false, 0), "it does not");
        let next = is_due(token(here), (here, 2), true, 0, &config);
        assert!(next, "another generation serves it now");
    }

    #[test]
    fn a_cookie_has_its_attributes() {
        let secrets = Secrets::random(&[1; 32], "app");
        let slot = SlotId::of("app/0");
        let config = Cookie {
            domain: Some("example.org".to_owned()),
            ..Cookie::default()
        };
        let text = set_cookie(&config, &secrets, slot, 3, 1000, true);
        let (pair, attributes) = text.split_once("; ").unwrap();
        assert_eq!(
            attributes,
            "Path=/; Max-Age=86400; Domain=example.org; Secure; HttpOnly; SameSite=Lax"
        );
        let token = pair.strip_prefix("homescar=").unwrap();
        let read = secrets.read(token.as_bytes(), 1000).unwrap();
        assert_eq!(
            (read.slot, read.generation, read.expires),
            (slot, 3, 87_400)
        );
        assert!(!set_cookie(&config, &secrets, slot, 3, 1000, false).contains("Secure"));
    }

    #[test]
    fn what_a_shared_cache_may_store_is_known() {
        for (expected, status, fields) in [
            (true, 200, &[][..]),
            (true, 304, &[]),
            (false, 302, &[]),
            (false, 500, &[]),
            (false, 101, &[]),
            (true, 302, &[("Cache-Control", "max-age=60")]),
            (true, 302, &[("Expires", "0")]),
            (true, 200, &[("Cache-Control", "no-cache, Public")]),
            (false, 200, &[("cache-control", "public, PRIVATE")]),
            (
                false,
                200,
                &[
                    ("cache-control", "public"),
                    ("Cache-Control", "x, no-store"),
                ],
            ),
            (true, 200, &[("Cache-Control", "must-understand, no-store")]),
            (true, 200, &[("Cache-Control", "private=\"X-User\"")]),
            (true, 200, &[("Pragma", "private")]),
        ] {
            let all = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
            assert_eq!(may_be_shared(status, all), expected, "{status} {fields:?}");
        }
    }
}
