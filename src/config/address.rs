//! Addresses as people write them: where to listen, where backends are, whom to trust.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use super::{Address, Bind, Network, value::quoted};

/// The longest path of a Unix socket (`sun_path` of unix(7), less its terminating zero).
const MAX_UNIX_PATH: usize = 107;

/// Where to listen: `127.0.0.1:3000`, `[::1]:3000`, `localhost:3000` (which is 127.0.0.1), or
/// for all addresses of both IP versions `:3000` and `3000`.
pub(super) fn bind(text: &str) -> Result<Bind, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
        let port = port_number(port).map_err(|why| format!("{}: {why}", quoted(text)))?;
        return Ok(Bind::all(port));
    }
    let typed = socket_addr(text, "127.0.0.1:3000")?;
    // A socket for an IPv4-mapped address would be one of IPv4 in disguise.
    let addr = match typed.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, typed.port()),
        IpAddr::V6(_) => typed,
    };
    Ok(Bind {
        addr,
        dual_stack: false,
    })
}

impl Bind {
    /// All addresses of both IP versions.
    #[must_use]
    pub const fn all(port: u16) -> Self {
        Self {
            addr: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            dual_stack: true,
        }
    }

    /// Whether both claim the same address, so that they cannot be bound beside each other. With
    /// port 0 nothing can be said before the kernel has chosen.
    pub(super) fn clashes_with(self, other: Self) -> bool {
        let is_any = |bind: Self| bind.addr.ip().is_unspecified();
        let same_port = self.addr.port() == other.addr.port() && self.addr.port() != 0;
        let either_dual = self.dual_stack || other.dual_stack;
        same_port && (self.addr == other.addr || (either_dual && is_any(self) && is_any(other)))
    }
}

impl fmt::Display for Bind {
    /// As it is written in the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dual_stack {
            true => write!(f, ":{}", self.addr.port()),
            false => write!(f, "{}", self.addr),
        }
    }
}

/// The address of a backend: `10.0.0.1:3000`, `[2001:db8::1]:3000`, `localhost:3000` or
/// `unix:/run/app.sock`.
pub(super) fn address(text: &str) -> Result<Address, String> {
    let typed = quoted(text);
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.len() {
            _ if !path.starts_with('/') => Err(format!(
                "{typed}: the path must be absolute, as in \"unix:/run/app.sock\""
            )),
            _ if path.contains('\0') => Err(format!("{typed}: the path has a zero byte in it")),
            long if long > MAX_UNIX_PATH => Err(format!(
                "the path of a Unix socket may have {MAX_UNIX_PATH} bytes, this one has {long}; \
                 choose a shorter folder"
            )),
            _ => Ok(Address::Unix(PathBuf::from(path))),
        };
    }
    if text.starts_with('/') {
        return Err(format!("{typed} is a path: write \"unix:{text}\""));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(format!(
            "{typed}: write the address alone, \"{rest}\", without {scheme}://"
        ));
    }
    let addr = socket_addr(text, "10.0.0.1:3000")?;
    if addr.port() == 0 {
        return Err(format!("{typed}: the port must be between 1 and 65535"));
    }
    Ok(Address::Tcp(addr))
}

/// `IP:PORT`, or what is wrong with it.
fn socket_addr(text: &str, example: &str) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let typed = quoted(text);
    if let Ok(ip) = text.parse::<IpAddr>() {
        let addr = SocketAddr::new(ip, 3000);
        return Err(format!("{typed} has no port: write it as in \"{addr}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!(
            "{typed} is not an address with a port; write one as in \"{example}\""
        ));
    };
    let port = port_number(port).map_err(|why| format!("{typed}: {why}"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match host {
        "localhost" => Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
        "" => Err(format!(
            "{typed} has no address: write it as in \"{example}\""
        )),
        "*" => Err(format!("{typed}: for all addresses write \":{port}\"")),
        _ if bare.parse::<Ipv6Addr>().is_ok() => Err(format!(
            "{typed}: an IPv6 address stands in brackets: write \"[{bare}]:{port}\""
        )),
        _ if bare.contains(':') => Err(format!(
            "{typed}: `{bare}` is not an IPv6 address; write one as in \"[::1]:{port}\""
        )),
        _ if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => Err(format!(
            "{typed}: `{host}` is not an IPv4 address; check its numbers"
        )),
        _ => Err(format!(
            "{typed}: host names are not looked up in this version; \
             write the IP address of `{host}`"
        )),
    }
}

/// The first of the addresses that lead to the slots of a direct listener.
pub(super) fn probes(text: &str) -> Result<Ipv4Addr, String> {
    let typed = quoted(text);
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        return Err(format!(
            "{typed} is not an IPv4 address; write one as in \"127.72.83.0\""
        ));
    };
    let [first, second, ..] = address.octets();
    match (first, second) {
        (127, 0) => Err(format!(
            "{typed}: clients of this machine come from 127.0.0.0/16; choose another loopback \
             address, as in \"127.72.83.0\""
        )),
        (127, _) => Ok(address),
        _ => Err(format!(
            "{typed}: whoever can send from such an address would choose its slot; choose a \
             loopback address, as in \"127.72.83.0\""
        )),
    }
}

