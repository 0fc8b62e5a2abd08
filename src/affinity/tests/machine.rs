//! Classic BPF as the kernel checks and runs it: `bpf_check_classic` and `check_load_and_stores`
//! of `net/core/filter.c`, and the instructions of `<linux/bpf_common.h>` that programs here use.

use std::net::IpAddr;

use crate::affinity::{Instruction, MAX_INSTRUCTIONS};

const CELLS: usize = 16;

/// What an instruction does to the flow.
#[derive(Clone, Copy)]
enum Flow {
    Next,
    Jump,
    Branch,
    End,
}

fn flow(code: u16) -> Option<Flow> {
    match code {
        0x00 | 0x02 | 0x04 | 0x07 | 0x14 | 0x20 | 0x24 | 0x30 | 0x54 | 0x60 | 0x61 | 0x74
        | 0xa4 | 0xac => Some(Flow::Next),
        0x05 => Some(Flow::Jump),
        0x15 | 0x2d | 0x35 => Some(Flow::Branch),
        0x06 | 0x16 => Some(Flow::End),
        _ => None,
    }
}

/// Whether the kernel would take a program.
pub(super) fn check(program: &[Instruction]) -> Result<(), String> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(format!("{} instructions", program.len()));
    }
    // For each instruction, the cells that are filled on every way to it.
    let mut filled = vec![u16::MAX; program.len()];
    filled[0] = 0;
    for (at, &Instruction { code, jt, jf, k }) in program.iter().enumerate() {
        let Some(flow) = flow(code) else {
            return Err(format!("{at}: no such instruction {code:#x}"));
        };
        let mut cells = filled[at];
        match code {
            0x02 | 0x60 | 0x61 if k as usize >= CELLS => return Err(format!("{at}: cell {k}")),
            0x02 => cells |= 1 << k,
            0x60 | 0x61 if cells & 1 << k == 0 => return Err(format!("{at}: cell {k} is empty")),
            0x74 if k >= 32 => return Err(format!("{at}: shift by {k}")),
            _ => {}
        }
        let ways = match flow {
            Flow::Next => vec![0],
            Flow::Jump => vec![k as usize],
            Flow::Branch => vec![jt.into(), jf.into()],
            Flow::End => vec![],
        };
        for skip in ways {
            let Some(there) = filled.get_mut(at + 1 + skip) else {
                return Err(format!("{at}: leads out of the program"));
            };
            *there &= cells;
        }
    }
    match flow(program[program.len() - 1].code) {
        Some(Flow::End) => Ok(()),
        _ => Err("does not end".to_owned()),
    }
}

/// The result of a program for a packet that begins with its IP header, and how many instructions
/// it took. A load beyond the packet ends a program with 0, as in the kernel.
pub(super) fn run(program: &[Instruction], packet: &[u8]) -> (u32, usize) {
    let at_offset = |k: u32| usize::try_from(k.wrapping_add(0x10_0000)).ok();
    let (mut a, mut x, mut cells) = (0_u32, 0_u32, [0_u32; CELLS]);
    let mut next = 0;
    for steps in 1.. {
        let Instruction { code, jt, jf, k } = program[next];
        next += 1;
        let mut branch = |holds: bool| next += usize::from(if holds { jt } else { jf });
        match code {
            0x00 => a = k,
            0x02 => cells[k as usize] = a,
            0x04 => a = a.wrapping_add(k),
            0x05 => next += k as usize,
            0x06 => return (k, steps),
            0x07 => x = a,
            0x14 => a = a.wrapping_sub(k),
            0x15 => branch(a == k),
            0x16 => return (a, steps),
            0x20 => match at_offset(k).and_then(|at| packet.get(at..at + 4)) {
                Some(word) => a = u32::from_be_bytes(word.try_into().unwrap()),
                None => return (0, steps),
            },
            0x24 => a = a.wrapping_mul(k),
            0x2d => branch(a > x),
            0x30 => match at_offset(k).and_then(|at| packet.get(at)) {
                Some(byte) => a = u32::from(*byte),
                None => return (0, steps),
            },
            0x35 => branch(a >= k),
            0x54 => a &= k,
            0x60 => a = cells[k as usize],
            0x61 => x = cells[k as usize],
            0x74 => a >>= k,
            0xa4 => a ^= k,
            0xac => a ^= x,
            _ => panic!("{code:#x} at {}", next - 1),
        }
    }
    unreachable!("jumps lead forward only")
}

/// The IP header of a packet from this address; what has no part in it is noise.
pub(super) fn packet(source: IpAddr) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => {
            let mut header = vec![0xa5; 20];
            header[0] = 0x45;
            header[12..16].copy_from_slice(&source.octets());
            header
        }
        IpAddr::V6(source) => {
            let mut header = vec![0x5a; 40];
            header[0] = 0x6a;
            header[8..24].copy_from_slice(&source.octets());
            header
        }
    }
}

#[test]
fn what_the_kernel_refuses_is_refused() {
    let load = Instruction::load(1);
    let end = Instruction::give_a();
    let refused = [
        vec![],
        vec![load],
        vec![end, load],
        vec![Instruction::load_cell(0), end],
        vec![Instruction::store(16), end],
        vec![Instruction::skip(1), end],
        vec![Instruction::skip_unless_equal(0, 1), end],
        // The cell is filled on one of two ways only.
        vec![
            Instruction::skip_unless_equal(0, 1),
            Instruction::store(3),
            Instruction::load_cell(3),
            end,
        ],
        vec![Instruction::shift_right(32), end],
        vec![end; MAX_INSTRUCTIONS + 1],
    ];
    for program in refused {
        assert!(check(&program).is_err(), "{program:?}");
    }
    assert_eq!(check(&vec![end; MAX_INSTRUCTIONS]), Ok(()));
    let stored = [Instruction::store(3), Instruction::load_cell(3), end];
    assert_eq!(check(&stored), Ok(()));
}

#[test]
fn a_load_beyond_the_packet_ends_with_zero() {
    let program = [Instruction::load_word(12), Instruction::give(7)];
    let source = packet(IpAddr::from([1, 2, 3, 4]));
    assert_eq!(run(&program, &source), (7, 2));
    assert_eq!(run(&program, &source[..15]), (0, 1));
}
