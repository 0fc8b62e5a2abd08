//! The open connections of this thread, so that they can be cut.

use std::{cell::RefCell, sync::Arc};

use slab::Slab;
use tokio::task::AbortHandle;

use super::listener::Listener;
use crate::cluster::SlotStats;

thread_local! {
    static OPEN: RefCell<Slab<Open>> = const { RefCell::new(Slab::new()) };
}

/// Which connections to cut.
#[derive(Clone, Debug)]
pub enum Cut {
    /// All.
    All,
    /// Those that came in by a listener.
    Listener(Arc<Listener>),
    /// Those that go to a slot, by its counters: they are its own for life, where names come
    /// again in other clusters.
    Slot(Arc<SlotStats>),
}

#[derive(Debug)]
struct Open {
    listener: Arc<Listener>,
    slot: Option<Arc<SlotStats>>,
    task: Option<AbortHandle>,
}

/// A connection's place in the registry, for as long as it is open.
#[derive(Debug)]
pub(super) struct Ticket(usize);

/// Runs a connection as a task of this thread. The registry owns it: it can be cut, and the
/// thread's runtime ends with it.
pub(super) fn spawn<F>(listener: Arc<Listener>, connection: impl FnOnce(Ticket) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let index = OPEN.with_borrow_mut(|open| {
        open.insert(Open {
            listener,
            slot: None,
            task: None,
        })
    });
    let future = connection(Ticket(index));
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the owner of connection tasks"
    )]
    let task = tokio::spawn(future).abort_handle();
    OPEN.with_borrow_mut(|open| {
        if let Some(open) = open.get_mut(index) {
            open.task = Some(task);
        }
    });
}

/// Cuts connections of this thread. They are gone, and recorded, at the next turn of its runtime.
pub(super) fn cut(which: &Cut) {
    OPEN.with_borrow(|open| {
        let chosen = open.iter().filter(|(_, open)| match which {
            Cut::All => true,
            Cut::Listener(listener) => Arc::ptr_eq(&open.listener, listener),
            Cut::Slot(slot) => open
                .slot
                .as_ref()
                .is_some_and(|open| Arc::ptr_eq(open, slot)),
        });
        for (_, open) in chosen {
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    });
}

impl Ticket {
    /// Notes to which slot the connection goes.
    pub(super) fn goes_to(&self, slot: &Arc<SlotStats>) {
        OPEN.with_borrow_mut(|open| {
            if let Some(open) = open.get_mut(self.0) {
                open.slot = Some(Arc::clone(slot));
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Taken out first: dropping it inside the borrow could come back here.
        let open = OPEN.with_borrow_mut(|open| open.try_remove(self.0));
        drop(open);
    }
}
