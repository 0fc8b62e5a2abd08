//! What of a request decides on its slot.

use std::net::IpAddr;

use super::{fields::trim, head::Field};
use crate::{
    affinity::Secrets,
    cluster::{Giver, Identity, Shown},
    config::{Affinity, Key},
};

/// Cookies of the name that are read: a signature is verified for each.
const MAX_COOKIES: usize = 8;

/// What identifies the client of a request. `learned` knows who gave out an id; `now` is in seconds
/// since 1970.
pub(super) fn identify(
    affinity: &Affinity,
    all: &[Field<'_>],
    target: &str,
    client: IpAddr,
    secrets: Option<&Secrets>,
    learned: impl FnOnce(&[u8]) -> Option<Giver>,
    now: u64,
) -> Identity {
    let (name, value) = match &affinity.key {
        Key::Cookie(config) => (Some(&*config.name), None),
        Key::Header(name) => (None, header(all, name)),
        Key::Query(name) => (None, query(target, name)),
        Key::Address | Key::None => (None, None),
    };
    let likely = name.into_iter().flat_map(|name| cookies(all, name));
    let shown = Shown {
        client,
        cookies: likely.take(MAX_COOKIES),
        value,
    };
    Identity::of(affinity, shown, secrets, learned, now)
}

/// The values of the cookies of this name (RFC 6265 §5.4). There may be several, of several paths
/// or domains, and HTTP/2 may send each in a field of its own.
fn cookies<'a>(all: &'a [Field<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let fields = all
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("cookie"));
    let pairs = fields.flat_map(|field| field.value.split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| trim(pair).strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The value of the first field of this name that has one.
fn header<'a>(all: &'a [Field<'a>], name: &str) -> Option<&'a [u8]> {
    let named = all
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(name));
    named
        .map(|field| field.value)
        .find(|value| !value.is_empty())
}

/// The value of the first parameter of this name that has one, as it is written.
fn query<'a>(target: &'a str, name: &str) -> Option<&'a [u8]> {
    let (_, query) = target.split_once('?')?;
    let mut values = query.split('&').filter_map(|pair| {
        let value = pair.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.as_bytes())
    });
    values.find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::affinity::{AffinityKey, SlotId, Token};

    fn field<'a>(name: &'a str, value: &'a str) -> Field<'a> {
        Field {
            name,
            value: value.as_bytes(),
        }
    }

    #[test]
    fn cookies_are_found_wherever_they_stand() {
        let all = [
            field("Cookie", "a=1; home=x;home=y; homer=no"),
            field("cookie", " home=z"),
        ];
        let found: Vec<_> = cookies(&all, "home").collect();
        assert_eq!(found, [b"x", b"y", b"z"]);
    }

    #[test]
    fn of_many_forged_cookies_only_some_are_read() {
        let secrets = Secrets::random(&[1; 32], "app");
        let affinity = Affinity {
            key: Key::Cookie(Arc::default()),
            ..Affinity::default()
        };
        let good = secrets.sign(Token {
            slot: SlotId::of("app/0"),
            generation: 1,
            expires: 10,
        });
        for (forged, is_read) in [(0, true), (MAX_COOKIES - 1, true), (MAX_COOKIES, false)] {
            let text = format!("{}homescar={good}", "homescar=forged;".repeat(forged));
            let all = [field("cookie", &text)];
            let client = IpAddr::from([1, 2, 3, 4]);
            let decided = identify(&affinity, &all, "/", client, Some(&secrets), |_| None, 0);
            assert_eq!(decided.token.is_some(), is_read, "{forged}");
        }
    }

    #[test]
    fn parameters_are_found_by_their_whole_name() {
        for (target, expected) in [
            ("/socket.io/?EIO=4&sid=abc&t=1", Some("abc")),
            ("/?xsid=1&sid=&sid=2", Some("2")),
            ("/sid=1", None),
            ("/?sid", None),
        ] {
            assert_eq!(
                query(target, "sid"),
                expected.map(str::as_bytes),
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_missing_or_empty_leaves_it_to_the_address() {
        let affinity = Affinity {
            key: Key::Header("x-user".into()),
            ..Affinity::default()
        };
        let client = IpAddr::from([1, 2, 3, 4]);
        let by = |all: &[Field<'_>]| identify(&affinity, all, "/", client, None, |_| None, 0);
        assert_eq!(by(&[]).by, "address");
        assert_eq!(by(&[field("X-User", "")]), by(&[]));
        let ann = by(&[field("X-User", "ann")]);
        assert_eq!(
            (ann.by, ann.key),
            ("header", AffinityKey::from_bytes(b"ann", 0))
        );
    }

    #[test]
    fn a_slot_is_known_to_those_it_gave_an_id_to() {
        let affinity = Affinity {
            key: Key::Query("sid".into()),
            ..Affinity::default()
        };
        let client = IpAddr::from([1, 2, 3, 4]);
        let giver = Giver {
            slot: SlotId::of("app/0"),
            generation: 3,
        };
        let learned = |id: &[u8]| (id == b"abc").then_some(giver);
        let decided = |target| identify(&affinity, &[], target, client, None, learned, 0);
        let [known, other, none] = ["/?sid=abc", "/?sid=abd", "/?sid="].map(decided);
        assert_eq!((known.giver, known.by), (Some(giver), "learned"));
        assert_eq!(
            known.key,
            AffinityKey::from_bytes(b"abc", 0),
            "for a second choice"
        );
        assert_eq!((other.giver, other.by), (None, "query"));
        assert_eq!((none.giver, none.by), (None, "address"));
        assert!(none.is_nameless && !known.is_nameless && !other.is_nameless);
    }
}
