//! The token of an affinity cookie: which slot a client is at home in, signed and dated.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 8 | the slot's [`SlotId`] |
//! | 4 | the generation that served the client, big-endian |
//! | 8 | when it ends, in seconds since 1970, big-endian |
//! | 16 | HMAC-SHA-256 (RFC 2104) of `"homescar cookie 1"`, the cluster's name, a zero byte and the 21 bytes before, cut to its first half |
//!
//! in base64url without padding (RFC 4648 §5): 50 characters. There is no address in it, and no
//! name; a token of one cluster is none of another.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use siphasher::sip::SipHasher13;

const VERSION: u8 = 1;
const SIGNED: usize = 21;
const BYTES: usize = SIGNED + 16;
/// Characters of a token.
const TEXT: usize = 50;
const CONTEXT: &[u8] = b"homescar cookie 1";

/// Bytes that a secret has at least.
const SHORTEST_SECRET: usize = 16;

/// Names a slot without telling its name. The same on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(u64);

impl SlotId {
    /// The id of a slot of this name: SipHash-1-3 under the keys 0 and `"slot id."` (ASCII,
    /// big-endian).
    #[must_use]
    pub fn of(name: &str) -> Self {
        let hasher = SipHasher13::new_with_keys(0, u64::from_be_bytes(*b"slot id."));
        Self(hasher.hash(name.as_bytes()))
    }

    /// One that was made elsewhere.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The id itself.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The slot that the client is at home in.
    pub slot: SlotId,
    /// The generation that served it.
    pub generation: u32,
    /// When the token ends, in seconds since 1970.
    pub expires: u64,
}

/// What signs the tokens of a cluster: the first secret signs, each of them is believed.
#[derive(Clone)]
pub struct Secrets {
    keys: Vec<Hmac<Sha256>>,
}

/// A file of secrets cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretsError {
    /// A line is too short to be a secret.
    #[error(
        "line {line} has {bytes} bytes, and a secret has at least {SHORTEST_SECRET}; make one with \
         `openssl rand -hex 32`"
    )]
    Short {
        /// Counted from 1.
        line: usize,
        /// How many bytes it has.
        bytes: usize,
    },
    /// There is no secret in it.
    #[error("there is no secret in it; write one a line, as made by `openssl rand -hex 32`")]
    Empty,
}

impl Secrets {
    /// Of the cluster of this name.
    ///
    /// `text` is a secret a line; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    ///
    /// When a line is too short, or there is none.
    pub fn parse(text: &str, cluster: &str) -> Result<Self, SecretsError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let secret = line.trim();
            if secret.is_empty() || secret.starts_with('#') {
                continue;
            }
            if secret.len() < SHORTEST_SECRET {
                return Err(SecretsError::Short {
                    line: index + 1,
                    bytes: secret.len(),
                });
            }
            keys.push(key(secret.as_bytes(), cluster));
        }
        if keys.is_empty() {
            return Err(SecretsError::Empty);
        }
        Ok(Self { keys })
    }

    /// Of the cluster of this name, from random bytes.
    #[must_use]
    pub fn random(bytes: &[u8; 32], cluster: &str) -> Self {
        Self {
            keys: vec![key(bytes, cluster)],
        }
    }

    /// The text of a token.
    #[must_use]
    pub fn sign(&self, token: Token) -> String {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&token.slot.0.to_be_bytes());
        bytes[9..13].copy_from_slice(&token.generation.to_be_bytes());
        bytes[13..SIGNED].copy_from_slice(&token.expires.to_be_bytes());
        if let Some(key) = self.keys.first() {
            let mac = key.clone().chain_update(&bytes[..SIGNED]).finalize();
            bytes[SIGNED..].copy_from_slice(&mac.into_bytes()[..BYTES - SIGNED]);
        }
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What a text says, if one of the secrets signed it and it has not ended at `now` (seconds
    /// since 1970). Anything else is no token, whatever is wrong with it.
    #[must_use]
    pub fn read(&self, text: &[u8], now: u64) -> Option<Token> {
        if text.len() != TEXT {
            return None;
        }
        let mut bytes = [0; BYTES];
        let decoded = BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
        if decoded != Ok(BYTES) || bytes[0] != VERSION {
            return None;
        }
        let (signed, mac) = bytes.split_at(SIGNED);
        let is_ours = |key: &Hmac<Sha256>| {
            let signature = key.clone().chain_update(signed);
            signature.verify_truncated_left(mac).is_ok()
        };
        if !self.keys.iter().any(is_ours) {
            return None;
        }
        let token = Token {
            slot: SlotId(u64::from_be_bytes(signed[1..9].try_into().ok()?)),
            generation: u32::from_be_bytes(signed[9..13].try_into().ok()?),
            expires: u64::from_be_bytes(signed[13..].try_into().ok()?),
        };
        (token.expires > now).then_some(token)
    }
}

/// Never shows a secret.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.keys.len())
    }
}

fn key(secret: &[u8], cluster: &str) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(secret)
        .expect("HMAC takes a key of any length")
        .chain_update(CONTEXT)
        .chain_update(cluster.as_bytes())
        .chain_update([0])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets(text: &str) -> Secrets {
        Secrets::parse(text, "app").unwrap()
    }

    const OLD: &str = "old secret of sixteen bytes and more";
    const NEW: &str = "new secret of sixteen bytes and more";

    /// Made elsewhere must be read here: whatever changes this breaks every cookie.
    #[test]
    fn golden() {
        let token = Token {
            slot: SlotId::of("app/3"),
            generation: 7,
            expires: 2_000_000_000,
        };
        assert_eq!(
            secrets(OLD).sign(token),
            "ASZCrb1J0exxAAAABwAAAAB3NZQAoKU2ptlNFvUoZpHGgFvpJQ"
        );
    }

    #[test]
    fn keys_rotate_and_clusters_are_apart() {
        let token = Token {
            slot: SlotId::of("app/3"),
            generation: 1,
            expires: 100,
        };
        let text = secrets(OLD).sign(token);
        let both = secrets(&format!("# today\n{NEW}\n\n{OLD}\n"));
        assert_eq!(both.read(text.as_bytes(), 99), Some(token));
        assert_eq!(both.read(text.as_bytes(), 100), None, "it has ended");
        assert_eq!(secrets(NEW).read(text.as_bytes(), 0), None);
        assert_eq!(
            secrets(NEW).read(both.sign(token).as_bytes(), 0),
            Some(token)
        );
        let elsewhere = Secrets::parse(OLD, "api").unwrap();
        assert_eq!(elsewhere.read(text.as_bytes(), 0), None);
    }

    #[test]
    fn a_bad_file_is_explained_and_not_shown() {
        assert_eq!(
            Secrets::parse("# no\n\n", "app").unwrap_err(),
            SecretsError::Empty
        );
        let error = Secrets::parse("\nhunter2\n", "app").unwrap_err();
        assert_eq!(error, SecretsError::Short { line: 2, bytes: 7 });
        assert!(!error.to_string().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn what_was_signed_is_read_and_nothing_else(
            id: u64, generation: u32, expires in 1u64.., bit in 0usize..400,
        ) {
            let token = Token { slot: SlotId(id), generation, expires };
            let secrets = secrets(OLD);
            let mut text = secrets.sign(token).into_bytes();
            prop_assert_eq!(text.len(), TEXT);
            prop_assert_eq!(secrets.read(&text, expires - 1), Some(token));
            text[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(secrets.read(&text, 0), None);
        }

        #[test]
        fn nothing_makes_it_panic(text: Vec<u8>) {
            prop_assert_eq!(secrets(OLD).read(&text, 0), None);
        }
    }
}
