//! The whole effective configuration as a file that means the same.

mod balance;
mod http;

use std::{
    fmt::{self, Display, Write},
    time::Duration,
};

use super::{
    Address, Admin, AdminTcp, Check, Cluster, Config, Listener, Mode, Source, StaticBackend,
    Workers, address,
    value::{bytes_of, duration_of, key, quoted, records_of},
    word,
};

impl Config {
    /// The configuration as TOML, with every default written out. Read as a file on the same
    /// machine, it gives the same configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out)
            .expect("writing into a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "threads = {}", self.threads)?;
        let connections = self.max_connections;
        writeln!(out, "limits = {{ connections = {connections} }}")?;
        for listener in &self.listeners {
            write_listener(out, listener)?;
        }
        for cluster in &self.clusters {
            write_cluster(out, cluster)?;
        }
        write_admin(out, &self.admin)?;
        writeln!(out, "\n[log]")?;
        writeln!(out, "format = \"{}\"", word::word_of(self.log.format))?;
        writeln!(out, "level = \"{}\"", word::word_of(self.log.level))?;
        writeln!(out, "records = {}", records_of(self.log.records))
    }
}

fn write_admin(out: &mut String, admin: &Admin) -> fmt::Result {
    writeln!(out, "\n[admin]")?;
    writeln!(out, "socket = {}", quoted(&admin.socket.to_string_lossy()))?;
    let Some(AdminTcp { listen, token_file }) = &admin.tcp else {
        return writeln!(out, "# listen: not over TCP");
    };
    writeln!(out, "listen = \"{listen}\"")?;
    let token_file = quoted(&token_file.to_string_lossy());
    writeln!(out, "token_file = {token_file}")
}

fn write_listener(out: &mut String, listener: &Listener) -> fmt::Result {
    writeln!(out, "\n[listener.{}]", key(&listener.name))?;
    writeln!(out, "bind = {}", list(&listener.bind))?;
    writeln!(out, "mode = \"{}\"", word::word_of(listener.mode))?;
    writeln!(out, "backlog = {}", listener.backlog)?;
    writeln!(out, "probes = \"{}\"", listener.probes)?;
    writeln!(out, "cluster = {}", quoted(&listener.cluster))?;
    if listener.mode == Mode::Direct {
        return Ok(());
    }
    writeln!(out, "accept_proxy = {}", listener.accept_proxy)?;
    writeln!(out, "trusted = {}", list(&listener.trusted))?;
    http::write_limits(out, listener)?;
    http::write_timeouts(out, listener)?;
    if let Some(tls) = &listener.tls {
        http::write_tls(out, tls)?;
    }
    listener
        .routes
        .iter()
        .try_for_each(|route| http::write_route(out, &listener.name, route))
}

fn write_cluster(out: &mut String, cluster: &Cluster) -> fmt::Result {
    let table = format!("cluster.{}", key(&cluster.name));
    writeln!(out, "\n[{table}]")?;
    if let Source::Static(backends) = &cluster.source {
        writeln!(out, "backends = [")?;
        for backend in backends {
            writeln!(out, "    {},", backend_of(backend))?;
        }
        writeln!(out, "]")?;
    }
    http::write_affinity(out, &cluster.affinity)?;
    writeln!(out, "on_down = \"{}\"", cluster.on_down)?;
    writeln!(
        out,
        "send_proxy = \"{}\"",
        word::word_of(cluster.send_proxy)
    )?;
    write_health(out, cluster)?;
    balance::write(out, &cluster.balance)?;
    http::write_drain(out, &cluster.drain)?;
    let connect = duration_of(cluster.connect_timeout);
    let response = duration_or_off(cluster.response_timeout);
    writeln!(
        out,
        "timeouts = {{ connect = \"{connect}\", response = \"{response}\" }}"
    )?;
    if let Some(tls) = &cluster.tls {
        http::write_backend_tls(out, tls)?;
    }
    match &cluster.source {
        Source::Static(_) => Ok(()),
        Source::Workers(workers) => write_workers(out, &table, workers),
    }
}

