//! Connections to backends that wait for the next request, of this thread.

use std::{
    cell::RefCell,
    pin::Pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use ahash::HashMap;
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    time::Instant,
};

use super::super::connect::Upstream;
use crate::cluster::{Backend, Load, SlotStats};

/// Less than what servers keep an idle connection for (Node: 5 s), so that they do not end it
/// while a request is on its way.
const IDLE: Duration = Duration::from_secs(4);
/// For each backend.
const KEPT: usize = 256;

thread_local! {
    static IDLERS: RefCell<HashMap<Place, Vec<Idler>>> = RefCell::default();
}

/// One generation of one slot at one address, which a reload may change. The counters of a slot
/// tell it apart for life.
#[derive(Clone, Debug)]
pub(in super::super) struct Place {
    stats: Arc<SlotStats>,
    backend: Arc<Backend>,
}

#[derive(Debug)]
struct Idler {
    stream: Upstream,
    since: Instant,
}

impl Place {
    pub(in super::super) const fn new(stats: Arc<SlotStats>, backend: Arc<Backend>) -> Self {
        Self { stats, backend }
    }

    /// The connection that was used last, if it is still there and silent.
    pub(in super::super) fn take(&self) -> Option<Upstream> {
        IDLERS.with_borrow_mut(|idlers| {
            let idlers = idlers.get_mut(self)?;
            while let Some(mut idler) = idlers.pop() {
                if idler.since.elapsed() < IDLE && is_silent(&mut idler.stream) {
                    return Some(idler.stream);
                }
            }
            None
        })
    }

    /// Keeps a connection for the next request.
    pub(super) fn keep(self, stream: Upstream) {
        IDLERS.with_borrow_mut(|idlers| {
            let idlers = idlers.entry(self).or_default();
            if idlers.len() < KEPT {
                let since = Instant::now();
                idlers.push(Idler { stream, since });
            }
        });
    }
}

/// Closes all to a generation on this thread.
pub(in super::super) fn forget(load: &Arc<Load>) {
    IDLERS.with_borrow_mut(|idlers| {
        idlers.retain(|place, _| !Arc::ptr_eq(&place.backend.load, load));
    });
}

/// Closes what has waited too long on this thread.
pub(in super::super) fn sweep() {
    IDLERS.with_borrow_mut(|idlers| {
        idlers.retain(|_, idlers| {
            idlers.retain(|idler| idler.since.elapsed() < IDLE);
            !idlers.is_empty()
        });
    });
}

/// Nothing has come, neither an end nor anything unasked. Costs no system call, as the runtime
/// knows what is readable.
fn is_silent(stream: &mut Upstream) -> bool {
    let mut byte = [0];
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream)
        .poll_read(&mut cx, &mut ReadBuf::new(&mut byte))
        .is_pending()
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stats, &other.stats)
            && self.backend.generation == other.backend.generation
            && self.backend.address == other.backend.address
    }
}

impl Eq for Place {}

impl std::hash::Hash for Place {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.stats).hash(state);
        self.backend.generation.hash(state);
    }
}
