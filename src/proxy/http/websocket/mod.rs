//! WebSocket: a tunnel that knows where frames begin and end, and nothing of what is in them.

#[cfg(any(test, fuzzing, feature = "testing"))]
pub(super) use self::frame::{Direction, Tracker};

mod backlog;
mod carriage;
mod frame;
mod saved;
mod tunnel;
mod upgraded;

pub(super) use self::tunnel::{Conduct, Tunnel, TunnelEnd};
pub(in crate::proxy) use self::{
    saved::SavedWebSocket,
    upgraded::{Upgraded, WebSocket},
};
