//! WebSockets of this thread that are in another slot than their own.

use std::{sync::Arc, task::Waker};

use tokio::{task::yield_now, time::Instant};

use super::{Leaving, OPEN, places::Places};
use crate::cluster::{Snapshot, Standing, Stay};

/// Connections that are looked at before others of the thread get their turn.
const AT_ONCE: usize = 512;

/// Those that would now be taken by their own slot, each with its place; and whether there are others
/// that may be taken later.
pub(in crate::proxy) async fn strays(snapshot: Arc<Snapshot>) -> (Vec<(usize, Arc<Stay>)>, bool) {
    let (mut away, mut later) = (Vec::new(), false);
    let mut next = 0;
    // Who comes meanwhile says itself that it is not at home.
    while next < OPEN.with_borrow(Places::end) {
        OPEN.with_borrow(|open| {
            let view = snapshot.live();
            for place in next..next + AT_ONCE {
                let Some(stay) = open.get(place).and_then(|open| open.stay.as_ref()) else {
                    continue;
                };
                match snapshot.standing(stay, &view) {
                    Standing::Away(_) => away.push((place, Arc::clone(stay))),
                    Standing::Later => later = true,
                    Standing::AtHome | Standing::Settled => {}
                }
            }
        });
        next += AT_ONCE;
        yield_now().await;
    }
    (away, later)
}

/// Asks one of them to go home. False when it is gone or goes anyway.
pub(in crate::proxy) fn send_home(place: usize, stay: &Arc<Stay>) -> bool {
    OPEN.with_borrow_mut(|open| {
        let same = open.get_mut(place).filter(|open| {
            let own = open.stay.as_ref();
            own.is_some_and(|own| Arc::ptr_eq(own, stay))
        });
        let Some(open) = same else {
            return false;
        };
        let Some(farewell) = open.farewell().filter(|farewell| !farewell.was_said()) else {
            return false;
        };
        farewell.say(Instant::now(), Leaving::Home);
        open.waker.iter().for_each(Waker::wake_by_ref);
        true
    })
}
