//! What only HTTP mode has: routes, and TLS, which `tcp` has too.

use std::sync::Arc;

use super::{Context, known_cluster};
use crate::config::{
    Address, BackendTls, CertPair, Cluster, Contract, Key, Listener, Mode, Route, Source, Tls,
    TlsVersion,
    file::{Item, Section},
    keys, value,
};

/// Keys of `limits` and `timeouts` that say something of requests.
const OF_REQUESTS: [(&str, &str); 7] = [
    ("limits", "head_bytes"),
    ("limits", "headers"),
    ("limits", "target_bytes"),
    ("limits", "body_bytes"),
    ("limits", "streams"),
    ("timeouts", "body"),
    ("timeouts", "keepalive"),
];

/// Writes down what does not go together with the mode of a relayed listener.
pub(super) fn check(section: &Section<'_>, mode: Mode, listener: &Listener, clusters: &[Cluster]) {
    let mut served = vec![(section.get("cluster"), &listener.cluster)];
    for route in &listener.routes {
        if served.iter().all(|(_, cluster)| **cluster != route.cluster) {
            served.push((section.get("route"), &route.cluster));
        }
    }
    for (item, name) in served {
        let cluster = clusters.iter().find(|cluster| cluster.name == *name);
        let (Some(item), Some(cluster)) = (item, cluster) else {
            continue;
        };
        let sees_requests = mode == Mode::Http;
        match &cluster.affinity.key {
            Key::Cookie(_) | Key::Header(_) | Key::Query(_) if !sees_requests => {
                item.fault(format!(
                    "cluster.{name}.affinity.key is of requests, which mode = \"tcp\" does not see; \
                     say mode = \"http\", or key = \"address\""
                ));
            }
            _ if sees_requests && cluster.send_proxy.is_some() => item.fault(format!(
                "cluster.{name}.send_proxy is for mode = \"tcp\"; in http the backend learns of the \
                 client by X-Forwarded-For"
            )),
            _ => {}
        }
    }
    if mode == Mode::Http {
        return;
    }
    for (table, key) in OF_REQUESTS {
        let item = section.get(table).and_then(|item| item.inner(key));
        if let Some(item) = item {
            item.fault("is of requests: say mode = \"http\", or remove it");
        }
    }
    if let Some(item) = section.get("route") {
        item.fault("routes are of requests: say mode = \"http\", or remove them");
    }
}

/// `[[listener.NAME.route]]`.
pub(super) fn routes(section: &Section<'_>, names: Option<&Vec<&str>>) -> Vec<Route> {
    let items = section.get("route");
    let items = items.and_then(|item| item.list("[[listener.NAME.route]]"));
    let mut routes: Vec<Route> = Vec::new();
    for item in items.unwrap_or_default() {
        let Some(route) = item.section(&keys::ROUTE) else {
            continue;
        };
        let host = route.get("host").and_then(|item| item.parsed(host));
        let path = route.get("path").and_then(|item| item.parsed(path));
        let cluster = route.require("cluster", "name the cluster that these requests go to");
        let cluster = cluster.and_then(|item| known_cluster(&item, names));
        if route.get("host").is_none() && route.get("path").is_none() {
            item.fault("has neither `host` nor `path`: it is what listener.NAME.cluster says");
            continue;
        }
        let has_faults = route.get("host").is_some() && host.is_none()
            || route.get("path").is_some() && path.is_none();
        let route = Route {
            host: host.map(Into::into),
            path: path.unwrap_or_else(|| "/".to_owned()).into(),
            cluster: cluster.unwrap_or_else(|| Arc::from("")),
        };
        let same = |other: &Route| other.host == route.host && other.path == route.path;
        if has_faults {
            continue;
        }
        if routes.iter().any(same) {
            item.fault("is there twice: another route has the same host and path; remove one");
        }
        routes.push(route);
    }
    routes
}

fn host(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_address = text.starts_with('[') && text.ends_with(']');
    if !is_address && (name.is_empty() || !name.bytes().all(is_name)) {
        return Err(format!(
            "must be a host without scheme and port, as in \"example.org\" or \"*.example.org\", \
             is {}",
            value::quoted(text)
        ));
    }
    Ok(text.to_ascii_lowercase())
}

fn path(text: &str) -> Result<String, String> {
    let is_path = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
    if !text.starts_with('/') || !text.bytes().all(is_path) {
        return Err(format!(
            "must be the beginning of a path, as in \"/api\", is {}",
            value::quoted(text)
        ));
    }
    Ok(text.to_owned())
}

