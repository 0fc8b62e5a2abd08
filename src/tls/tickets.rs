//! Session tickets that another image of the program believes too.
//!
//! A ticket is the session's state, encrypted with AES-256-GCM under a key that only this listener
//! has, behind the key's name. The key changes every six hours; the one before is believed as long.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::handover::{Moment, text};

/// How long a key makes tickets, and is believed after that.
const AGE: Duration = Duration::from_secs(6 * 3600);
/// Of a key, as of its ticket.
const NAME_LEN: usize = 16;
/// Of an AES-256 key.
const KEY_LEN: usize = 32;
/// What a state is with all certificates of a client; larger ones are nobody's.
const LONGEST: usize = 64 * 1024;

/// The keys of a listener.
pub(super) struct Tickets(Mutex<Keys>);

struct Keys {
    current: Key,
    /// What `current` has followed.
    last: Option<Key>,
    since: Instant,
}

struct Key {
    saved: SavedKey,
    key: RandomizedNonceKey,
}

/// The keys of a listener's session tickets, for another image of the program.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTickets {
    current: SavedKey,
    last: Option<SavedKey>,
    since: Moment,
    /// By what clients were verified that have them.
    trust: [u8; 32],
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedKey {
    name: [u8; NAME_LEN],
    #[serde(with = "text")]
    secret: Vec<u8>,
}

impl fmt::Debug for SavedTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SavedTickets(MASKED)")
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(MASKED)")
    }
}

impl Tickets {
    /// New keys.
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Keys {
            current: Key::new(),
            last: None,
            since: now,
        }))
    }

    /// What the next image has to know of it.
    pub(super) fn saved(&self, trust: [u8; 32], now: Instant) -> SavedTickets {
        let keys = self.keys(now);
        SavedTickets {
            current: keys.current.saved.clone(),
            last: keys.last.as_ref().map(|key| key.saved.clone()),
            since: Moment::of(keys.since),
            trust,
        }
    }

    /// The same again; nothing when these are no keys, or clients were verified otherwise: one that
    /// resumes its session is not verified again.
    pub(super) fn resumed(saved: &SavedTickets, trust: [u8; 32]) -> Option<Self> {
        let SavedTickets { current, last, .. } = saved;
        let last = match last {
            Some(last) => Some(Key::of(last.clone())?),
            None => None,
        };
        (saved.trust == trust).then_some(())?;
        Some(Self(Mutex::new(Keys {
            current: Key::of(current.clone())?,
            last,
            since: saved.since.instant(),
        })))
    }

    /// The keys of this moment.
    fn keys(&self, now: Instant) -> MutexGuard<'_, Keys> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.grow_old(now);
        keys
    }

    fn seal(&self, state: &[u8], now: Instant) -> Option<Vec<u8>> {
        let keys = self.keys(now);
        let Key { saved, key } = &keys.current;
        let mut sealed = state.to_vec();
        let aad = Aad::from(saved.name);
        let nonce = key.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some([&saved.name[..], nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: Instant) -> Option<Vec<u8>> {
        if ticket.len() > LONGEST {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys(now);
        let mut known = [Some(&keys.current), keys.last.as_ref()]
            .into_iter()
            .flatten();
        let Key { key, .. } = known.find(|key| key.saved.name == *name)?;
        let mut state = sealed.to_vec();
        let opened = key.open_in_place(nonce.into(), Aad::from(*name), &mut state);
        Some(opened.ok()?.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        2 * AGE.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, Instant::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, Instant::now())
    }
}

impl Keys {
    fn grow_old(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < AGE {
            return;
        }
        let before = std::mem::replace(&mut self.current, Key::new());
        self.last = (age < 2 * AGE).then_some(before);
        self.since = now;
    }
}

impl Key {
    fn new() -> Self {
        let mut name = [0; NAME_LEN];
        let mut secret = vec![0; KEY_LEN];
        for bytes in [&mut name[..], &mut secret[..]] {
            getrandom::fill(bytes).expect("the kernel has random bytes");
        }
        Self::of(SavedKey { name, secret }).expect("a key of this length is one")
    }

    fn of(saved: SavedKey) -> Option<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &saved.secret).ok()?;
        Some(Self { saved, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_believed_for_one_age_at_least_and_two_at_most() {
        let start = Instant::now();
        let tickets = Tickets::new(start);
        let second = Duration::from_secs(1);
        let ticket = tickets.seal(b"state", start + AGE - second).unwrap();
        let open = |at: Duration| tickets.open(&ticket, start + at);
        assert_eq!(open(AGE - second).as_deref(), Some(&b"state"[..]));
        assert_eq!(open(AGE).as_deref(), Some(&b"state"[..]));
        assert_eq!(open(2 * AGE - second).as_deref(), Some(&b"state"[..]));
        assert_eq!(open(2 * AGE), None);
        let ticket = tickets.seal(b"state", start + 2 * AGE).unwrap();
        assert_eq!(
            tickets.open(&ticket, start + 9 * AGE),
            None,
            "nobody came for long"
        );
    }

    #[test]
    fn another_image_believes_them_and_nobody_else() {
        let now = Instant::now();
        let tickets = Tickets::new(now);
        let old = tickets.seal(b"old", now).unwrap();
        let new = tickets.seal(b"new", now + AGE).unwrap();
        let saved = serde_json::to_string(&tickets.saved([1; 32], now + AGE)).unwrap();
        let saved: SavedTickets = serde_json::from_str(&saved).unwrap();
        assert!(Tickets::resumed(&saved, [2; 32]).is_none());
        let next = Tickets::resumed(&saved, [1; 32]).unwrap();
        assert_eq!(next.open(&old, now + AGE).as_deref(), Some(&b"old"[..]));
        assert_eq!(next.open(&new, now + AGE).as_deref(), Some(&b"new"[..]));
        assert_eq!(next.open(&old, now + 2 * AGE), None, "its time goes on");
        assert_eq!(Tickets::new(now).open(&new, now), None);
        for at in 0..new.len() {
            let mut changed = new.clone();
            changed[at] ^= 1;
            assert_eq!(next.open(&changed, now + AGE), None, "byte {at}");
            assert_eq!(next.open(&new[..at], now + AGE), None);
        }
        assert!(!format!("{next:?}").contains(char::is_numeric));
    }

    #[test]
    fn what_is_no_key_is_not_taken() {
        let now = Instant::now();
        let mut saved = Tickets::new(now).saved([0; 32], now);
        saved.current.secret.pop();
        assert!(Tickets::resumed(&saved, [0; 32]).is_none());
    }
}
