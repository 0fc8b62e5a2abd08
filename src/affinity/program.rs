//! The affinity function as a classic-BPF program, for `SO_ATTACH_REUSEPORT_CBPF` (`socket(7)`).
//!
//! The kernel runs the program for the SYN of every client that comes to a group of listening
//! sockets on one port, and gives the connection to the socket whose index it returns. So the
//! client meets its worker with nobody in between. Pure: this emits instructions; attaching them
//! is somebody else's affair.
//!
//! ```text
//!          IPv4 or IPv6?
//!          IPv6: mapped? then as IPv4, else fold the words that the prefix needs
//!          IPv4: a probe address? return its position.  Mask
//!          key ^= key >> 17
//!          for each seed, 19 instructions:
//!              score = the rest of mix32 of key ^ seed
//!              better than the best? keep it, and the position of its slot
//!          return the position that was kept
//! ```

use std::net::Ipv4Addr;

use thiserror::Error;

use super::{
    Instruction, Masks, Table,
    key::{basis, leading_ones},
};

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// What a program returns when there is no slot to return: the index of no socket. The kernel
/// then picks a socket of the group by a hash of its own, over addresses and ports.
pub const NO_POSITION: u32 = u32::MAX;

/// What each seed adds to a program.
const INSTRUCTIONS_PER_SEED: usize = 19;

/// Cells of the machine: the key with the first step of the mix behind it, the best score so
/// far, and the position of the slot that has it.
const KEY: u32 = 0;
const SCORE: u32 = 1;
const POSITION: u32 = 2;

/// Offsets in the IP header: the version is the high half of the first byte.
const VERSION: u32 = 0;
const V4_SOURCE: u32 = 12;
const V6_SOURCE: u32 = 8;
/// The least first byte of an IPv6 header; that of an IPv4 header is 0x4f at most.
const V6_FIRST_BYTE: u32 = 0x60;

/// Source addresses that lead straight to a slot, past the hash: `base + i` to slot *i*.
///
/// They belong to 127.0.0.0/8, so nobody but a process of this machine can have them. A health
/// check uses them to reach one chosen worker through the public port, also a worker whose slot
/// takes no clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probes {
    base: u32,
    positions: Vec<Option<u32>>,
}

/// Why there cannot be such probe addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "{count} probe addresses from {base} on do not lie within 127.0.0.2 – 127.255.255.254: \
     choose another base, such as 127.72.83.0"
)]
pub struct ProbesOutside {
    /// The first address.
    pub base: Ipv4Addr,
    /// How many there should be.
    pub count: usize,
}

/// A program that would be longer than [`MAX_INSTRUCTIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the weights of the slots add up to {seeds}, and a program for the kernel holds {fit} \
     at most: have fewer slots, lower weights, or another mode"
)]
pub struct TooLong {
    /// The sum of the weights of the usable slots.
    pub seeds: usize,
    /// How great that sum may be: [`capacity`].
    pub fit: usize,
}

impl Probes {
    /// Probe addresses `base`, `base + 1`, … for slot 0, 1, …: `positions[slot]` is the index of
    /// its socket in the group. Behind the address of a slot without a socket (`None`) there is
    /// nothing: who comes from it is a client like any other.
    ///
    /// Positions that run along with the slots cost a constant few instructions, whatever their
    /// number; each place where they do not costs up to three more.
    ///
    /// # Errors
    /// When the addresses leave the loopback network, or would include 127.0.0.1, from which
    /// every local client comes, or 127.255.255.255, from which nobody can.
    pub fn new(
        base: Ipv4Addr,
        positions: impl Into<Vec<Option<u32>>>,
    ) -> Result<Self, ProbesOutside> {
        const FIRST: u64 = Ipv4Addr::new(127, 0, 0, 2).to_bits() as u64;
        const LAST: u64 = Ipv4Addr::new(127, 255, 255, 254).to_bits() as u64;
        let positions = positions.into();
        let first = u64::from(base.to_bits());
        let end = first + positions.len().max(1) as u64;
        if first < FIRST || end > LAST + 1 {
            let count = positions.len();
            return Err(ProbesOutside { base, count });
        }
        let base = base.to_bits();
        Ok(Self { base, positions })
    }