fn port_number(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits => Ok(port),
        _ if text.is_empty() => Err("the port is missing after the colon".to_owned()),
        _ if digits => Err(format!("the port must be at most 65535, is {text}")),
        _ => Err(format!("the port `{text}` is not a number")),
    }
}

/// A network: `10.0.0.0/8`, `2001:db8::/32`, or one address.
pub(super) fn network(text: &str) -> Result<Network, String> {
    let typed = quoted(text);
    let (addr, prefix) = text
        .split_once('/')
        .map_or((text, None), |(addr, prefix)| (addr, Some(prefix)));
    let Ok(addr) = addr.parse::<IpAddr>() else {
        return Err(format!(
            "{typed} is not a network; write one as in \"10.0.0.0/8\" or \"2001:db8::/32\""
        ));
    };
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(|prefix| prefix.parse::<u8>()) {
        None => width,
        Some(Ok(prefix)) if prefix <= width => prefix,
        Some(_) => {
            return Err(format!(
                "{typed}: what follows the / must be a number between 0 and {width}"
            ));
        }
    };
    let first = first_address(addr, prefix);
    if first != addr {
        return Err(format!(
            "{typed} has bits set past /{prefix}: write \"{first}/{prefix}\" for the network, or \
             \"{addr}\" for that address alone"
        ));
    }
    Ok(match addr {
        IpAddr::V6(v6) if prefix >= 96 && v6.to_ipv4_mapped().is_some() => Network {
            addr: addr.to_canonical(),
            prefix: prefix - 96,
        },
        _ => Network { addr, prefix },
    })
}

fn first_address(addr: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Network {
    /// In CIDR notation.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_survive_the_way_back(ip in any::<IpAddr>(), port in any::<u16>()) {
            let addr = SocketAddr::new(ip, port);
            let canonical = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(bind(&addr.to_string()).map(|bind| bind.addr), Ok(canonical));
            let expected = (addr.port() != 0).then_some(Address::Tcp(addr));
            prop_assert_eq!(address(&addr.to_string()).ok(), expected);
        }

        #[test]
        fn a_network_is_its_first_address(ip in any::<IpAddr>(), prefix in 0_u8..=32) {
            let first = first_address(ip, prefix);
            let parsed = network(&format!("{first}/{prefix}"));
            prop_assert_eq!(parsed, Ok(Network { addr: first, prefix }));
            let strict = network(&format!("{ip}/{prefix}"));
            prop_assert_eq!(strict.is_ok(), first == ip);
        }

        #[test]
        fn nothing_that_is_typed_makes_a_panic(text in any::<String>()) {
            let _ = (bind(&text), address(&text), network(&text));
        }
    }

    #[test]
    fn all_ways_to_say_all_addresses_are_one() {
        for text in ["3000", ":3000", ":03000"] {
            assert_eq!(bind(text), Ok(Bind::all(3000)));
        }
        assert_eq!(Bind::all(3000).to_string(), ":3000");
        assert!(!bind("[::]:3000").unwrap().dual_stack);
        assert_eq!(bind("[::ffff:127.0.0.1]:3000"), bind("127.0.0.1:3000"));
    }

    #[test]
    fn clashes_are_of_the_same_address_and_port() {
        let clash = |a: &str, b: &str| bind(a).unwrap().clashes_with(bind(b).unwrap());
        assert!(clash("127.0.0.1:1", "localhost:1"));
        assert!(clash(":1", "0.0.0.0:1") && clash("[::]:1", ":1") && clash(":1", ":1"));
        assert!(!clash("0.0.0.0:1", "[::]:1"), "one of each IP version");
        assert!(!clash(":1", "127.0.0.1:1"), "the more specific one wins");
        assert!(!clash(":1", ":2") && !clash(":0", ":0") && !clash("1.1.1.1:0", "1.1.1.1:0"));
    }

    #[test]
    fn mapped_networks_are_ipv4() {
        let v4 = network("10.0.0.0/8").unwrap();
        assert_eq!(network("::ffff:10.0.0.0/104"), Ok(v4));
        assert_eq!(network("::/0").unwrap().prefix, 0);
    }
}
