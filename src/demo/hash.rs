//! The CPU-bound work of the demo: PBKDF2 (RFC 8018), as the starting point's `POST /hash` does it.

use std::{num::NonZeroUsize, thread};

use pbkdf2::pbkdf2_hmac_array;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::time::Instant;

use super::{
    DemoError,
    pool::{Busy, Lost, Pool, State},
};

const ITERATIONS: u32 = 150_000;
const SALT: &[u8] = b"salt";
/// Threads at the most; fewer on a machine with fewer cores.
const THREADS_AT_MOST: usize = 4;
const QUEUE_LIMIT: usize = 16;
/// The longest password, in bytes: the work must not depend on what the client sends.
const PASSWORD_AT_MOST: usize = 256;

/// Where to do the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Place {
    /// On the pool: the loop goes on.
    #[default]
    Pool,
    /// On the event loop itself: all who share it wait.
    Loop,
}

/// A password's hash, and what it cost.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Hashed {
    /// 32 bytes in hex.
    pub(super) hash: String,
    /// From the request to the result, waiting included; in milliseconds.
    pub(super) ms: f64,
    /// Where it was done.
    pub(super) on: Place,
}

/// Why there is no hash.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum HashError {
    /// The password is too long.
    #[error("a password has at most {PASSWORD_AT_MOST} bytes")]
    TooLong,
    /// The pool is full.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// The pool broke.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl HashError {
    /// The status of HTTP that says it.
    pub(super) const fn status(self) -> u16 {
        match self {
            Self::TooLong => 400,
            Self::Busy(_) => 429,
            Self::Lost(_) => 500,
        }
    }
}

/// Hashes passwords, here or there.
#[derive(Debug)]
pub(super) struct Hasher {
    pool: Pool,
}

impl Hasher {
    /// Starts the pool: a thread per core, at least one and at most four.
    ///
    /// # Errors
    /// [`DemoError::System`] when the system gives no threads.
    pub(super) fn start() -> Result<Self, DemoError> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = NonZeroUsize::new(cores.min(THREADS_AT_MOST)).unwrap_or(NonZeroUsize::MIN);
        let pool = Pool::start(threads, QUEUE_LIMIT).map_err(|source| DemoError::System {
            what: "the threads of the pool",
            source,
        })?;
        Ok(Self { pool })
    }

    /// Hashes `password` at `place`.
    ///
    /// # Errors
    /// [`HashError::Busy`] at once when the pool is full.
    pub(super) async fn hash(&self, password: String, place: Place) -> Result<Hashed, HashError> {
        if password.len() > PASSWORD_AT_MOST {
            return Err(HashError::TooLong);
        }
        let asked = Instant::now();
        let hash = match place {
            Place::Pool => self.pool.submit(move || derive(&password))?.await?,
            Place::Loop => derive(&password),
        };
        Ok(Hashed {
            hash,
            ms: (asked.elapsed().as_secs_f64() * 10_000.0).round() / 10.0,
            on: place,
        })
    }

    /// What the pool is at.
    pub(super) fn pool(&self) -> State {
        self.pool.state()
    }
}

fn derive(password: &str) -> String {
    to_hex(&pbkdf2_hmac_array::<Sha256, 32>(
        password.as_bytes(),
        SALT,
        ITERATIONS,
    ))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_published_vectors() {
        // RFC 7914 §11, first vector (it asks for 64 bytes; the first 32 are the same).
        let first = pbkdf2_hmac_array::<Sha256, 32>(b"passwd", b"salt", 1);
        assert_eq!(
            to_hex(&first),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
        );
    }

    #[tokio::test]
    async fn a_long_password_is_refused_before_any_work() {
        let hasher = Hasher::start().unwrap();
        let refused = hasher.hash("x".repeat(257), Place::Pool).await;
        assert_eq!(refused.unwrap_err().status(), 400);
    }
}
