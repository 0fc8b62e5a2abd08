//! Who is sent home, how fast, and who is left alone; in a world whose time is told.

mod world;

use std::{
    net::Ipv4Addr,
    num::{NonZeroU32, NonZeroUsize},
};

use proptest::prelude::*;

use self::world::World;
use super::{super::controller::step, *};
use crate::{
    affinity::AffinityKey,
    cluster::{AdminState, Event},
    config::{self, Address, Capacity, Key, OnDown, OnFull, Source, StaticBackend},
};

const RATE: u32 = 7;
const HOUR: Duration = asked::REMEMBERED;

fn config(slots: usize) -> config::Cluster {
    let backends = (0..slots).map(|index| StaticBackend {
        name: format!("slot {index}").into(),
        address: Address::Tcp((Ipv4Addr::LOCALHOST, 1).into()),
        weight: NonZeroU32::MIN,
    });
    let mut config = config::Cluster {
        on_down: OnDown::Next,
        ..config::Cluster::new("app", Source::Static(backends.collect()))
    };
    config.balance.rebalance = NonZeroU32::new(RATE);
    config
}

#[test]
fn those_who_were_moved_come_home_one_after_the_other_and_then_it_rests() {
    let mut world = World::crowded(&config(4), 400, 1);
    world.run(HOUR);
    assert_eq!((world.sent.len(), world.away()), (0, 0));
    world.eject(2, true);
    let moved = world.away();
    assert!(moved > 50, "{moved}");
    world.run(HOUR / 60);
    assert!(world.sent.is_empty(), "there is nobody to go to");

    world.eject(2, false);
    let back = world.now;
    world.run(HOUR / 2);
    assert_eq!((world.sent.len(), world.away()), (moved, 0));
    let (_, last) = world.sent[moved - 1];
    let expected = STABLE + Duration::from_secs(moved as u64 - 1) / RATE;
    let took = last - back;
    assert!(took >= expected && took < expected + 2 * PAUSE, "{took:?}");
    world.check();
    let looks = world.looks;
    world.run(24 * HOUR);
    assert_eq!(world.looks, looks, "there is nothing to look for");
}

#[test]
fn whoever_shares_a_key_is_sent_too_but_nobody_twice_within_the_hour() {
    let mut world = World::crowded(&config(4), 300, 10);
    let mut expected = 0;
    for hour in 0..3 {
        world.eject(1, true);
        expected += world.away();
        world.eject(1, false);
        world.run(HOUR / 4);
        assert_eq!((world.sent.len(), world.away()), (expected, 0), "{hour}");
        // Whom a slot that falls again has moved again stays where it is.
        world.eject(1, true);
        let moved = world.away();
        world.eject(1, false);
        world.run(HOUR / 4);
        assert_eq!((world.sent.len(), world.away()), (expected, moved));
        world.leave(0);
        world.leave(2);
        world.leave(3);
        world.run(HOUR);
        world.check();
    }
}

/// Found by the property below: those on their way seemed to make room for one more.
#[test]
fn who_is_counted_twice_makes_no_room() {
    let mut config = config(4);
    config.balance.max_load = Some(1.0);
    let mut world = World::new(&config);
    let grow = |world: &mut World| {
        let mut grown = self::config(world.snapshot.entries.len() + 1);
        grown.balance = config.balance.clone();
        world.event(Event::Configure(Arc::new(grown)));
    };
    for client in 0..80_u32 {
        world.come(client.wrapping_mul(0x9e37_79b1), None);
    }
    world.eject(1, true);
    world.admin(2, AdminState::Drain);
    grow(&mut world);
    world.run(Duration::from_millis(7286));
    for slot in [1, 3, 0] {
        world.eject(slot, true);
    }
    grow(&mut world);
    for slot in 0..world.snapshot.entries.len() {
        world.eject(slot, false);
        world.admin(slot, AdminState::Ready);
    }
    world.run(2 * HOUR);
    world.check();
}

#[test]
fn another_image_of_the_program_knows_who_was_asked() {
    let mut world = World::crowded(&config(4), 100, 1);
    world.eject(0, true);
    let moved = world.away();
    world.eject(0, false);
    world.run(HOUR / 10);
    assert_eq!((world.sent.len(), world.away()), (moved, 0));
    // They have to leave it again, and the image that is there when it is back was never told of them.
    let saved = world.rebalance.asked.saved();
    let asked = Asked::default();
    asked.resume(saved.clone());
    assert_eq!(asked.saved(), saved);
    world.rebalance = Rebalance::new(asked);
    world.eject(0, true);
    world.eject(0, false);
    world.run(HOUR / 10);
    assert_eq!((world.sent.len(), world.away()), (moved, moved));
    world.check();
}

