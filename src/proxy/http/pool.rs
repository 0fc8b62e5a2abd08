//! Connections to backends that wait for the next request, of this thread.

use std::{
    cell::{Cell, RefCell},
    io::ErrorKind,
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
};

use ahash::HashMap;
use tokio::io::{AsyncRead as _, ReadBuf};

use super::super::connect::Upstream;
use crate::cluster::{Backend, Load, SlotStats};

/// Sweeps, of which there are two a second, for which a connection is kept: less than what servers keep
/// an idle one for (Node: 5 s), so that they do not end it while a request is on its way.
const IDLE: u64 = 8;
/// For each backend.
const KEPT: usize = 256;

thread_local! {
    static IDLERS: RefCell<HashMap<Place, Kept>> = RefCell::default();
    /// Sweeps so far, instead of a clock that is read twice for each request.
    static SWEEPS: Cell<u64> = const { Cell::new(0) };
}

/// One generation of one slot, by the address of its counters: they tell a slot apart for life, and
/// live for as long as anything is kept for it.
type Place = (*const SlotStats, u32);

/// What is kept for one generation of one slot at one address, which a reload may change.
#[derive(Debug)]
struct Kept {
    _stats: Arc<SlotStats>,
    backend: Arc<Backend>,
    idlers: Vec<Idler>,
}

#[derive(Debug)]
struct Idler {
    stream: Upstream,
    /// The number of the sweep before.
    since: u64,
}

/// The connection that was used last, if it is still there and silent.
pub(in super::super) fn take(stats: &Arc<SlotStats>, backend: &Backend) -> Option<Upstream> {
    IDLERS.with_borrow_mut(|kept| {
        let kept = kept.get_mut(&place(stats, backend))?;
        if kept.backend.address != backend.address {
            return None;
        }
        while let Some(mut idler) = kept.idlers.pop() {
            if is_silent(&mut idler.stream) {
                return Some(idler.stream);
            }
        }
        None
    })
}

/// Keeps a connection for the next request.
pub(in super::super) fn keep(stats: &Arc<SlotStats>, backend: &Arc<Backend>, stream: Upstream) {
    let new = || Kept {
        _stats: Arc::clone(stats),
        backend: Arc::clone(backend),
        idlers: Vec::new(),
    };
    IDLERS.with_borrow_mut(|kept| {
        let kept = kept.entry(place(stats, backend)).or_insert_with(new);
        if kept.backend.address != backend.address {
            *kept = new();
        }
        if kept.idlers.len() < KEPT {
            let since = SWEEPS.get();
            kept.idlers.push(Idler { stream, since });
        }
    });
}

fn place(stats: &Arc<SlotStats>, backend: &Backend) -> Place {
    (Arc::as_ptr(stats), backend.generation)
}

/// Closes all to a generation on this thread.
pub(in super::super) fn forget(load: &Arc<Load>) {
    IDLERS.with_borrow_mut(|kept| {
        kept.retain(|_, kept| !Arc::ptr_eq(&kept.backend.load, load));
    });
}

/// Closes what has waited too long on this thread.
pub(in super::super) fn sweep() {
    let now = SWEEPS.get() + 1;
    SWEEPS.set(now);
    IDLERS.with_borrow_mut(|kept| {
        kept.retain(|_, kept| {
            kept.idlers.retain(|idler| now - idler.since < IDLE);
            !kept.idlers.is_empty()
        });
    });
}

/// Nothing has come, neither an end nor anything unasked. Costs no system call, as the runtime
/// knows what is readable.
fn is_silent(stream: &mut Upstream) -> bool {
    let mut byte = [0];
    let came = match stream {
        Upstream::Tcp(stream) => stream.try_read(&mut byte),
        Upstream::Unix(stream) => stream.try_read(&mut byte),
        encrypted => {
            let mut cx = Context::from_waker(Waker::noop());
            let polled = Pin::new(encrypted).poll_read(&mut cx, &mut ReadBuf::new(&mut byte));
            return polled.is_pending();
        }
    };
    came.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
