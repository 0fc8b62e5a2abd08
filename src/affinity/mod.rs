//! Which slot is a client's home: pure, the same bits on every machine and in every version.
//!
//! Weighted rendezvous hashing (highest random weight; Thaler and Ravishankar, "Using
//! name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998).
//! Every slot gives every key a score, and the highest score is the key's home, so a slot that
//! leaves takes nobody else's clients with it, and the order of slots in a file means nothing.
//!
//! # The function, step by step
//!
//! All that depends on a client is arithmetic on 32 bits (xor, logical shift right, wrapping
//! multiplication, unsigned comparison), so that a classic BPF program can do it in the kernel;
//! all that needs more is done once, when the table is built. A change to any step moves clients
//! of every user: the golden vectors in the tests hold it still.
//!
//! **mix32**, a bijection of 32 bits (`triple32` of Chris Wellons' hash-prospector):
//!
//! ```text
//! x ^= x >> 17;  x *= 0xed5ad4bb;
//! x ^= x >> 11;  x *= 0xac4c1b51;
//! x ^= x >> 15;  x *= 0x31848bab;
//! x ^= x >> 14;
//! ```
//!
//! **Key of an address.** An IPv4-mapped IPv6 address is its IPv4 address.
//!
//! ```text
//! IPv4:  key = address & mask                      the word of the IP header, in host order
//! IPv6:  h = mix32(mix32(seed & 0xffffffff) ^ (seed >> 32))         a constant of the cluster
//!        for each of the first ceil(prefix / 32) words w of the address, in order:
//!            h = mix32(h ^ (w & mask of this word))
//!        key = h
//! ```
//!
//! Words that the prefix masks out are not folded at all: a `/64` costs two rounds. The seed
//! has no part in an IPv4 key, which is unique as it is; it comes in with the seeds of slots.
//!
//! **Key of bytes** (cookies, headers): the low 32 bits of SipHash-1-3 of the bytes under the
//! 128-bit key (`k0` = the cluster's seed, `k1` = `0x616666696e697479`, "affinity" in ASCII).
//!
//! **Seeds of a slot.** A slot of weight *w* has *w* seeds, for *replica* 0 … *w* - 1: the low
//! 32 bits of SipHash-1-3 under (`k0` = the cluster's seed, `k1` = `0x686f6d6573636172`,
//! "homescar" in ASCII) of: the slot's name in UTF-8, one byte `0xff`, *replica* and *attempt*,
//! both as 32 bits little-endian. *attempt* is 0, except that two seeds of one table may draw
//! the same number (one table of a thousand slots in 8,600). Then, in the order of (name bytes,
//! *replica*), each takes the seed of its first *attempt* 0, 1, 2 … that none before it took.
//!
//! **Score.** `score(key, slot) = max over its seeds of mix32(key ^ seed)`, compared unsigned.
//! The seeds of a table are distinct and mix32 is a bijection, so there are no ties.
//!
//! The first line of mix32 is linear in xor. With it done once for the key, `k = key ^ key >> 17`,
//! and beforehand for each seed, `s = seed ^ seed >> 17`, a score is the other three lines of
//! `k ^ s`: the same bits for fewer instructions, here and in the kernel.

//!
//! # In the kernel
//!
//! [`Table::program`] emits the function as a classic-BPF program which gives each new connection
//! to the right one of a group of listening sockets: the same home, with nobody on the path.

mod cookie;
mod instruction;
mod key;
mod mix;
mod program;
mod rendezvous;
mod seeds;
#[cfg(test)]
mod tests;

pub use cookie::{Secrets, SecretsError, SlotId, Token};
pub use instruction::Instruction;
pub use key::{AffinityKey, Masks};
pub use program::{MAX_INSTRUCTIONS, NO_POSITION, Probes, ProbesOutside, TooLong, capacity};
pub use rendezvous::{Candidates, Table};
pub use seeds::MAX_WEIGHT;