fn write_health(out: &mut String, cluster: &Cluster) -> fmt::Result {
    let Some(health) = &cluster.health else {
        return writeln!(out, "health = \"off\"");
    };
    let check = match &health.check {
        Check::Tcp => "tcp = true".to_owned(),
        Check::Http { path, expect } => format!("http = {}, expect = {expect}", quoted(path)),
        Check::Ws { path } => format!("ws = {}", quoted(path)),
    };
    writeln!(
        out,
        "health = {{ {check}, interval = \"{}\", timeout = \"{}\", rise = {}, fall = {} }}",
        duration_of(health.interval),
        duration_of(health.timeout),
        health.rise,
        health.fall
    )
}

fn write_workers(out: &mut String, cluster: &str, workers: &Workers) -> fmt::Result {
    writeln!(out, "\n[{cluster}.workers]")?;
    let command: Vec<_> = workers.command.iter().map(|word| quoted(word)).collect();
    writeln!(out, "command = [{}]", command.join(", "))?;
    writeln!(out, "count = {}", workers.count)?;
    writeln!(out, "contract = \"{}\"", word::word_of(workers.contract))?;
    let env = workers.env.iter();
    let env = env.map(|(name, text)| format!("{} = {}", key(name), quoted(text)));
    match env.collect::<Vec<_>>().join(", ").as_str() {
        "" => writeln!(out, "env = {{}}")?,
        env => writeln!(out, "env = {{ {env} }}")?,
    }
    match &workers.cwd {
        Some(cwd) => writeln!(out, "cwd = {}", quoted(&cwd.to_string_lossy()))?,
        None => writeln!(out, "# cwd: the folder that homescar was started in")?,
    }
    match &workers.user {
        Some(user) => writeln!(out, "user = {}", quoted(user))?,
        None => writeln!(out, "# user: the one that homescar runs as")?,
    }
    writeln!(out, "ready = \"{}\"", word::word_of(workers.ready))?;
    let ready_timeout = duration_of(workers.ready_timeout);
    writeln!(out, "ready_timeout = \"{ready_timeout}\"")?;
    let stop_timeout = duration_of(workers.stop_timeout);
    writeln!(out, "stop_timeout = \"{stop_timeout}\"")?;
    writeln!(out, "stable = \"{}\"", duration_of(workers.stable))?;
    let max_rss = workers.max_rss.map_or_else(|| "off".to_owned(), bytes_of);
    writeln!(out, "max_rss = \"{max_rss}\"")?;
    let watchdog = workers.watchdog;
    let watchdog = watchdog.map_or_else(|| "off".to_owned(), duration_of);
    writeln!(out, "watchdog = \"{watchdog}\"")
}

/// A backend as short as it can be written: the address as it was typed is the name that a
/// backend has without one.
fn backend_of(backend: &StaticBackend) -> String {
    let named_by_address = address::address(&backend.name).as_ref() == Ok(&backend.address);
    let address = match named_by_address {
        true => quoted(&backend.name),
        false => quoted(&address_of(&backend.address)),
    };
    let weight = backend.weight.get();
    let name = &backend.name;
    match (named_by_address, weight) {
        (true, 1) => address,
        (true, _) => format!("{{ address = {address}, weight = {weight} }}"),
        (false, _) => format!(
            "{{ name = {}, address = {address}, weight = {weight} }}",
            quoted(name)
        ),
    }
}

fn address_of(address: &Address) -> String {
    address.to_string()
}

fn list(items: &[impl Display]) -> String {
    let items: Vec<_> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

fn or_off(limit: Option<impl Display>) -> String {
    limit.map_or_else(|| "\"off\"".to_owned(), |limit| limit.to_string())
}

fn duration_or_off(value: Option<Duration>) -> String {
    value.map_or_else(|| "off".to_owned(), duration_of)
}
