//! The way back to the image before: open from the first moment of an image until it is up.
//!
//! Until then nothing was read, accepted or reaped, and every descriptor is open under its number: the
//! image before finds everything as it left it. Errors, panics, crashes and that it is not up in time
//! all take this way. It is always the main thread that goes: the workers would get the signal that tells
//! them of the end of the thread that has spawned them, if another did.

use std::{
    ffi::{OsStr, OsString},
    io, panic,
    sync::{Mutex, Once, PoisonError},
};

use nix::unistd::{getpid, gettid};

use super::{
    crash,
    execute::{Revival, revive},
};
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
        let gone = self.revival(why).and_then(|revival| revive(&revival));
        match gone {
            Ok(never) => match never {},
            Err(error) => error.to_string(),
        }
    }

    /// How the image before is executed.
    pub(super) fn revival(&self, why: &str) -> io::Result<Revival> {
        let (name, rest) = match &self.arguments[..] {
            [name, rest @ ..] => (&**name, rest),
            [] => (OsStr::new("homescar"), [].as_slice()),
        };
        Revival::new(self.image, name, self.state, why, rest)
    }

    /// Goes back when a thread panics, or something else ends this image, from now on.
    pub(super) fn open(self) {
        if let Err(error) = crash::watch(&self) {
            tracing::warn!("should this program crash now, nobody goes back: {error}");
        }
        *lock() = Some(self);
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                before(info);
                let Some(way) = lock().take() else { return };
                let why = format!("it {info}").replace('\n', " ");
                if getpid() == gettid() {
                    crash::ignore();
                    let _closed = way.take(&why);
                } else {
                    crash::end(&way, &why);
                }
            }));
        });
    }
}

/// From now on there is none.
pub(super) fn close() {
    if lock().take().is_some() {
        crash::ignore();
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<WayBack>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