impl Context<'_> {
    /// `tls = { … }` of a listener, or a list of certificates.
    pub(super) fn tls(&self, item: &Item<'_>, mode: Mode) -> Option<Tls> {
        let example = "[{ cert = \"cert.pem\", key = \"key.pem\" }]";
        let alpn: &[&str] = match mode {
            Mode::Http => &["h2", "http/1.1"],
            Mode::Tcp | Mode::Direct => &[],
        };
        let default = Tls {
            certs: Vec::new(),
            client_ca: None,
            client_optional: false,
            min_version: TlsVersion::V12,
            alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
        };
        let pairs = |item: &Item<'_>| {
            let items = item.filled_list(example)?;
            let pairs = items.iter().filter_map(|item| {
                let section = item.section(&keys::CERT_PAIR)?;
                self.cert_pair(&section)
            });
            Some(pairs.collect::<Vec<_>>())
        };
        if item.is_list() {
            let certs = pairs(item).unwrap_or_default();
            return Some(Tls { certs, ..default });
        }
        let section = item.section(&keys::TLS)?;
        let certs = match section.get("certs") {
            Some(item) => {
                for key in ["cert", "key"] {
                    if let Some(item) = section.get(key) {
                        item.fault("stands beside `certs`; put the pair into that list");
                    }
                }
                pairs(&item).unwrap_or_default()
            }
            None => self.cert_pair(&section).into_iter().collect(),
        };
        let client_ca = section.get("client_ca").and_then(|item| item.text());
        let client_optional = section.get("client_optional").and_then(|item| {
            if client_ca.is_none() {
                item.fault("needs client_ca: the authorities of clients' certificates");
            }
            item.boolean()
        });
        let names = section.get("alpn").and_then(|item| {
            let names = item.list("[\"h2\", \"http/1.1\"]")?;
            Some(
                names
                    .iter()
                    .filter_map(|name| protocol(name, mode))
                    .collect(),
            )
        });
        let min_version = section.get("min_version").and_then(|item| item.word());
        Some(Tls {
            certs,
            client_ca: client_ca.map(|text| self.folder.join(text)),
            client_optional: client_optional.unwrap_or(false),
            min_version: min_version.unwrap_or(default.min_version),
            alpn: names.unwrap_or(default.alpn),
        })
    }

    /// `tls = { … }` of a cluster.
    pub(super) fn backend_tls(&self, item: &Item<'_>, source: &Source) -> Option<BackendTls> {
        let section = item.section(&keys::BACKEND_TLS)?;
        let ca = section.get("ca").and_then(|item| item.text());
        let name = section.get("name").and_then(|item| item.text());
        if section.get("name").is_none() && !section.meant("name") && has_unix_sockets(source) {
            section.fault(
                "needs `name`: a backend at a Unix socket has no address that its certificate \
                 could be verified for; write the name in the certificate, as in \
                 name = \"app.internal\"",
            );
        }
        let has_client = section.get("cert").is_some() || section.get("key").is_some();
        Some(BackendTls {
            ca: ca.map(|text| self.folder.join(text)),
            name: name.map(str::to_owned),
            client: match has_client {
                true => self.cert_pair(&section),
                false => None,
            },
        })
    }

    fn cert_pair(&self, section: &Section<'_>) -> Option<CertPair> {
        let cert = section.require("cert", "name the file of the certificate chain (PEM)");
        let key = section.require("key", "name the file of the private key (PEM)");
        let path = |item: Item<'_>| Some(self.folder.join(item.text()?));
        let (cert, key) = (cert.and_then(path), key.and_then(path));
        Some(CertPair {
            cert: cert?,
            key: key?,
        })
    }
}

fn has_unix_sockets(source: &Source) -> bool {
    match source {
        Source::Static(backends) => backends
            .iter()
            .any(|backend| matches!(backend.address, Address::Unix(_))),
        Source::Workers(workers) => workers.contract == Contract::Unix,
    }
}

/// One protocol of ALPN (RFC 7301).
fn protocol(item: &Item<'_>, mode: Mode) -> Option<String> {
    item.parsed(|text| match (mode, text) {
        (Mode::Http, "h2" | "http/1.1") => Ok(text.to_owned()),
        (Mode::Http, _) => Err(format!(
            "must be \"h2\" or \"http/1.1\" in mode = \"http\", is {}",
            value::quoted(text)
        )),
        _ if text.is_empty() || text.len() > 255 => {
            Err("must be the name of a protocol, as in \"h2\"".to_owned())
        }
        _ => Ok(text.to_owned()),
    })
}
