//! WebSocket: a tunnel that knows where frames begin and end, and nothing of what is in them.

mod frame;
mod tunnel;

pub(super) use tunnel::{Tunnel, TunnelEnd};
