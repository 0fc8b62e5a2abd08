//! How a connection or request came to its backend.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::Home;
use crate::{
    cluster::{Seat, Skip},
    proxy::{admit::ClientPermit, connect::Tried, connection::Early},
};

/// How a connection or request came to its backend.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Journey {
    /// The backend that it was connected to.
    pub(in crate::proxy) home: Option<Home>,
    /// What few have.
    pub(super) detour: Option<Box<Detour>>,
}

/// What few connections have: most of it is what kept a client from going home straight away.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Detour {
    /// The first choice and why it was passed over, when it was.
    pub(in crate::proxy) passed: Option<(Arc<str>, Skip)>,
    /// How long it was held for its slot.
    pub(in crate::proxy) held: Duration,
    /// How long it queued for a seat.
    pub(in crate::proxy) queued: Duration,
    /// What was tried in vain.
    pub(super) tried: Option<Box<Tried>>,
    /// Its seat in the slot, where seats are counted.
    pub(super) seat: Option<Seat>,
    /// More about why it ended.
    pub(super) detail: Option<&'static str>,
    /// The client that a PROXY header named.
    pub(in crate::proxy) client: Option<SocketAddr>,
    /// What came along with such a header.
    pub(in crate::proxy) early: Option<Box<Early>>,
    /// It is one of those that the client may have.
    pub(in crate::proxy) permit: Option<ClientPermit>,
}

impl Journey {
    pub(in crate::proxy) fn detour(&self) -> &Detour {
        static NONE: Detour = Detour {
            passed: None,
            held: Duration::ZERO,
            queued: Duration::ZERO,
            tried: None,
            seat: None,
            detail: None,
            client: None,
            early: None,
            permit: None,
        };
        self.detour.as_deref().unwrap_or(&NONE)
    }

    /// The same, if there is anything of it.
    pub(in crate::proxy) fn some_detour(&mut self) -> Option<&mut Detour> {
        self.detour.as_deref_mut()
    }

    pub(in crate::proxy) fn detour_mut(&mut self) -> &mut Detour {
        self.detour.get_or_insert_default()
    }

    /// Notes which first choice was passed over, if one was.
    pub(in crate::proxy) fn pass(&mut self, passed: Option<(Arc<str>, Skip)>) {
        if passed.is_some() || self.detour.is_some() {
            self.detour_mut().passed = passed;
        }
    }

    /// Its seat in the slot, where seats are counted.
    pub(in crate::proxy) fn seat(&self) -> Option<&Seat> {
        self.detour().seat.as_ref()
    }

    /// Gives it another seat, or none.
    pub(in crate::proxy) fn sit(&mut self, seat: Option<Seat>) {
        if seat.is_some() || self.detour.is_some() {
            self.detour_mut().seat = seat;
        }
    }

    /// Notes what was tried in vain, if anything was.
    pub(in crate::proxy) fn note_tried(&mut self, tried: Option<Box<Tried>>) {
        if tried.is_some() {
            self.detour_mut().tried = tried;
        }
    }

    /// What was tried in vain, to be gone on with.
    pub(in crate::proxy) fn take_tried(&mut self) -> Option<Box<Tried>> {
        self.detour.as_mut()?.tried.take()
    }
}