    /// The source address that leads to a slot; `None` for a slot that none leads to.
    #[must_use]
    pub fn address(&self, slot: usize) -> Option<Ipv4Addr> {
        let _socket = (*self.positions.get(slot)?)?;
        Some(Ipv4Addr::from_bits(self.base + slot as u32))
    }

    /// Stretches of slots whose positions run along with them: the first slot of each, and what
    /// is to be added to a slot for its position, `None` where there is no socket. Ascending,
    /// from slot 0; the last one has no end and no sockets.
    fn stretches(&self) -> Vec<(u32, Option<u32>)> {
        let mut stretches: Vec<(u32, Option<u32>)> = Vec::new();
        for (slot, position) in (0..).zip(self.positions.iter().chain([&None])) {
            let shift = position.map(|position| position.wrapping_sub(slot));
            if stretches.last().is_none_or(|(_, last)| *last != shift) {
                stretches.push((slot, shift));
            }
        }
        stretches
    }

    /// Ends with the position when the source is a probe address, else goes on after its last
    /// instruction. For IPv4 packets only.
    fn code(&self) -> Vec<Instruction> {
        const TO_THE_END: Instruction = Instruction::skip(usize::MAX);
        let mut code = vec![
            Instruction::load_word(V4_SOURCE),
            Instruction::subtract(self.base),
        ];
        for (first, shift) in self.stretches().into_iter().rev() {
            let found = match shift {
                None => vec![TO_THE_END],
                Some(0) => vec![Instruction::give_a()],
                Some(shift) => vec![Instruction::add(shift), Instruction::give_a()],
            };
            if first > 0 {
                code.push(Instruction::skip_unless_at_least(first, found.len()));
            }
            code.extend(found);
        }
        let left = (0..code.len()).rev();
        for (instruction, left) in code.iter_mut().zip(left) {
            if *instruction == TO_THE_END {
                *instruction = Instruction::skip(left);
            }
        }
        code
    }
}

/// How many seeds (the sum of the weights of all slots) a program can hold with these masks and
/// probe addresses.
#[must_use]
pub fn capacity(masks: Masks, probes: Option<&Probes>) -> usize {
    let left = MAX_INSTRUCTIONS.saturating_sub(key(masks, 0, probes).len() + END.len());
    // The first seed has nobody to be compared with.
    (left + COMPARISON) / INSTRUCTIONS_PER_SEED
}

impl Table {
    /// The program that picks by the source address of a packet what [`Table::candidates`] picks
    /// first among the usable slots, for [`AffinityKey::from_address`] of the same `masks` and
    /// `seed`.
    ///
    /// `positions[slot]` is what the program returns for the slot: the index of its socket in
    /// the group. A slot without one (`None`, or beyond the end of `positions`) is passed over:
    /// its clients get their next choice, all others stay. When all are passed over, the program
    /// returns [`NO_POSITION`]; a caller that would rather leave clients at home passes the
    /// positions of all slots.
    ///
    /// A packet that is too short to have a source address gets position 0, as the kernel ends
    /// a program so; there are no such packets behind a listening TCP socket.
    ///
    /// # Errors
    /// [`TooLong`], when the seeds of two or more usable slots do not fit.
    ///
    /// [`AffinityKey::from_address`]: super::AffinityKey::from_address
    pub fn program(
        &self,
        masks: Masks,
        seed: u64,
        positions: &[Option<u32>],
        probes: Option<&Probes>,
    ) -> Result<Vec<Instruction>, TooLong> {
        let usable = self.seeds().zip(positions);
        let usable: Vec<(&[u32], u32)> = usable
            .filter_map(|(seeds, position)| Some((seeds, (*position)?)))
            .collect();
        match *usable {
            [] => Ok(all_to(NO_POSITION, probes)),
            [(_, position)] => Ok(all_to(position, probes)),
            _ => {
                let mut code = key(masks, seed, probes);
                let seeds = usable
                    .iter()
                    .flat_map(|(seeds, position)| seeds.iter().map(|seed| (*seed, *position)));
                choose(seeds, &mut code);
                if code.len() <= MAX_INSTRUCTIONS {
                    return Ok(code);
                }
                Err(TooLong {
                    seeds: usable.iter().map(|(seeds, _)| seeds.len()).sum(),
                    fit: capacity(masks, probes),
                })
            }
        }
    }
}

