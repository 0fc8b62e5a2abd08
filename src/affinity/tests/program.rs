//! The program picks what the table picks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{
    AffinityKey, Table, app,
    machine::{check, packet, run},
    properties::slots,
    weighted,
};
use crate::affinity::{
    Instruction, MAX_INSTRUCTIONS, MAX_WEIGHT, Masks, NO_POSITION, Probes, ProbesOutside, capacity,
};

const BASE: Ipv4Addr = Ipv4Addr::new(127, 72, 83, 0);
const USUAL: Masks = Masks { v4: 32, v6: 64 };

fn identity(slots: usize) -> Vec<Option<u32>> {
    (0..slots as u32).map(Some).collect()
}

fn probes(positions: &[Option<u32>]) -> Probes {
    Probes::new(BASE, positions).unwrap()
}

fn program(
    table: &Table,
    masks: Masks,
    seed: u64,
    positions: &[Option<u32>],
    probes: Option<&Probes>,
) -> Vec<Instruction> {
    let program = table.program(masks, seed, positions, probes).unwrap();
    assert_eq!(check(&program), Ok(()));
    program
}

/// What the program must return.
fn expected(
    table: &Table,
    masks: Masks,
    seed: u64,
    positions: &[Option<u32>],
    source: IpAddr,
) -> u32 {
    let key = AffinityKey::from_address(source, masks, seed);
    let mut usable = table.candidates(key).filter_map(|slot| positions[slot]);
    usable.next().unwrap_or(NO_POSITION)
}

/// Any address: IPv4, IPv6, mapped, and those that nearly are.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = any::<u32>().prop_map(Ipv4Addr::from_bits);
    let low = any::<u64>();
    let word = || prop_oneof![Just(0_u32), Just(0xffff), any::<u32>()];
    let words = [word(), word(), word(), word()];
    prop_oneof![
        3 => v4.prop_map(IpAddr::V4),
        3 => any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        1 => low.prop_map(|low| Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(low)).into()),
        1 => any::<u32>().prop_map(|v4| Ipv4Addr::from_bits(v4).to_ipv6_mapped().into()),
        1 => words.prop_map(|words| {
            let bits = words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
            Ipv6Addr::from_bits(bits).into()
        }),
    ]
}

fn masks() -> impl Strategy<Value = Masks> {
    (0..=40_u8, 0..=140_u8).prop_map(|(v4, v6)| Masks { v4, v6 })
}

/// A hundred thousand clients of tables of all sizes, with skipped slots, weights and masks.
#[test]
fn a_hundred_thousand_clients_are_sent_where_the_table_says() {
    const SIZES: [(usize, usize); 6] = [
        (1, 1_000),
        (2, 5_000),
        (3, 6_000),
        (8, 8_000),
        (64, 1_500),
        (180, 500),
    ];
    let all_masks = [(32, 64), (24, 48), (0, 0), (32, 128), (17, 33), (24, 56)];
    let mut random = fastrand::Rng::with_seed(3);
    let (mut clients, mut passed_over) = (0, 0);
    for (v4, v6) in all_masks {
        let masks = Masks { v4, v6 };
        for (size, count) in SIZES {
            let seed = random.u64(..);
            let heavy = if size > 64 { 1 } else { 3 };
            let names: Vec<(String, u32)> = (0..size)
                .map(|slot| (format!("app/{slot}"), random.u32(1..=heavy)))
                .collect();
            let table = weighted(seed, &names);
            let mut sockets: Vec<u32> = (0..size as u32).collect();
            random.shuffle(&mut sockets);
            let positions: Vec<Option<u32>> = sockets
                .into_iter()
                .map(|socket| (random.u8(..4) > 0).then_some(socket))
                .collect();
            let program = program(&table, masks, seed, &positions, None);
            for _ in 0..count {
                let source: IpAddr = match random.u8(..8) {
                    0..4 => Ipv4Addr::from_bits(random.u32(..)).into(),
                    4..7 => Ipv6Addr::from_bits(random.u128(..)).into(),
                    _ => Ipv4Addr::from_bits(random.u32(..)).to_ipv6_mapped().into(),
                };
                let wanted = expected(&table, masks, seed, &positions, source);
                assert_eq!(
                    run(&program, &packet(source)).0,
                    wanted,
                    "{source} {masks:?}"
                );
                let key = AffinityKey::from_address(source, masks, seed);
                let home = table.home(key).unwrap();
                passed_over += usize::from(positions[home].is_none());
                clients += 1;
            }
        }
    }
    assert!(clients >= 100_000, "{clients}");
    assert!(passed_over > clients / 10, "{passed_over} of {clients}");
}

