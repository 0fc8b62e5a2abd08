//! Which records are written: all, none, or a share of those that tell of nothing odd.

use std::{
    hash::Hasher as _,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use siphasher::sip::SipHasher13;

use crate::config::Records;

/// Of a million.
static SHARE: AtomicU32 = AtomicU32::new(Records::ALL.per_million());

/// Changes which records are written, of all listeners.
pub fn write_records(records: Records) {
    SHARE.store(records.per_million(), Relaxed);
}

/// Whether a record is written. What failed always is, unless none are; of the others a share, by
/// what `identity` says: whoever sees the same connection or request decides the same.
pub(super) fn is_written(has_failed: bool, identity: impl FnOnce(&mut SipHasher13)) -> bool {
    is_within(SHARE.load(Relaxed), has_failed, identity)
}

fn is_within(share: u32, has_failed: bool, identity: impl FnOnce(&mut SipHasher13)) -> bool {
    if share >= Records::ALL.per_million() {
        return true;
    }
    if share == 0 || has_failed {
        return share > 0;
    }
    let mut hasher = SipHasher13::new();
    identity(&mut hasher);
    hasher.finish() % u64::from(Records::ALL.per_million()) < u64::from(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share_and_failures_are_not_left_out() {
        let within = |share, failed, id: u32| is_within(share, failed, |h| h.write_u32(id));
        let written = |share| (0..10_000).filter(|id| within(share, false, *id)).count();
        assert_eq!((written(0), written(1_000_000)), (0, 10_000));
        assert!(
            (900..1100).contains(&written(100_000)),
            "{}",
            written(100_000)
        );
        assert!((0..1000).all(|id| within(1, true, id)));
        assert!(!within(0, true, 1), "off is off");
        assert_eq!(within(500_000, false, 7), within(500_000, false, 7));
    }
}