#[test]
fn when_nobody_else_can_be_remembered_nobody_else_is_sent() {
    let mut world = World::crowded(&config(4), 100, 1);
    for other in 0..asked::MOST {
        let key = AffinityKey::from_bits(0x8000_0000 + other as u32);
        world.rebalance.asked.note(key, world.now);
    }
    let full_until = world.now + HOUR;
    world.eject(0, true);
    let moved = world.away();
    world.eject(0, false);
    world.run(HOUR - Duration::from_secs(1));
    assert_eq!(world.sent.len(), 0);
    world.run(HOUR / 10);
    assert_eq!((world.sent.len(), world.away()), (moved, 0));
    assert!(world.sent.iter().all(|(_, at)| *at >= full_until));
}

#[test]
fn a_slot_with_few_seats_draws_no_more_than_can_sit() {
    const SEATS: usize = 20;
    let mut config = config(2);
    config.balance.capacity = Some(Capacity {
        on_full: OnFull::Next,
        ..Capacity::of(NonZeroUsize::new(SEATS).unwrap())
    });
    let mut world = World::new(&config);
    world.seats = SEATS;
    let homed = |world: &World, home| {
        let all = (0..u32::MAX).map(AffinityKey::from_bits);
        let table = Arc::clone(&world.snapshot.table);
        all.filter(move |key| table.home(*key) == Some(home))
    };
    let own: Vec<_> = homed(&world, 0).take(SEATS + 8).collect();
    for key in &own {
        world.come(key.bits(), None);
    }
    assert_eq!(world.away(), 8);
    world.run(HOUR / 2);
    assert_eq!(world.sent.len(), 0, "it is full");
    assert!(world.looks < 40, "{} looks in vain", world.looks);
    // Three go for good. They sat at home, so they are the first.
    world.clients.drain(..3);
    world.run(HOUR / 4);
    assert_eq!((world.sent.len(), world.away()), (3, 5));
    world.check();
}

#[test]
fn while_a_slot_starts_slowly_its_clients_come_as_it_takes_them() {
    const SLOW: u64 = 120;
    let mut config = config(4);
    config.balance.slow_start = Some(Duration::from_secs(SLOW));
    let mut world = World::crowded(&config, 400, 1);
    world.eject(3, true);
    let moved = world.away();
    world.eject(3, false);
    let mut before = moved;
    for seconds in (20..=SLOW).step_by(20) {
        world.run(Duration::from_secs(20));
        let share = moved as f64 * (1.0 - seconds as f64 / SLOW as f64);
        let away = world.away();
        assert!(
            (away as f64 - share).abs() < 12.0,
            "{away} at {seconds} s, not {share}"
        );
        assert!(away < before);
        before = away;
    }
    world.run(2 * LONGEST_PAUSE);
    assert_eq!((world.sent.len(), world.away()), (moved, 0));
    world.check();
}

#[test]
fn what_others_see_to_is_left_alone() {
    let config = config(3);
    let world = World::new(&config);
    let now = &world.snapshot;
    let key = AffinityKey::from_bits(5);
    let home = now.table.home(key).unwrap();
    let here = (home + 1) % 3;
    let entry = &now.entries[here];
    let away = Stay {
        slot: Arc::clone(&entry.slot.stats),
        load: Arc::clone(&entry.backend.as_ref().unwrap().load),
        key,
        known: None,
        config: Arc::clone(&now.config),
        since: world.now,
    };
    let standing = |now: &Snapshot, stay: &Stay| now.standing(stay, &now.live());
    assert_eq!(standing(now, &away), Standing::Away(home));
    let with = |change: fn(&mut Stay)| {
        let mut stay = away.clone();
        change(&mut stay);
        standing(now, &stay)
    };
    assert_eq!(with(|stay| stay.slot = Arc::default()), Standing::Settled);
    let another = |stay: &mut Stay| {
        let config = Arc::make_mut(&mut stay.config);
        config.affinity.seed = 7;
    };
    assert_eq!(with(another), Standing::Settled, "its key may be another");
    let same = |stay: &mut Stay| Arc::make_mut(&mut stay.config).connect_timeout *= 2;
    assert_eq!(with(same), Standing::Away(home));

    for state in [AdminState::Drain, AdminState::Maint] {
        for index in [home, here] {
            let slot = Arc::clone(&now.entries[index].slot.name);
            let now = step(now, Event::Admin { slot, state }).unwrap();
            assert_eq!(standing(&now, &away), Standing::Settled);
            // With a cookie too: who comes with it is let in, but nobody is made to come.
            let known = Some(now.entries[home].slot.id);
            let stay = Stay {
                known,
                ..away.clone()
            };
            assert_eq!(standing(&now, &stay), Standing::Settled);
        }
    }
    let replaced = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut now = step(now, Event::Configure(Arc::new(config.clone()))).unwrap();
        assert_eq!(
            standing(&now, &away),
            Standing::Away(home),
            "of static ones"
        );
        change(&mut now.entries);
        standing(&now, &away)
    };
    for index in [home, here] {
        let with_next = |entries: &mut Vec<Entry>| {
            entries[index].next = entries[index].backend.clone();
        };
        assert_eq!(replaced(&with_next), Standing::Settled, "is to be replaced");
    }
    let leaving = |entries: &mut Vec<Entry>| {
        entries[here].leaving = vec![Arc::clone(now.entries[here].backend.as_ref().unwrap())];
    };
    assert_eq!(replaced(&leaving), Standing::Settled, "was replaced");
}

