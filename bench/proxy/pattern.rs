//! An endless stream of bytes that shows at once when some are lost, doubled or swapped.

use super::Outcome;

/// A prime, so that no block size of a proxy is a multiple of it.
const PERIOD: usize = 65_521;

/// The most that is sent or read at one time.
pub(crate) const CHUNK: usize = 256 * 1024;

/// The stream, long enough to take a chunk at any position of a period.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

/// Where one end is within its stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(usize);

impl Pattern {
    pub(crate) fn new() -> Self {
        let mut random = fastrand::Rng::with_seed(0x686f_6d65);
        let period: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(PERIOD)
            .collect();
        Self(
            period
                .iter()
                .copied()
                .cycle()
                .take(PERIOD + CHUNK)
                .collect(),
        )
    }

    /// What comes next: always a whole chunk.
    pub(crate) fn next(&self, at: Position) -> &[u8] {
        &self.0[at.0..at.0 + CHUNK]
    }

    /// Checks what came, at most a chunk.
    pub(crate) fn check(&self, at: &mut Position, came: &[u8]) -> Outcome {
        if self.next(*at)[..came.len()] != *came {
            return Err("the bytes that came are not the bytes that were sent".into());
        }
        at.advance(came.len());
        Ok(())
    }
}

impl Position {
    pub(crate) const fn advance(&mut self, bytes: usize) {
        self.0 = (self.0 + bytes) % PERIOD;
    }
}
