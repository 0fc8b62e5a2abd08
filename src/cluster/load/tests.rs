//! Who is moved for the sake of load, and who is not.

use std::{
    net::Ipv4Addr,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{super::controller::step, *};
use crate::{
    cluster::{Asker, Event, Route},
    config::{self, Address, Capacity, OnDown, OnFull, Source, StaticBackend},
};

/// Slots as a test has them.
struct Still {
    now: Instant,
    active: Vec<u64>,
    seats: u64,
}

impl View for Still {
    fn now(&self) -> Instant {
        self.now
    }

    fn active(&self, index: usize) -> u64 {
        self.active[index]
    }

    fn free(&self, index: usize) -> usize {
        self.seats.saturating_sub(self.active[index]) as usize
    }
}

fn still(slots: usize) -> Still {
    Still {
        now: Instant::now(),
        active: vec![0; slots],
        seats: u64::MAX,
    }
}

fn config(weights: &[u32]) -> config::Cluster {
    let backends = weights.iter().enumerate().map(|(index, weight)| {
        let address = Address::Tcp((Ipv4Addr::LOCALHOST, 1).into());
        let weight = NonZeroU32::new(*weight).unwrap();
        StaticBackend {
            name: format!("slot {index}").into(),
            address,
            weight,
        }
    });
    let source = Source::Static(backends.collect());
    config::Cluster {
        on_down: OnDown::Next,
        ..config::Cluster::new("app", source)
    }
}

fn bounded(weights: &[u32], max_load: f64) -> Snapshot {
    let mut config = config(weights);
    config.balance.max_load = Some(max_load);
    Snapshot::configured(&config)
}

fn limited(slots: usize, on_full: OnFull) -> Snapshot {
    let mut config = config(&vec![1; slots]);
    config.balance.capacity = Some(Capacity {
        on_full,
        ..Capacity::of(NonZeroUsize::MIN)
    });
    Snapshot::configured(&config)
}

/// The snapshot with a slot ejected, or tried again.
fn ejected(now: &Snapshot, index: usize, why: Option<&str>, at: Instant) -> Snapshot {
    let event = Event::Ejected {
        slot: Arc::clone(&now.entries[index].slot.name),
        generation: 0,
        why: why.map(Into::into),
    };
    step(now, event).expect("a change").with_returns(now, at)
}

fn key(bits: u32) -> AffinityKey {
    AffinityKey::from_bits(bits)
}

fn goes_to(snapshot: &Snapshot, asker: &Asker<'_>, view: &Still) -> (usize, Option<Skip>) {
    match snapshot.route(asker, view) {
        Route::To { index, passed } => (index, passed.map(|(_, why)| why)),
        other => panic!("{other:?}"),
    }
}

/// Lets clients come one after the other and stay; how many are not at home.
fn fill(snapshot: &Snapshot, view: &mut Still, keys: impl IntoIterator<Item = u32>) -> usize {
    let mut moved = 0;
    for bits in keys {
        let (index, why) = goes_to(snapshot, &Asker::new(key(bits)), view);
        view.active[index] += 1;
        moved += usize::from(why.is_some());
    }
    moved
}

proptest! {
    /// However skewed the crowd is, and whatever the weights are: no slot above its bound at the
    /// end, and nobody is turned away.
    #[test]
    fn no_slot_is_above_its_bound(
        weights in prop::collection::vec(1..5_u32, 2..12),
        max_load in 1.0..3.0_f64,
        hot in prop::collection::vec(any::<u32>(), 1..4),
        crowd in 0..1500_u32,
        seed: u32,
    ) {
        let snapshot = bounded(&weights, max_load);
        let mut view = still(weights.len());
        // Most are the same few clients; some are each somebody else.
        let keys = (0..crowd).map(|i| match i % 4 {
            0 => seed.wrapping_add(i),
            _ => hot[i as usize % hot.len()],
        });
        fill(&snapshot, &mut view, keys);
        prop_assert_eq!(view.active.iter().sum::<u64>(), u64::from(crowd));
        let all: u32 = weights.iter().sum();
        for (active, weight) in view.active.iter().zip(&weights) {
            let share = f64::from(crowd) * f64::from(*weight) / f64::from(all);
            prop_assert!(*active <= bound(max_load, share), "{:?}", view.active);
        }
    }

    /// A client whose home is known is no newcomer.
    #[test]
    fn who_is_at_home_stays(known in 0..4_usize, bits: u32) {
        let snapshot = bounded(&[1; 4], 1.25);
        let mut view = still(4);
        view.active[known] = 10_000;
        let asker = Asker { known: Some(known), ..Asker::new(key(bits)) };
        prop_assert_eq!(goes_to(&snapshot, &asker, &view), (known, None));
    }
}

/// Clients that are all different are as even as they can be: to move them would help nobody.
#[test]
fn of_an_even_crowd_hardly_anybody_is_moved() {
    let snapshot = bounded(&[1; 8], 1.25);
    let (mut view, crowd) = (still(8), 8_000);
    let moved = fill(&snapshot, &mut view, 0x0a00_0000..0x0a00_0000 + crowd);
    assert!(moved <= 8, "{moved} of {crowd}: {:?}", view.active);
    let few = fill(&snapshot, &mut still(8), (0..48).map(|i| i * 77_777));
    assert_eq!(few, 0);
}

#[test]
fn a_hot_slot_overflows_to_the_next_choice_of_each_client() {
    let snapshot = bounded(&[1; 4], 1.25);
    let mut view = still(4);
    let moved = fill(&snapshot, &mut view, std::iter::repeat_n(7, 400));
    assert!(moved > 200, "{moved}");
    let most = view.active.iter().max().copied();
    assert!(most <= Some(bound(1.25, 100.0)), "{:?}", view.active);
    // The first 16 of a slot are always at home.
    assert_eq!(
        fill(&snapshot, &mut still(4), std::iter::repeat_n(7, 16)),
        0
    );
}

#[test]
fn the_bound_is_that_of_the_paper_from_144_on() {
    assert_eq!(bound(1.25, 1000.0), 1250);
    assert_eq!(bound(1.25, 144.0), 180);
    assert_eq!(bound(1.25, 100.0), 130);
    assert_eq!(bound(1.25, 1.0), FLOOR);
}

#[test]
fn a_slot_that_comes_back_takes_its_clients_one_after_the_other() {
    let mut config = config(&[1; 4]);
    config.balance.slow_start = Some(Duration::from_secs(30));
    let first = Snapshot::configured(&config);
    let mut view = still(4);
    let begin = view.now;
    let keys = || (0..4000).map(key);
    let own: Vec<_> = keys().filter(|k| first.table.home(*k) == Some(2)).collect();
    let at_home = |snapshot: &Snapshot, view: &Still| -> Vec<AffinityKey> {
        let is_home = |k: &&AffinityKey| goes_to(snapshot, &Asker::new(**k), view).0 == 2;
        own.iter().filter(is_home).copied().collect()
    };
    assert_eq!(
        at_home(&first, &view).len(),
        own.len(),
        "at the start all are"
    );

    let out = ejected(&first, 2, Some("tests"), begin);
    assert_eq!(at_home(&out, &view).len(), 0);
    let back = ejected(&out, 2, None, begin);
    let mut before = Vec::new();
    for seconds in [0_u64, 3, 15, 27, 30] {
        view.now = begin + Duration::from_secs(seconds);
        let now = at_home(&back, &view);
        let expected = own.len() as f64 * seconds as f64 / 30.0;
        assert!(
            (now.len() as f64 - expected).abs() < own.len() as f64 * 0.05,
            "{}",
            now.len()
        );
        // Who is at home once stays there.
        assert!(before.iter().all(|k| now.contains(k)));
        before = now;
    }
    view.now = begin;
    let passed = goes_to(&back, &Asker::new(own[0]), &view);
    assert_eq!(passed.1, Some(Skip::WarmingUp));
    let known = Asker {
        known: Some(2),
        ..Asker::new(own[0])
    };
    assert_eq!(goes_to(&back, &known, &view), (2, None));
}

/// Load alone turns nobody away.
#[test]
fn when_all_slots_are_warming_up_clients_are_at_home() {
    let mut config = config(&[1; 3]);
    config.balance.slow_start = Some(Duration::from_secs(30));
    let (mut now, view) = (Snapshot::configured(&config), still(3));
    for index in 0..3 {
        now = ejected(&now, index, Some("tests"), view.now);
        now = ejected(&now, index, None, view.now);
    }
    for bits in 0..100 {
        let home = now.table.home(key(bits)).unwrap();
        assert_eq!(goes_to(&now, &Asker::new(key(bits)), &view), (home, None));
    }
}

#[test]
fn what_is_only_thought_to_be_bad_is_better_than_nothing() {
    let (first, view) = (Snapshot::configured(&config(&[1, 1])), still(2));
    let out = ejected(&first, 0, Some("tests"), view.now);
    let asker = Asker::new(key(1));
    assert_eq!(goes_to(&out, &asker, &view).0, 1);
    let failed = [Arc::clone(&out.entries[1].slot.name)];
    let asker = Asker {
        failed: &failed,
        ..asker
    };
    assert_eq!(goes_to(&out, &asker, &view).0, 0);
}

#[test]
fn what_becomes_of_the_clients_of_a_full_slot() {
    let full = Still {
        active: vec![1, 0, 0],
        seats: 1,
        ..still(3)
    };
    let all_full = Still {
        active: vec![1; 3],
        ..still(3)
    };
    let all_full = Still {
        seats: 1,
        ..all_full
    };
    let why = Skip::Full;
    for (on_full, patient, impatient, all, all_impatient) in [
        (OnFull::Queue, "queue", "next", "queue", "reject"),
        (OnFull::Next, "next", "next", "queue", "reject"),
        (OnFull::Reject, "reject", "reject", "reject", "reject"),
    ] {
        let now = limited(3, on_full);
        let bits = (0..)
            .find(|bits| now.table.home(key(*bits)) == Some(0))
            .unwrap();
        let next = now.table.candidates(key(bits)).nth(1).unwrap();
        for (view, may_queue, expected) in [
            (&full, true, patient),
            (&full, false, impatient),
            (&all_full, true, all),
            (&all_full, false, all_impatient),
        ] {
            let asker = Asker {
                may_queue,
                ..Asker::new(key(bits))
            };
            let expected = match expected {
                "queue" => Route::Queue { index: 0 },
                "reject" => Route::Reject { index: 0, why },
                _ => Route::To {
                    index: next,
                    passed: Some((0, why)),
                },
            };
            assert_eq!(now.route(&asker, view), expected, "{on_full:?} {may_queue}");
            // Who has a seat needs none.
            let seated = Asker {
                seated: Some(0),
                ..asker
            };
            assert_eq!(goes_to(&now, &seated, view), (0, None));
        }
    }
}
