//! Networks of IP addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Network;

impl Network {
    /// The network of an address with this many leading bits; more than it has are cut down.
    #[must_use]
    pub fn of(addr: IpAddr, prefix: u8) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(v4) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self {
                    addr: Ipv4Addr::from_bits(v4.to_bits() & mask).into(),
                    prefix,
                }
            }
            IpAddr::V6(v6) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self {
                    addr: Ipv6Addr::from_bits(v6.to_bits() & mask).into(),
                    prefix,
                }
            }
        }
    }

    /// Whether an address lies in it. An IPv4-mapped IPv6 address is the IPv4 address.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        let same_version = self.addr.is_ipv4() == addr.to_canonical().is_ipv4();
        same_version && Self::of(addr, self.prefix).addr == Self::of(self.addr, self.prefix).addr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str, prefix: u8) -> Network {
        Network {
            addr: text.parse().unwrap(),
            prefix,
        }
    }

    #[test]
    fn contains_what_shares_the_prefix() {
        let cases = [
            ("10.0.0.0", 8, "10.255.0.1", true),
            ("10.0.0.0", 8, "11.0.0.1", false),
            ("10.0.0.0", 8, "::ffff:10.1.1.1", true),
            ("0.0.0.0", 0, "203.0.113.7", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.2", false),
            ("2001:db8::", 32, "2001:db8:1::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "2001:db8::1", true),
            ("::1", 128, "::1", true),
        ];
        for (net, prefix, addr, expected) in cases {
            let contains = network(net, prefix).contains(addr.parse().unwrap());
            assert_eq!(contains, expected, "{net}/{prefix} contains {addr}");
        }
    }
}
