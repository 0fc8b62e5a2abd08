//! The instructions of classic BPF that a [program](super::Table::program) is made of.

use std::fmt;

/// Where the kernel begins to count from the start of the IP header (`SKF_NET_OFF`).
const NETWORK: u32 = (-0x10_0000_i32).cast_unsigned();

/// One classic-BPF instruction, as in `struct sock_filter` of `<linux/filter.h>`.
///
/// The machine has an accumulator A, an index register X, 16 cells of memory and the packet;
/// all are 32 bits wide, and jumps lead forward only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// A conditional jump: how many instructions are skipped when the condition holds.
    pub jt: u8,
    /// A conditional jump: how many instructions are skipped when it does not.
    pub jf: u8,
    /// Its constant operand.
    pub k: u32,
}

impl Instruction {
    const fn new(code: u16, k: u32) -> Self {
        Self {
            code,
            jt: 0,
            jf: 0,
            k,
        }
    }

    /// A = the byte at this offset of the IP header.
    pub(super) const fn load_byte(offset: u32) -> Self {
        Self::new(0x30, NETWORK + offset)
    }

    /// A = the word at this offset of the IP header, in host order.
    pub(super) const fn load_word(offset: u32) -> Self {
        Self::new(0x20, NETWORK + offset)
    }

    /// A = k.
    pub(super) const fn load(k: u32) -> Self {
        Self::new(0x00, k)
    }

    /// A = the cell.
    pub(super) const fn load_cell(cell: u32) -> Self {
        Self::new(0x60, cell)
    }

    /// X = the cell.
    pub(super) const fn load_x_cell(cell: u32) -> Self {
        Self::new(0x61, cell)
    }

    /// The cell = A.
    pub(super) const fn store(cell: u32) -> Self {
        Self::new(0x02, cell)
    }

    /// X = A.
    pub(super) const fn copy_to_x() -> Self {
        Self::new(0x07, 0)
    }

    /// A += k, wrapping.
    pub(super) const fn add(k: u32) -> Self {
        Self::new(0x04, k)
    }

    /// A -= k, wrapping.
    pub(super) const fn subtract(k: u32) -> Self {
        Self::new(0x14, k)
    }

    /// A *= k, wrapping.
    pub(super) const fn multiply(k: u32) -> Self {
        Self::new(0x24, k)
    }

    /// A &= k.
    pub(super) const fn and(k: u32) -> Self {
        Self::new(0x54, k)
    }

    /// A >>= k, logical.
    pub(super) const fn shift_right(k: u32) -> Self {
        Self::new(0x74, k)
    }

    /// A ^= k.
    pub(super) const fn xor(k: u32) -> Self {
        Self::new(0xa4, k)
    }

    /// A ^= X.
    pub(super) const fn xor_x() -> Self {
        Self::new(0xac, 0)
    }

    /// Skips so many instructions.
    pub(super) const fn skip(count: usize) -> Self {
        Self::new(0x05, count as u32)
    }

    /// Skips so many instructions, 255 at most, unless A = k.
    pub(super) const fn skip_unless_equal(k: u32, count: usize) -> Self {
        Self::new(0x15, k).otherwise(count)
    }

    /// Skips so many instructions, 255 at most, unless A ≥ k, unsigned.
    pub(super) const fn skip_unless_at_least(k: u32, count: usize) -> Self {
        Self::new(0x35, k).otherwise(count)
    }

    /// Skips so many instructions, 255 at most, unless A > X, unsigned.
    pub(super) const fn skip_unless_above_x(count: usize) -> Self {
        Self::new(0x2d, 0).otherwise(count)
    }

    /// Ends with k.
    pub(super) const fn give(k: u32) -> Self {
        Self::new(0x06, k)
    }

    /// Ends with A.
    pub(super) const fn give_a() -> Self {
        Self::new(0x16, 0)
    }

    const fn otherwise(mut self, count: usize) -> Self {
        assert!(count <= u8::MAX as usize, "conditional jumps are short");
        self.jf = count as u8;
        self
    }
}

/// As `bpf_dbg` and `tcpdump -dd` print it: easier to read than field names, a thousand times over.
impl fmt::Debug for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, jt, jf, k } = self;
        write!(f, "{{ {code:#04x}, {jt}, {jf}, {k:#010x} }}")
    }
}
