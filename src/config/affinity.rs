//! How clients are told apart.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

/// How clients are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// What identifies a client. Default [`Key::Address`].
    pub key: Key,
    /// Leading bits of an IPv4 address that count. Default 32.
    pub prefix_v4: u8,
    /// Leading bits of an IPv6 address that count. Default 64.
    pub prefix_v6: u8,
    /// Mixed into every hash: clusters with different seeds spread clients differently. Default 0.
    pub seed: u64,
}

/// What identifies a client. Where it is not there (no cookie yet, no such header), the address is
/// the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The client's address, masked.
    Address,
    /// A cookie that homescar gives the client with its first response. Only in `http`.
    Cookie(Arc<Cookie>),
    /// The value of a request header, by its lower-case name. Only in `http`.
    Header(Arc<str>),
    /// The value of a parameter of the request's query. Only in `http`.
    Query(Arc<str>),
    /// Nothing: every connection goes anywhere.
    None,
}

/// As in the file.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
            Self::Cookie(_) => f.write_str("cookie"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// The affinity cookie: a signed token that names a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its name. Default `homescar`.
    pub name: String,
    /// Its path. Default `/`.
    pub path: String,
    /// Its domain. Default: the host alone.
    pub domain: Option<String>,
    /// Whether browsers send it over TLS only. Default: when it was given over TLS.
    pub secure: Secure,
    /// Whether scripts cannot read it. Default true.
    pub http_only: bool,
    /// Whether it is sent with requests that come from other sites. Default `lax`.
    pub same_site: SameSite,
    /// How long it leads to the slot. Default 1 day; half way through it is given anew.
    pub ttl: Duration,
    /// A file with one secret a line, at least 16 bytes each: the first signs, all are believed.
    /// Default: a secret of this process, so that a restart forgets who was where.
    pub secrets: Option<PathBuf>,
}

/// The `Secure` attribute of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secure {
    /// When the client came over TLS, or a trusted proxy says that it did.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The `SameSite` attribute of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Sent with requests of the site's own pages only.
    Strict,
    /// … and when the user follows a link to it.
    Lax,
    /// Always sent; browsers then want `Secure`.
    None,
}
