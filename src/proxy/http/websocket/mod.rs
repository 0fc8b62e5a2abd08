//! WebSocket: a tunnel that knows where frames begin and end, and nothing of what is in them.

#[cfg(any(test, fuzzing, feature = "testing"))]
pub(super) use self::frame::{Direction, Tracker};

mod frame;
mod tunnel;

pub(super) use tunnel::{Tunnel, TunnelEnd};