#[test]
fn home_is_where_the_cookie_says() {
    let world = World::new(&config(3));
    let now = &world.snapshot;
    let key = AffinityKey::from_bits(5);
    let hashed = now.table.home(key).unwrap();
    for here in 0..3 {
        for known in [None, Some(0), Some(1), Some(2)] {
            let entry = &now.entries[here];
            let stay = Stay {
                slot: Arc::clone(&entry.slot.stats),
                load: Arc::clone(&entry.backend.as_ref().unwrap().load),
                key,
                known: known.map(|index: usize| now.entries[index].slot.id),
                config: Arc::clone(&now.config),
                since: world.now,
            };
            let home = known.unwrap_or(hashed);
            let expected = match home == here {
                true => Standing::AtHome,
                false => Standing::Away(home),
            };
            assert_eq!(now.standing(&stay, &now.live()), expected);
        }
    }
}

#[test]
fn off_is_off_until_it_is_on_and_without_a_key_nobody_has_a_home() {
    let mut config = config(4);
    config.balance.rebalance = None;
    let mut world = World::crowded(&config, 100, 1);
    world.eject(0, true);
    let moved = world.away();
    world.eject(0, false);
    world.run(HOUR);
    assert_eq!((world.sent.len(), world.looks), (0, 0));
    config.balance.rebalance = NonZeroU32::new(RATE);
    world.event(Event::Configure(Arc::new(config.clone())));
    world.run(HOUR / 2);
    assert_eq!((world.sent.len(), world.away()), (moved, 0));
    world.check();

    config.affinity.key = Key::None;
    let mut world = World::crowded(&config, 100, 1);
    world.eject(0, true);
    world.eject(0, false);
    world.run(HOUR);
    assert_eq!(world.sent.len(), 0);
}

/// What may happen to a cluster.
#[derive(Clone, Debug)]
enum Incident {
    Eject(usize, bool),
    Admin(usize, AdminState),
    Lost(usize),
    Grow,
    Come(u16),
    Pass(u64),
}

fn incident() -> impl Strategy<Value = Incident> {
    let admin = prop_oneof![
        Just(AdminState::Ready),
        Just(AdminState::Drain),
        Just(AdminState::Maint)
    ];
    prop_oneof![
        3 => (0..4_usize, any::<bool>()).prop_map(|(slot, out)| Incident::Eject(slot, out)),
        2 => (0..4_usize, admin).prop_map(|(slot, state)| Incident::Admin(slot, state)),
        1 => (0..4_usize).prop_map(Incident::Lost),
        1 => Just(Incident::Grow),
        2 => any::<u16>().prop_map(Incident::Come),
        4 => (0..90_000_u64).prop_map(Incident::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_it_is_gentle_and_in_the_end_all_are_home(
        incidents in prop::collection::vec(incident(), 1..40),
        shared in 1..4_u32,
        max_load in prop::option::of(1.0..1.5),
        seats in prop_oneof![Just(usize::MAX), Just(usize::MAX), 20..60_usize],
    ) {
        let mut config = config(4);
        config.balance.max_load = max_load;
        if seats < usize::MAX {
            config.balance.capacity = Some(Capacity {
                on_full: OnFull::Next,
                ..Capacity::of(NonZeroUsize::new(seats).unwrap())
            });
        }
        let mut world = World::new(&config);
        world.seats = seats;
        for client in 0..80_u32 {
            world.come((client / shared).wrapping_mul(0x9e37_79b1), None);
        }
        for incident in incidents {
            match incident {
                Incident::Eject(slot, is_out) => world.eject(slot, is_out),
                Incident::Admin(slot, state) => world.admin(slot, state),
                Incident::Lost(slot) => world.leave(slot),
                Incident::Come(key) => world.come(u32::from(key) << 16 | 1, None),
                Incident::Pass(millis) => world.run(Duration::from_millis(millis)),
                Incident::Grow => {
                    let mut grown = self::config(world.snapshot.entries.len() + 1);
                    grown.balance = config.balance.clone();
                    if world.snapshot.entries.len() < 7 {
                        world.event(Event::Configure(Arc::new(grown)));
                    }
                }
            }
        }
        for slot in 0..world.snapshot.entries.len() {
            world.eject(slot, false);
            world.admin(slot, AdminState::Ready);
        }
        // By then even those can be asked who were asked just now.
        world.run(HOUR + HOUR / 2);
        world.eject(0, true);
        world.eject(0, false);
        world.run(HOUR / 2);
        world.check();
        if max_load.is_none() && seats == usize::MAX {
            prop_assert_eq!(world.away(), 0);
        }
    }
}
