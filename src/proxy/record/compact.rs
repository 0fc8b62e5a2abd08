//! What every connection holds for its record, in few bytes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::LazyLock,
    time::Duration,
};

use tokio::time::Instant;

/// An address as accept(2) gives it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    ip: [u8; 16],
    scope: u32,
    port: u16,
    is_v4: bool,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let (ip, scope) = match address {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        Self {
            ip: ip.octets(),
            scope,
            port: address.port(),
            is_v4: address.is_ipv4(),
        }
    }
}

impl From<Peer> for SocketAddr {
    fn from(peer: Peer) -> Self {
        let [.., a, b, c, d] = peer.ip;
        match peer.is_v4 {
            true => Self::from((IpAddr::from(Ipv4Addr::new(a, b, c, d)), peer.port)),
            false => SocketAddrV6::new(Ipv6Addr::from(peer.ip), peer.port, 0, peer.scope).into(),
        }
    }
}

/// A point in time: how many nanoseconds it is after the first one that was asked for, or before it, as
/// where a connection began in an earlier image of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point(i64);

static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);

impl From<Instant> for Point {
    fn from(at: Instant) -> Self {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let later = at.checked_duration_since(*FIRST).map(nanos);
        Self(later.unwrap_or_else(|| -nanos(FIRST.duration_since(at))))
    }
}

impl From<Point> for Instant {
    fn from(point: Point) -> Self {
        let distance = Duration::from_nanos(point.0.unsigned_abs());
        let earlier = (point.0 < 0).then(|| FIRST.checked_sub(distance));
        earlier.map_or_else(|| *FIRST + distance, |at| at.unwrap_or(*FIRST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_same_again() {
        for address in [
            "1.2.3.4:5",
            "[::1]:65535",
            "[fe80::1%7]:80",
            "[::ffff:1.2.3.4]:5",
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(SocketAddr::from(Peer::from(address)), address);
        }
        assert_eq!(size_of::<Peer>(), 24);
    }

    #[test]
    fn points_are_the_same_again_before_and_after_the_first() {
        let now = Instant::now();
        for at in [
            now,
            now + Duration::from_secs(9),
            now - Duration::from_nanos(1_000_001),
        ] {
            assert_eq!(Instant::from(Point::from(at)), at);
        }
    }
}
