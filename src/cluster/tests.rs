//! The table by its events, without a worker or a socket.

use std::{net::Ipv4Addr, num::NonZeroUsize, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{Asker, Event, Health, Route, Skip, Snapshot, Started, controller::step};
use crate::{
    affinity::AffinityKey,
    config::{self, Address, OnDown, ReadyBy, Source, Workers},
};

const SLOTS: usize = 5;
const HOLD: OnDown = OnDown::Hold(Duration::from_secs(2));

fn config(on_down: OnDown, ready: ReadyBy, count: usize) -> config::Cluster {
    let count = NonZeroUsize::new(count).expect("some slots");
    let workers = Workers {
        ready,
        ..Workers::new(vec!["true".into()], count)
    };
    let source = Source::Workers(Arc::new(workers));
    config::Cluster {
        on_down,
        ..config::Cluster::new("app", source)
    }
}

fn name(slot: usize) -> Arc<str> {
    format!("app/{slot}").into()
}

fn started(slot: usize, generation: u32) -> Event {
    let address = Address::Tcp((Ipv4Addr::LOCALHOST, 1).into());
    Event::Started(Started {
        slot: name(slot),
        generation,
        address,
        pid: 100 + generation,
        backlog: None,
        load: Arc::default(),
    })
}

fn ready(slot: usize, generation: u32) -> Event {
    Event::Ready {
        slot: name(slot),
        generation,
    }
}

fn checked(slot: usize, generation: u32, health: Health) -> Event {
    Event::Checked {
        slot: name(slot),
        generation,
        health,
    }
}

fn gone(slot: usize, generation: u32, why: Skip) -> Event {
    Event::Gone {
        slot: name(slot),
        generation,
        why,
    }
}

/// A cluster after these events; those that change nothing leave it as it is.
fn after(on_down: OnDown, events: impl IntoIterator<Item = Event>) -> Snapshot {
    let first = Snapshot::configured(&config(on_down, ReadyBy::Auto, SLOTS));
    events
        .into_iter()
        .fold(first, |now, event| step(&now, event).unwrap_or(now))
}

fn all_ready() -> Vec<Event> {
    (0..SLOTS)
        .flat_map(|slot| [started(slot, 1), ready(slot, 1)])
        .collect()
}

fn home(snapshot: &Snapshot, key: u32) -> usize {
    snapshot
        .table
        .home(AffinityKey::from_bits(key))
        .expect("a home")
}

/// A key whose home is this slot.
fn key_of(snapshot: &Snapshot, slot: usize) -> AffinityKey {
    let key = (0..)
        .find(|key| home(snapshot, *key) == slot)
        .expect("every slot has keys");
    AffinityKey::from_bits(key)
}

fn route(snapshot: &Snapshot, key: AffinityKey, may_hold: bool) -> Route {
    let asker = Asker {
        may_hold,
        ..Asker::new(key)
    };
    snapshot.route(&asker, &snapshot.live())
}

#[test]
fn a_worker_takes_no_client_before_it_is_ready() {
    for (by, says, is_checked, is_usable) in [
        (ReadyBy::Auto, true, false, true),
        (ReadyBy::Auto, false, true, true),
        (ReadyBy::Auto, false, false, false),
        (ReadyBy::Notify, false, true, false),
        (ReadyBy::Notify, true, false, true),
        (ReadyBy::Check, true, false, false),
        (ReadyBy::Check, false, true, true),
    ] {
        let mut now = Snapshot::configured(&config(HOLD, by, 1));
        assert_eq!(now.entries[0].skip, Some(Skip::Starting));
        now = step(&now, started(0, 1)).expect("a change");
        if says {
            now = step(&now, ready(0, 1)).expect("a change");
        }
        if is_checked {
            now = step(&now, checked(0, 1, Health::Healthy)).expect("a change");
        }
        assert_eq!(
            now.entries[0].skip.is_none(),
            is_usable,
            "{by:?} {says} {is_checked}"
        );
    }
}

#[test]
fn late_news_of_an_old_generation_changes_nothing() {
    let now = after(HOLD, all_ready());
    let now = step(&now, gone(2, 1, Skip::Restarting)).expect("a change");
    let now = step(&now, started(2, 2)).expect("a change");
    for late in [
        ready(2, 1),
        checked(2, 1, Health::Healthy),
        gone(2, 1, Skip::CrashLoop),
    ] {
        assert!(step(&now, late).is_none());
    }
    assert_eq!(now.entries[2].skip, Some(Skip::Starting));
    assert!(
        step(&now, ready(9, 1)).is_none(),
        "a slot that is not there"
    );
}

#[test]
fn a_restart_changes_no_table() {
    let before = after(HOLD, all_ready());
    let mut events = all_ready();
    events.extend([gone(1, 1, Skip::Restarting), started(1, 2), ready(1, 2)]);
    let now = after(HOLD, events);
    for key in 0..10_000 {
        assert_eq!(home(&now, key), home(&before, key));
    }
    let generation = |slot: usize| now.entries[slot].backend.as_ref().map(|b| b.generation);
    assert_eq!((generation(1), generation(2)), (Some(2), Some(1)));
}

/// A worker more is no reason for anybody to wait: until it is ready, all are where they were.
#[test]
fn nobody_waits_for_a_slot_that_is_added() {
    let before = after(HOLD, all_ready());
    let more = config(HOLD, ReadyBy::Auto, SLOTS + 1);
    let mut now = step(&before, Event::Configure(Arc::new(more))).expect("a change");
    let key = key_of(&now, SLOTS);
    let was = home(&before, key.bits());
    let at = |snapshot: &Snapshot| match route(snapshot, key, true) {
        Route::To { index, .. } => index,
        other => panic!("{other:?}"),
    };
    assert_eq!(at(&now), was);
    now = step(&now, started(SLOTS, 1)).expect("a change");
    assert_eq!(at(&now), was);
    now = step(&now, ready(SLOTS, 1)).expect("a change");
    assert_eq!(at(&now), SLOTS);
    // From then on it is as any other.
    now = step(&now, gone(SLOTS, 1, Skip::Restarting)).expect("a change");
    assert_eq!(route(&now, key, true), Route::Hold { index: SLOTS });
    // Where nobody serves, whoever comes first is waited for.
    let first = Snapshot::configured(&config(HOLD, ReadyBy::Auto, 2));
    let index = home(&first, 7);
    let key = AffinityKey::from_bits(7);
    assert_eq!(route(&first, key, true), Route::Hold { index });
}

#[test]
fn who_is_down_is_waited_for_only_while_it_is_coming_back() {
    for (why, is_held) in [(Skip::Restarting, true), (Skip::CrashLoop, false)] {
        let mut events = all_ready();
        events.push(gone(3, 1, why));
        let now = after(HOLD, events);
        let key = key_of(&now, 3);
        let held = route(&now, key, true);
        assert_eq!(held == Route::Hold { index: 3 }, is_held, "{why}");
        // When there is no time left to wait, it goes on, and says why it passed its home.
        let second = now.table.candidates(key).nth(1).expect("a second choice");
        let passed = Some((3, why));
        assert_eq!(
            route(&now, key, false),
            Route::To {
                index: second,
                passed
            }
        );
    }
}

#[test]
fn answers_that_are_wrong_are_no_hang() {
    for (answers, skip) in [(true, Skip::Unhealthy), (false, Skip::Unresponsive)] {
        let mut events = all_ready();
        events.push(checked(
            0,
            1,
            Health::Unhealthy {
                answers,
                why: "503".into(),
            },
        ));
        let now = after(HOLD, events);
        assert_eq!(now.entries[0].skip, Some(skip));
        assert_eq!(now.entries[0].is_coming_back(skip), !answers);
    }
}

#[test]
fn what_reject_and_next_do() {
    let mut down = all_ready();
    down.push(gone(0, 1, Skip::Restarting));
    let rejecting = after(OnDown::Reject, down);
    let key = key_of(&rejecting, 0);
    let why = Skip::Restarting;
    assert_eq!(
        route(&rejecting, key, true),
        Route::Reject { index: 0, why }
    );

    let mut down = all_ready();
    down.push(gone(0, 1, Skip::Restarting));
    let next = after(OnDown::Next, down);
    assert!(matches!(
        route(&next, key, true),
        Route::To {
            passed: Some((0, _)),
            ..
        }
    ));
}

#[test]
fn slots_that_stay_keep_what_stands_in_them() {
    let before = after(HOLD, all_ready());
    let more = Arc::new(config(HOLD, ReadyBy::Auto, SLOTS + 2));
    let now = step(&before, Event::Configure(more)).expect("a change");
    assert_eq!(now.entries.len(), SLOTS + 2);
    for (old, new) in before.entries.iter().zip(&now.entries) {
        assert!(Arc::ptr_eq(&old.slot, &new.slot));
        assert_eq!(old.backend, new.backend);
    }
    assert!(
        now.entries[SLOTS..]
            .iter()
            .all(|new| new.skip == Some(Skip::Starting))
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    (0..SLOTS, 1..4_u32, 0..7_u8).prop_map(|(slot, generation, kind)| match kind {
        0 => started(slot, generation),
        1 => ready(slot, generation),
        2 => checked(slot, generation, Health::Healthy),
        3 => checked(
            slot,
            generation,
            Health::Unhealthy {
                answers: true,
                why: "".into(),
            },
        ),
        4 => Event::Stopping {
            slot: name(slot),
            generation,
            why: Skip::Stopping,
        },
        5 => gone(slot, generation, Skip::Restarting),
        _ => gone(slot, generation, Skip::CrashLoop),
    })
}

proptest! {
    /// Whatever happens: known dead is never routed to, the home is taken when it is up, and
    /// nobody is turned away while a slot takes clients (but by `reject`).
    #[test]
    fn routes_are_sound(
        events in prop::collection::vec(any_event(), 0..40),
        key: u32,
        may_hold: bool,
        known in prop::option::of(0..SLOTS),
        failed in prop::collection::vec(0..SLOTS, 0..3),
        on_down in prop::sample::select(vec![HOLD, OnDown::Next, OnDown::Reject]),
    ) {
        let now = after(on_down, events);
        let failed: Vec<_> = failed.into_iter().map(name).collect();
        let is_usable = |index: usize| {
            let entry = &now.entries[index];
            entry.skip.is_none() && !failed.contains(&entry.slot.name)
        };
        let home = known.unwrap_or_else(|| home(&now, key));
        let asker = Asker {
            known,
            failed: &failed,
            may_hold,
            ..Asker::new(AffinityKey::from_bits(key))
        };
        match now.route(&asker, &now.live()) {
            Route::To { index, passed } => {
                prop_assert!(is_usable(index));
                prop_assert!(now.entries[index].backend.is_some());
                prop_assert_eq!(passed.map(|(slot, _)| slot), (index != home).then_some(home));
            }
            Route::Hold { index } => {
                prop_assert!(may_hold && !is_usable(home) && !is_usable(index));
                prop_assert!(matches!(on_down, OnDown::Hold(_)));
            }
            Route::Reject { index, .. } => {
                prop_assert!(index == home && !is_usable(home) && on_down == OnDown::Reject);
            }
            Route::Queue { .. } => prop_assert!(false, "nothing is ever full"),
            Route::Nowhere => prop_assert!(!(0..SLOTS).any(is_usable)),
        }
    }
}
