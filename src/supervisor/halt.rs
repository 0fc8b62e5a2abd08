//! Everything that belongs to workers stands still for the moment of an upgrade, and says what the
//! next image has to know of it.
//!
//! Nothing is given up by that: it goes on as if nothing had been when the upgrade does not come.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{output::SavedOutput, slot::SavedSlot};
use crate::handover::Outgoing;

/// Who has to stand still.
#[derive(Debug, Default)]
pub(super) struct Halt {
    called: watch::Sender<bool>,
    members: Mutex<Members>,
    /// One more stands still, or has gone.
    changed: Notify,
    /// Nobody begins yet.
    is_held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Members {
    next: u64,
    all: BTreeMap<u64, (Arc<str>, Option<Description>)>,
    outgoing: Outgoing,
}

/// What one of them says.
type Description = io::Result<Piece>;

/// What the next image has to know of one of them.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Slot(Box<SavedSlot>),
    Output(Box<SavedOutput>),
}

/// Everything stands still, until this is dropped.
#[derive(Debug)]
pub(super) struct Still {
    halt: Arc<Halt>,
    pub pieces: Vec<Piece>,
}

impl Halt {
    /// One whose members do not begin before [`begin`](Self::begin).
    pub(super) fn held() -> Self {
        let halt = Self::default();
        halt.is_held.send_replace(true);
        halt
    }

    /// Lets all begin.
    pub(super) fn begin(&self) {
        self.is_held.send_replace(false);
    }

    /// One more that has to stand still when it is called.
    pub(super) fn join(self: &Arc<Self>, name: Arc<str>) -> Member {
        let mut members = self.members();
        let id = members.next;
        members.next += 1;
        members.all.insert(id, (name, None));
        Member {
            halt: Arc::clone(self),
            id,
            called: self.called.subscribe(),
            is_held: self.is_held.subscribe(),
        }
    }

    /// Calls everything to stand still.
    ///
    /// # Errors
    /// Who does not, or cannot be described; then all goes on.
    pub(super) async fn call(self: &Arc<Self>, within: Duration) -> Result<Still, String> {
        self.called.send_replace(true);
        let mut still = Still {
            halt: Arc::clone(self),
            pieces: Vec::new(),
        };
        let all = async {
            loop {
                let changed = self.changed.notified();
                if self.moving().is_none() {
                    return;
                }
                changed.await;
            }
        };
        if timeout(within, all).await.is_err()
            && let Some(name) = self.moving()
        {
            return Err(format!("{name} does not come to rest"));
        }
        for (name, description) in self.members().all.values_mut() {
            match description.take() {
                Some(Ok(piece)) => still.pieces.push(piece),
                Some(Err(error)) => return Err(format!("{name} cannot be handed over: {error}")),
                None => {}
            }
        }
        Ok(still)
    }

    fn moving(&self) -> Option<Arc<str>> {
        let members = self.members();
        let mut all = members.all.values();
        let moving = all.find(|(_, description)| description.is_none())?;
        Some(Arc::clone(&moving.0))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Still {
    /// The descriptors that were named in descriptions.
    pub(super) fn take_descriptors(&self) -> Outgoing {
        std::mem::take(&mut self.halt.members().outgoing)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let mut members = self.halt.members();
        members.outgoing = Outgoing::default();
        for (_, description) in members.all.values_mut() {
            *description = None;
        }
        drop(members);
        self.halt.called.send_replace(false);
    }
}

/// One that stands still when it is called.
#[derive(Debug)]
pub(super) struct Member {
    halt: Arc<Halt>,
    id: u64,
    called: watch::Receiver<bool>,
    is_held: watch::Receiver<bool>,
}

impl Member {
    /// Waits until it may begin.
    pub(super) async fn may_begin(&mut self) {
        // The sender lives as long as `halt`.
        let _begun = self.is_held.wait_for(|is_held| !*is_held).await;
    }

    /// Waits for the call.
    pub(super) async fn called(&mut self) {
        // The sender lives as long as `halt`.
        let _called = self.called.wait_for(|called| *called).await;
    }

    /// Stands still from now on, and says what it is.
    pub(super) fn describe(&self, describe: impl FnOnce(&mut Outgoing) -> Description) {
        let mut members = self.halt.members();
        let description = describe(&mut members.outgoing);
        if let Some((_, said)) = members.all.get_mut(&self.id) {
            *said = Some(description);
        }
        drop(members);
        self.halt.changed.notify_waiters();
    }

    /// Waits for it to go on.
    pub(super) async fn goes_on(&mut self) {
        let _over = self.called.wait_for(|called| !*called).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.halt.members().all.remove(&self.id);
        self.halt.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn nobody_begins_who_is_held() {
        let halt = Arc::new(Halt::held());
        let mut member = halt.join("app/0".into());
        assert!(member.may_begin().now_or_never().is_none());
        halt.begin();
        assert!(member.may_begin().now_or_never().is_some());
        let mut later = halt.join("app/1".into());
        assert!(later.may_begin().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn all_stand_still_or_none_does() {
        let halt = Arc::<Halt>::default();
        let mut first = halt.join("app/0".into());
        let second = halt.join("app/1".into());
        let stands = async {
            first.called().await;
            first.describe(|_| Err(io::Error::other("no room")));
            first.goes_on().await;
        };
        let (called, ()) = tokio::join!(halt.call(SOON), stands);
        let why = called.unwrap_err();
        assert_eq!(why, "app/1 does not come to rest");
        assert!(halt.moving().is_some(), "what was said is forgotten");

        drop(second);
        let stands = async {
            first.called().await;
            first.describe(|_| Err(io::Error::other("no room")));
            first.goes_on().await;
        };
        let (called, ()) = tokio::join!(halt.call(SOON), stands);
        assert!(called.unwrap_err().contains("no room"));
    }
}
