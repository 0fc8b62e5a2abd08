//! What identifies a client to a cluster: the one decision over what it shows of itself.

use std::net::IpAddr;

use super::Giver;
use crate::{
    affinity::{AffinityKey, Masks, Secrets, SlotId, Token},
    config::{Affinity, Key},
};

/// What a client shows.
#[derive(Clone, Debug)]
pub struct Shown<'a, C> {
    /// Its address, as far as that is believed.
    pub client: IpAddr,
    /// Cookies of the name that the cluster goes by.
    pub cookies: C,
    /// The value of the header or parameter that the cluster goes by.
    pub value: Option<&'a [u8]>,
}

/// What decides on a client's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it hashes by.
    pub key: AffinityKey,
    /// What its cookie says, which goes before the key.
    pub token: Option<Token>,
    /// Who gave it its id, which goes before the key.
    pub giver: Option<Giver>,
    /// It has no id yet: a response may give it one.
    pub is_nameless: bool,
    /// What it was, for logs.
    pub by: &'static str,
}

impl Identity {
    /// Looks for what the cluster goes by, and takes the client's address where it is not there.
    /// `learned` knows who gave out an id; `now` is in seconds since 1970.
    pub fn of<'a>(
        affinity: &Affinity,
        shown: Shown<'a, impl Iterator<Item = &'a [u8]>>,
        secrets: Option<&Secrets>,
        learned: impl FnOnce(&[u8]) -> Option<Giver>,
        now: u64,
    ) -> Self {
        let mut identity = Self {
            key: key_of_address(shown.client, affinity),
            token: None,
            giver: None,
            is_nameless: false,
            by: "address",
        };
        let value = shown.value.filter(|value| !value.is_empty());
        match (&affinity.key, value) {
            (Key::Address, _) | (Key::Header(_), None) => {}
            (Key::None, _) => identity.by = "none",
            (Key::Cookie(_), _) => {
                let mut cookies = shown.cookies;
                identity.token =
                    secrets.and_then(|secrets| cookies.find_map(|text| secrets.read(text, now)));
                if identity.token.is_some() {
                    identity.by = "cookie";
                }
            }
            (Key::Header(_), Some(value)) => {
                identity.key = AffinityKey::from_bytes(value, affinity.seed);
                identity.by = "header";
            }
            (Key::Query(_), None) => identity.is_nameless = true,
            (Key::Query(_), Some(id)) => {
                identity.key = AffinityKey::from_bytes(id, affinity.seed);
                identity.giver = learned(id);
                identity.by = match identity.giver {
                    Some(_) => "learned",
                    None => "query",
                };
            }
        }
        identity
    }

    /// Its slot, where that is known otherwise than by the key, and the generation that served it.
    #[must_use]
    pub fn home(&self) -> Option<(SlotId, u32)> {
        let by_token = self.token.map(|token| (token.slot, token.generation));
        by_token.or_else(|| self.giver.map(|giver| (giver.slot, giver.generation)))
    }
}

/// The key of a client of which only the address counts; one that is drawn, where nothing does.
#[must_use]
pub fn key_of_address(client: IpAddr, affinity: &Affinity) -> AffinityKey {
    if affinity.key == Key::None {
        return AffinityKey::from_bits(fastrand::u32(..));
    }
    let masks = Masks {
        v4: affinity.prefix_v4,
        v6: affinity.prefix_v6,
    };
    AffinityKey::from_address(client, masks, affinity.seed)
}
