//! The proxies that are measured: what they are, and their configurations, which one can read.

use std::{fmt::Write as _, fs, net::SocketAddr, path::PathBuf};

use super::{Outcome, machine::output_of};

/// A proxy with one of its configurations, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// homescar as it is by default, with its records.
    Homescar,
    /// homescar without records.
    HomescarQuiet,
    /// haproxy, without an access log.
    Haproxy,
    /// haproxy with its access log.
    HaproxyLog,
    /// nginx, without an access log.
    Nginx,
    /// Envoy, without an access log.
    Envoy,
    /// Nothing: clients go straight to the backends.
    None,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Homescar => "homescar",
            Self::HomescarQuiet => "homescar-quiet",
            Self::Haproxy => "haproxy",
            Self::HaproxyLog => "haproxy-log",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::None => "none",
        }
    }

    /// Which lines marked `{log}` and `{quiet}` are there.
    const fn has_log(self) -> bool {
        !matches!(self, Self::HomescarQuiet | Self::Haproxy)
    }

    const fn template(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::Homescar | Self::HomescarQuiet, Mode::Tcp) => {
                include_str!("../peers/homescar-tcp.toml")
            }
            (Self::Homescar | Self::HomescarQuiet, Mode::Http) => {
                include_str!("../peers/homescar-http.toml")
            }
            (Self::Haproxy | Self::HaproxyLog, Mode::Tcp) => {
                include_str!("../peers/haproxy-tcp.cfg")
            }
            (Self::Haproxy | Self::HaproxyLog, Mode::Http) => {
                include_str!("../peers/haproxy-http.cfg")
            }
            (Self::Nginx, Mode::Tcp) => include_str!("../peers/nginx-tcp.conf"),
            (Self::Nginx, Mode::Http) => include_str!("../peers/nginx-http.conf"),
            (Self::Envoy, Mode::Tcp) => include_str!("../peers/envoy-tcp.yaml"),
            (Self::Envoy, Mode::Http) => include_str!("../peers/envoy-http.yaml"),
            (Self::None, _) => "",
        }
    }
}

/// What the proxy is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Tcp,
    Http,
}

/// What is filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blanks<'a> {
    pub(crate) mode: Mode,
    pub(crate) tls: bool,
    pub(crate) listen: SocketAddr,
    pub(crate) backends: &'a [SocketAddr],
    /// A folder of its own, with the certificate.
    pub(crate) dir: &'a str,
    /// There is more to carry at once than a page or two.
    pub(crate) large: bool,
    /// Something will happen to it.
    pub(crate) event: bool,
    /// What the backends run, where they are workers.
    pub(crate) server: Option<&'a str>,
}

impl Blanks<'_> {
    /// The configuration of a peer.
    pub(crate) fn fill(self, kind: Kind) -> Outcome<String> {
        let marks = [
            ("{tls}", self.tls),
            ("{plain}", !self.tls),
            ("{log}", kind.has_log()),
            ("{quiet}", !kind.has_log()),
            ("{large}", self.large),
            ("{event}", self.event),
            ("{workers}", self.server.is_some()),
            ("{backend}", self.server.is_none()),
        ];
        let [mut haproxy, mut nginx, mut envoy] = [const { String::new() }; 3];
        for (index, backend) in self.backends.iter().enumerate() {
            writeln!(haproxy, "    server s{index} {backend}")?;
            writeln!(nginx, "        server {backend};")?;
            let (host, port) = (backend.ip(), backend.port());
            writeln!(
                envoy,
                "        - endpoint: {{ address: {{ socket_address: {{ address: \"{host}\", port_value: {port} }} }} }}"
            )?;
        }
        let quoted: Vec<String> = self.backends.iter().map(|it| format!("\"{it}\"")).collect();
        let mut filled = String::new();
        for line in kind.template(self.mode).lines() {
            let text = line.trim_start();
            let indent = &line[..line.len() - text.len()];
            let mark = marks.iter().find(|(mark, _)| text.starts_with(mark));
            let text = match mark {
                Some((_, false)) => continue,
                Some((mark, true)) => text[mark.len()..].strip_prefix(' ').unwrap_or_default(),
                None => text,
            };
            let text = text
                .replace("{listen}", &self.listen.to_string())
                .replace("{host}", &self.listen.ip().to_string())
                .replace("{port}", &self.listen.port().to_string())
                .replace("{dir}", self.dir)
                .replace("{server}", self.server.unwrap_or_default())
                .replace("{backends}", &quoted.join(", "))
                .replace("{servers}", haproxy.trim_end())
                .replace("{nginx}", nginx.trim_end())
                .replace("{envoy}", envoy.trim_end());
            writeln!(filled, "{indent}{text}")?;
        }
        Ok(filled)
    }
}

/// Where the proxies are.
#[derive(Debug, clap::Args)]
pub(crate) struct Programs {
    /// The homescar to measure; the one built with this benchmark when not given.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_homescar"))]
    homescar: PathBuf,
    /// The haproxy to measure.
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
    /// The nginx to measure.
    #[arg(long, default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// The Envoy to measure, where `bench/run` has installed it.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/envoy"))]
    envoy: PathBuf,
}

/// A proxy that is installed.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    /// What it says when asked for its version.
    pub(crate) version: String,
    pub(crate) program: PathBuf,
}

impl Peer {
    pub(crate) fn find(kind: Kind, programs: &Programs) -> Outcome<Self> {
        let (program, ask) = match kind {
            Kind::Homescar | Kind::HomescarQuiet => (&programs.homescar, "--version"),
            Kind::Haproxy | Kind::HaproxyLog => (&programs.haproxy, "-v"),
            Kind::Nginx => (&programs.nginx, "-v"),
            Kind::Envoy => (&programs.envoy, "--version"),
            Kind::None => (&PathBuf::new(), ""),
        };
        let version = match kind {
            Kind::None => "clients straight to the backends".to_owned(),
            _ => output_of(&program.to_string_lossy(), &[ask])?,
        };
        // Envoy's first word is its path.
        let version = match version.split_once("version: ") {
            Some((_, version)) if kind == Kind::Envoy => version.to_owned(),
            _ => version,
        };
        Ok(Self {
            kind,
            version,
            program: fs::canonicalize(program).unwrap_or_else(|_| program.clone()),
        })
    }

    /// How it is told to read its configuration and to stay in the foreground.
    pub(crate) fn words(&self, config: &str, event: bool) -> Vec<String> {
        let words: &[&str] = match self.kind {
            Kind::Homescar | Kind::HomescarQuiet => &["serve", "-c", config],
            // As a master, as which it can be told to reload.
            Kind::Haproxy | Kind::HaproxyLog if event => &["-W", "-db", "-f", config],
            Kind::Haproxy | Kind::HaproxyLog => &["-db", "-f", config],
            Kind::Nginx => &["-c", config],
            Kind::Envoy => &[
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "warning",
                "-c",
                config,
            ],
            Kind::None => &[],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }
}