proptest! {
    #[test]
    fn any_table_any_masks_any_skips_any_client(
        seed: u64,
        (slots, positions) in slots().prop_flat_map(|slots| {
            let positions = prop::collection::vec(any::<Option<u32>>(), slots.len());
            (Just(slots), positions)
        }),
        masks in masks(),
        sources in prop::collection::vec(address(), 32),
    ) {
        let table = weighted(seed, &slots);
        let program = program(&table, masks, seed, &positions, None);
        for source in sources {
            let wanted = expected(&table, masks, seed, &positions, source);
            prop_assert_eq!(run(&program, &packet(source)).0, wanted, "{}", source);
        }
    }

    /// Whichever sockets there are, and whichever slots take clients.
    #[test]
    fn probes_reach_each_socket_and_change_nothing_for_others(
        seed: u64,
        slots in 1..40_usize,
        random: u64,
        sources in prop::collection::vec(address(), 8),
        masks in masks(),
    ) {
        let mut random = fastrand::Rng::with_seed(random);
        let shift = random.u32(..3);
        let sockets: Vec<Option<u32>> = (0..slots as u32)
            .map(|slot| match random.u8(..8) {
                0 => None,
                1 => Some(random.u32(..)),
                _ => Some(slot + shift),
            })
            .collect();
        let usable: Vec<Option<u32>> = sockets
            .iter()
            .map(|socket| socket.filter(|_| random.bool()))
            .collect();
        let table = app(seed, slots);
        let probes = probes(&sockets);
        let program = program(&table, masks, seed, &usable, Some(&probes));
        let near = (-3..slots as i64 + 300).map(|i| {
            Ipv4Addr::from_bits((i64::from(BASE.to_bits()) + i) as u32).into()
        });
        for source in near.chain(sources) {
            let probed = match source {
                IpAddr::V4(v4) => sockets
                    .get(v4.to_bits().wrapping_sub(BASE.to_bits()) as usize)
                    .copied()
                    .flatten(),
                IpAddr::V6(_) => None,
            };
            let wanted = probed
                .unwrap_or_else(|| expected(&table, masks, seed, &usable, source));
            prop_assert_eq!(run(&program, &packet(source)).0, wanted, "{}", source);
        }
    }
}

#[test]
fn a_mapped_address_is_no_probe() {
    let positions = identity(8);
    let table = app(0, 8);
    let probes = probes(&positions);
    let program = program(&table, USUAL, 0, &positions, Some(&probes));
    let mut elsewhere = 0;
    for slot in 0..8 {
        let address = probes.address(slot).unwrap();
        let mapped = address.to_ipv6_mapped().into();
        let wanted = expected(&table, USUAL, 0, &positions, mapped);
        assert_eq!(run(&program, &packet(mapped)).0, wanted);
        assert_eq!(run(&program, &packet(address.into())).0, slot as u32);
        elsewhere += u32::from(wanted != slot as u32);
    }
    assert!(elsewhere > 0);
}

#[test]
fn without_a_usable_slot_only_probes_have_a_position() {
    let table = app(0, 4);
    for nobody in [&[None; 4][..], &[]] {
        let program = program(&table, USUAL, 0, nobody, Some(&probes(&identity(4))));
        for (source, position) in [
            ("127.72.83.2", 2),
            ("127.72.83.4", NO_POSITION),
            ("10.0.0.1", NO_POSITION),
            ("::1", NO_POSITION),
        ] {
            let source = packet(source.parse().unwrap());
            assert_eq!(run(&program, &source).0, position);
        }
    }
    let program = table.program(USUAL, 0, &[None; 4], None).unwrap();
    assert_eq!(program, [Instruction::give(NO_POSITION)]);
}

