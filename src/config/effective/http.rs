//! The parts that say something of requests and of TLS.

use std::fmt::{self, Write};

use super::{duration_or_off, or_off};
use crate::config::{
    Affinity, BackendTls, CertPair, Cookie, Drain, Key, Listener, Mode, Route, Secure, Tls,
    value::{bytes_of, duration_of, key, quoted},
    word,
};

pub(super) fn write_limits(out: &mut String, listener: &Listener) -> fmt::Result {
    let limits = listener.limits;
    write!(
        out,
        "limits = {{ connections = {}, per_client = {}",
        or_off(limits.connections),
        or_off(limits.per_client)
    )?;
    if listener.mode == Mode::Http {
        write!(
            out,
            ", head_bytes = \"{}\", headers = {}, target_bytes = \"{}\", body_bytes = \"{}\", \
             streams = {}",
            bytes_of(limits.head_bytes as u64),
            limits.headers,
            bytes_of(limits.target_bytes as u64),
            limits.body_bytes.map_or_else(|| "off".to_owned(), bytes_of),
            limits.streams
        )?;
    }
    writeln!(out, " }}")
}

pub(super) fn write_timeouts(out: &mut String, listener: &Listener) -> fmt::Result {
    let timeouts = listener.timeouts;
    let header = duration_of(timeouts.header);
    write!(out, "timeouts = {{ header = \"{header}\"")?;
    if listener.mode == Mode::Http {
        write!(
            out,
            ", body = \"{}\", keepalive = \"{}\"",
            duration_of(timeouts.body),
            duration_of(timeouts.keepalive)
        )?;
    }
    writeln!(out, ", idle = \"{}\" }}", duration_or_off(timeouts.idle))
}

pub(super) fn write_tls(out: &mut String, tls: &Tls) -> fmt::Result {
    let pairs: Vec<_> = tls.certs.iter().map(pair).collect();
    let mut parts = vec![format!("certs = [{{ {} }}]", pairs.join(" }, { "))];
    if let Some(path) = &tls.client_ca {
        parts.push(format!("client_ca = {}", quoted(&path.to_string_lossy())));
        parts.push(format!("client_optional = {}", tls.client_optional));
    }
    parts.push(format!(
        "min_version = \"{}\"",
        word::word_of(tls.min_version)
    ));
    let alpn: Vec<_> = tls.alpn.iter().map(|name| quoted(name)).collect();
    parts.push(format!("alpn = [{}]", alpn.join(", ")));
    writeln!(out, "tls = {{ {} }}", parts.join(", "))
}

pub(super) fn write_backend_tls(out: &mut String, tls: &BackendTls) -> fmt::Result {
    let mut parts = Vec::new();
    if let Some(path) = &tls.ca {
        parts.push(format!("ca = {}", quoted(&path.to_string_lossy())));
    }
    if let Some(name) = &tls.name {
        parts.push(format!("name = {}", quoted(name)));
    }
    parts.extend(tls.client.as_ref().map(pair));
    match parts.is_empty() {
        true => writeln!(out, "tls = {{}}"),
        false => writeln!(out, "tls = {{ {} }}", parts.join(", ")),
    }
}

fn pair(pair: &CertPair) -> String {
    format!(
        "cert = {}, key = {}",
        quoted(&pair.cert.to_string_lossy()),
        quoted(&pair.key.to_string_lossy())
    )
}

pub(super) fn write_route(out: &mut String, listener: &str, route: &Route) -> fmt::Result {
    writeln!(out, "\n[[listener.{}.route]]", key(listener))?;
    if let Some(host) = &route.host {
        writeln!(out, "host = {}", quoted(host))?;
    }
    writeln!(out, "path = {}", quoted(&route.path))?;
    writeln!(out, "cluster = {}", quoted(&route.cluster))
}

pub(super) fn write_affinity(out: &mut String, affinity: &Affinity) -> fmt::Result {
    let Affinity {
        key,
        prefix_v4,
        prefix_v6,
        seed,
    } = affinity;
    let prefixes = format!(", prefix_v4 = {prefix_v4}, prefix_v6 = {prefix_v6}");
    let more = match key {
        Key::Address | Key::Header(_) | Key::Query(_) => prefixes,
        Key::Cookie(cookie) => prefixes + &of_cookie(cookie),
        Key::None => String::new(),
    };
    writeln!(
        out,
        "affinity = {{ key = {}{more}, seed = {seed} }}",
        quoted(&key.to_string())
    )
}

fn of_cookie(cookie: &Cookie) -> String {
    let mut parts = vec![
        format!("name = {}", quoted(&cookie.name)),
        format!("path = {}", quoted(&cookie.path)),
    ];
    if let Some(domain) = &cookie.domain {
        parts.push(format!("domain = {}", quoted(domain)));
    }
    parts.push(match cookie.secure {
        Secure::Auto => "secure = \"auto\"".to_owned(),
        Secure::On => "secure = true".to_owned(),
        Secure::Off => "secure = false".to_owned(),
    });
    parts.push(format!("http_only = {}", cookie.http_only));
    parts.push(format!(
        "same_site = \"{}\"",
        word::word_of(cookie.same_site)
    ));
    parts.push(format!("ttl = \"{}\"", duration_of(cookie.ttl)));
    if let Some(path) = &cookie.secrets {
        parts.push(format!("secrets = {}", quoted(&path.to_string_lossy())));
    }
    format!(", cookie = {{ {} }}", parts.join(", "))
}

pub(super) fn write_drain(out: &mut String, drain: &Drain) -> fmt::Result {
    writeln!(
        out,
        "drain = {{ timeout = \"{}\", spread = \"{}\", close = {}, reason = {} }}",
        duration_of(drain.timeout),
        duration_of(drain.spread),
        drain.close_code,
        quoted(&drain.close_reason)
    )
}
