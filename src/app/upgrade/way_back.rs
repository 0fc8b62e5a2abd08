//! The way back to the image before: open from the first moment of an image until it is up.
//!
//! Until then nothing was read, accepted or reaped, and every descriptor is open under its number: the
//! image before finds everything as it left it. Also a panic of the main thread takes this way. Other
//! threads do not: the workers would get the signal that tells them of the end of the thread that had
//! spawned them, which is the main one.

use std::{
    ffi::{OsStr, OsString},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use nix::unistd::{getpid, gettid};

use super::execute::revive;
use crate::handover::{Number, let_all_pass};

static OPEN: Mutex<Option<WayBack>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// What has to be known to go back.
#[derive(Clone, Debug)]
pub(super) struct WayBack {
    pub(super) image: Number,
    pub(super) state: Number,
    pub(super) descriptors: Vec<Number>,
    /// Of this process, without those that say that it takes over.
    pub(super) arguments: Vec<OsString>,
}

impl WayBack {
    /// Goes back; gives why that cannot be.
    pub(super) fn take(&self, why: &str) -> String {
        let_all_pass(&self.descriptors);
        let (name, rest) = match &self.arguments[..] {
            [name, rest @ ..] => (&**name, rest),
            [] => (OsStr::new("homescar"), [].as_slice()),
        };
        revive(self.image, name, self.state, why, rest)
    }

    /// Goes back when the main thread panics, from now on.
    pub(super) fn open(self) {
        *lock() = Some(self);
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                before(info);
                let open = (getpid() == gettid()).then(close).flatten();
                if let Some(way) = open {
                    let _closed = way.take(&format!("it {info}").replace('\n', " "));
                }
            }));
        });
    }
}

/// From now on there is none.
pub(super) fn close() -> Option<WayBack> {
    lock().take()
}

fn lock() -> std::sync::MutexGuard<'static, Option<WayBack>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