#[test]
fn more_slots_than_a_byte_counts_have_probes() {
    let positions = identity(1000);
    let probes = probes(&positions);
    assert_eq!(probes.address(999), Some(Ipv4Addr::new(127, 72, 86, 231)));
    assert_eq!(probes.address(1000), None);
    let usable = [vec![None; 998], identity(2)].concat();
    let program = program(&app(0, 1000), USUAL, 0, &usable, Some(&probes));
    for slot in 0..1000 {
        let source = probes.address(slot).unwrap().into();
        let (position, steps) = run(&program, &packet(source));
        assert_eq!((position, steps), (slot as u32, 6));
    }
}

#[test]
fn probes_stay_in_the_loopback_network_and_leave_its_usual_address_alone() {
    for (base, count, fits) in [
        ("127.0.0.2", 1, true),
        ("127.0.0.1", 1, false),
        ("127.0.0.0", 256, false),
        ("126.255.255.255", 300, false),
        ("127.255.255.250", 5, true),
        ("127.255.255.250", 6, false),
        ("127.255.255.255", 0, false),
        ("10.0.0.0", 1, false),
        ("0.0.0.0", 0, false),
        ("255.255.255.255", 4, false),
    ] {
        let base: Ipv4Addr = base.parse().unwrap();
        let probes = Probes::new(base, identity(count));
        assert_eq!(probes.is_ok(), fits, "{base} and {count}");
        if let Err(fault) = probes {
            assert_eq!(fault, ProbesOutside { base, count });
        }
    }
    assert_eq!(
        Probes::new(Ipv4Addr::BROADCAST, identity(4))
            .unwrap_err()
            .to_string(),
        "4 probe addresses from 255.255.255.255 on do not lie within 127.0.0.2 – \
         127.255.255.254: choose another base, such as 127.72.83.0"
    );
}

#[test]
fn the_length_of_a_program_is_known() {
    let positions = identity(8);
    let probes = probes(&positions);
    for (v4, v6, with_probes, len, fit) in [
        (32, 64, true, 211, 212),
        (32, 64, false, 206, 212),
        (24, 48, true, 212, 212),
        (0, 0, false, 170, 214),
        (32, 128, true, 247, 210),
    ] {
        let masks = Masks { v4, v6 };
        let probes = with_probes.then_some(&probes);
        let program = program(&app(0, 8), masks, 0, &positions, probes);
        assert_eq!(
            (program.len(), capacity(masks, probes)),
            (len, fit),
            "{masks:?}"
        );
    }
}

#[test]
fn what_fits_fits_and_one_more_does_not() {
    for masks in [USUAL, Masks { v4: 0, v6: 0 }, Masks { v4: 24, v6: 128 }] {
        let fit = capacity(masks, None);
        let table = app(0, fit);
        assert!(program(&table, masks, 0, &identity(fit), None).len() > MAX_INSTRUCTIONS - 19);
        let table = app(0, fit + 1);
        let fault = table
            .program(masks, 0, &identity(fit + 1), None)
            .unwrap_err();
        assert_eq!((fault.seeds, fault.fit), (fit + 1, fit));
        // A slot that is passed over takes no room.
        let usable = [identity(fit), vec![None]].concat();
        program(&table, masks, 0, &usable, None);
    }
    let heavy = weighted(0, &[("a", MAX_WEIGHT), ("b", 1)]);
    let fault = heavy.program(USUAL, 0, &identity(2), None).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the weights of the slots add up to 257, and a program for the kernel holds 212 at \
         most: have fewer slots, lower weights, or another mode"
    );
    assert_eq!(program(&heavy, USUAL, 0, &[Some(0)], None).len(), 1);
}

#[test]
fn a_packet_without_a_source_gets_position_zero() {
    let table = app(0, 8);
    let program = program(&table, USUAL, 0, &identity(8), None);
    let source = packet([10, 0, 0, 1].into());
    for len in 0..16 {
        assert_eq!(run(&program, &source[..len]).0, 0);
    }
}