/// A program that returns one position for everybody, but for probes.
fn all_to(position: u32, probes: Option<&Probes>) -> Vec<Instruction> {
    let mut code = Vec::new();
    if let Some(probes) = probes {
        let probes = probes.code();
        code.push(Instruction::load_byte(VERSION));
        code.push(Instruction::skip_unless_at_least(V6_FIRST_BYTE, 1));
        code.push(Instruction::skip(probes.len()));
        code.extend(probes);
    }
    code.push(Instruction::give(position));
    code
}

/// Leaves the key, the first step of the mix behind it, in its cell; or ends with the position
/// of a probe.
fn key(masks: Masks, seed: u64, probes: Option<&Probes>) -> Vec<Instruction> {
    let mut v4 = probes.map(Probes::code).unwrap_or_default();
    v4.push(Instruction::load_word(V4_SOURCE));
    let mask = [Instruction::and(leading_ones(masks.v4.into()))];
    let fold = fold(masks.v6.into(), seed);

    // A mapped address, ::ffff:a.b.c.d, is its IPv4 address; but no probe, which nobody could
    // tell from a forgery by that way.
    let mut v6 = vec![
        Instruction::load_word(V6_SOURCE),
        Instruction::skip_unless_equal(0, 6),
        Instruction::load_word(V6_SOURCE + 4),
        Instruction::skip_unless_equal(0, 4),
        Instruction::load_word(V6_SOURCE + 8),
        Instruction::skip_unless_equal(0xffff, 2),
        Instruction::load_word(V6_SOURCE + 12),
        Instruction::skip(fold.len() + 1 + v4.len()),
    ];
    v6.extend(fold);
    v6.push(Instruction::skip(v4.len() + mask.len()));

    let mut code = vec![
        Instruction::load_byte(VERSION),
        Instruction::skip_unless_at_least(V6_FIRST_BYTE, v6.len()),
    ];
    code.extend(v6);
    code.extend(v4);
    code.extend(mask);
    code.extend(MIX_FIRST);
    code.push(Instruction::store(KEY));
    code
}

/// A = the key of an IPv6 address.
fn fold(prefix: u32, seed: u64) -> Vec<Instruction> {
    let mut code = vec![Instruction::load(basis(seed))];
    for word in 0..prefix.min(128).div_ceil(32) {
        let mask = leading_ones(prefix - 32 * word);
        code.push(Instruction::copy_to_x());
        code.push(Instruction::load_word(V6_SOURCE + 4 * word));
        if mask != u32::MAX {
            code.push(Instruction::and(mask));
        }
        code.push(Instruction::xor_x());
        code.extend(MIX_FIRST);
        code.extend(MIX_REST);
    }
    code
}

/// Scores every seed and ends with the position of the best.
fn choose(seeds: impl Iterator<Item = (u32, u32)>, code: &mut Vec<Instruction>) {
    for (index, (seed, position)) in seeds.enumerate() {
        code.extend([Instruction::load_cell(KEY), Instruction::xor(seed)]);
        code.extend(MIX_REST);
        let keep = [
            Instruction::store(SCORE),
            Instruction::load(position),
            Instruction::store(POSITION),
        ];
        if index > 0 {
            let comparison: [_; COMPARISON] = [
                Instruction::load_x_cell(SCORE),
                Instruction::skip_unless_above_x(keep.len()),
            ];
            code.extend(comparison);
        }
        code.extend(keep);
    }
    code.extend(END);
}

/// How many instructions compare a score with the best so far.
const COMPARISON: usize = 2;

const END: [Instruction; 2] = [Instruction::load_cell(POSITION), Instruction::give_a()];

/// [`mix32_first`](super::mix::mix32_first).
const MIX_FIRST: [Instruction; 3] = fold_over(17);

/// [`mix32_rest`](super::mix::mix32_rest).
const MIX_REST: [Instruction; 12] = {
    let [a, b, c] = [fold_over(11), fold_over(15), fold_over(14)];
    [
        Instruction::multiply(0xed5a_d4bb),
        a[0],
        a[1],
        a[2],
        Instruction::multiply(0xac4c_1b51),
        b[0],
        b[1],
        b[2],
        Instruction::multiply(0x3184_8bab),
        c[0],
        c[1],
        c[2],
    ]
};

/// A ^= A >> bits.
const fn fold_over(bits: u32) -> [Instruction; 3] {
    [
        Instruction::copy_to_x(),
        Instruction::shift_right(bits),
        Instruction::xor_x(),
    ]
}
