//! Buffers of this thread: a connection on which nothing happens has none.

use std::cell::RefCell;

/// Capacity of a new buffer: most heads, and small bodies with them.
const CAPACITY: usize = 4 * 1024;
/// Buffers that have grown beyond this are not kept.
const MAX_CAPACITY: usize = 128 * 1024;
/// Buffers that are kept.
const KEPT: usize = 256;

/// What one read takes at most.
pub(super) const SCRATCH: usize = 64 * 1024;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Makes room in a buffer that has none yet.
pub(super) fn equip(buffer: &mut Vec<u8>) {
    if buffer.capacity() == 0 {
        let free = FREE.with_borrow_mut(Vec::pop);
        *buffer = free.unwrap_or_else(|| Vec::with_capacity(CAPACITY));
    }
}

/// Gives the room of an empty buffer back.
pub(super) fn release(buffer: &mut Vec<u8>) {
    if !buffer.is_empty() || buffer.capacity() == 0 {
        return;
    }
    let buffer = std::mem::take(buffer);
    if buffer.capacity() <= MAX_CAPACITY {
        FREE.with_borrow_mut(|free| {
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

/// Lends the thread's one scratch buffer; nothing in it outlives the call.
pub(super) fn scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    READ.with_borrow_mut(|scratch| use_it(scratch))
}
