//! A loopback address that one slot has for itself on this machine.

use std::{
    io,
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use crate::handover::{Incoming, Number, Outgoing};

/// The first network of 254 addresses …
const FIRST: [u8; 3] = [127, 72, 84];
/// … and how many there are.
const NETWORKS: usize = 16;
const PER_NETWORK: usize = 254;

/// An address of 127.72.84.0 to 127.72.99.255. It is reserved by a name in the abstract namespace
/// of Unix sockets, which belongs to the network namespace as addresses do: no two slots of any
/// homescars there have the same.
#[derive(Debug)]
pub(in crate::supervisor) struct OwnAddress {
    address: Ipv4Addr,
    reservation: UnixDatagram,
}

impl OwnAddress {
    /// The first that is free, from the `wanted`th on.
    pub(in crate::supervisor) fn reserve(wanted: usize) -> io::Result<Self> {
        let all = NETWORKS * PER_NETWORK;
        for number in (0..all).map(|step| (wanted + step) % all) {
            let [a, b, c] = FIRST;
            let [network, host] = [number / PER_NETWORK, number % PER_NETWORK + 1];
            let network = u8::try_from(network).map_err(io::Error::other)?;
            let host = u8::try_from(host).map_err(io::Error::other)?;
            let address = Ipv4Addr::new(a, b, c + network, host);
            let name = SocketAddr::from_abstract_name(format!("homescar/{address}"))?;
            match UnixDatagram::bind_addr(&name) {
                Ok(reservation) => {
                    return Ok(Self {
                        address,
                        reservation,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// What the next image has to know of it.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<(Ipv4Addr, Number)> {
        Ok((self.address, outgoing.add(&self.reservation)?))
    }

    /// The same again.
    pub(super) fn resumed(
        (address, reservation): (Ipv4Addr, Number),
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        Ok(Self {
            address,
            reservation: incoming.take(reservation)?.into(),
        })
    }

    pub(super) const fn address(&self) -> Ipv4Addr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_gets_it_while_it_is_kept() {
        let first = OwnAddress::reserve(2000).unwrap();
        let second = OwnAddress::reserve(2000).unwrap();
        assert_ne!(first.address(), second.address());
        let last = OwnAddress::reserve(NETWORKS * PER_NETWORK - 1).unwrap();
        assert!(last.address().is_loopback());
    }
}
