//! How the worker is to misbehave.

use std::{fs, path::PathBuf, time::Duration};

/// The command line.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Says `READY=1` once it listens.
    pub(crate) ready_notify: bool,
    /// Listens only after this.
    pub(crate) ready_after: Duration,
    /// Does not listen at all.
    pub(crate) never_listen: bool,
    /// Exits after this.
    pub(crate) exit_after: Option<Duration>,
    /// With this code.
    pub(crate) exit_code: i32,
    /// Lines that it writes to stderr at the start.
    pub(crate) stderr: Vec<String>,
    /// Does not end on TERM.
    pub(crate) ignore_term: bool,
    /// Ends so long after TERM.
    pub(crate) term_delay: Duration,
    /// Has a child and a daemonised grandchild.
    pub(crate) children: bool,
    /// Bytes that it writes to stdout at the start.
    pub(crate) flood: u64,
    /// Pings its watchdog.
    pub(crate) watchdog: bool,
    /// Speaks first: `whoami` on accept.
    pub(crate) banner: bool,
    /// `/health` is answered with the status in this file.
    pub(crate) health_file: Option<PathBuf>,
    /// Accepts and never answers.
    pub(crate) mute: bool,
    /// A PROXY header is in front of each connection.
    pub(crate) proxy: bool,
    /// Prints its environment.
    pub(crate) print_env: bool,
    /// On TERM accepts nobody more, says so with its next answers, and ends when all have gone.
    pub(crate) graceful: bool,
    /// Listens on another port than it was told to, or on one beside the socket that it was given.
    pub(crate) wrong_port: bool,
    /// Takes ever more memory once it listens, of which it may not have much.
    pub(crate) greedy: bool,
}

impl Options {
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        options.add(args);
        options
    }

    fn add(&mut self, mut args: impl Iterator<Item = String>) {
        let options = self;
        while let Some(name) = args.next() {
            let mut value = || {
                args.next()
                    .unwrap_or_else(|| panic!("{name} needs a value"))
            };
            let ms = |text: String| Duration::from_millis(text.parse().unwrap());
            match name.as_str() {
                "--ready-notify" => options.ready_notify = true,
                "--ready-after" => options.ready_after = ms(value()),
                "--never-listen" => options.never_listen = true,
                "--exit-after" => options.exit_after = Some(ms(value())),
                "--exit-code" => options.exit_code = value().parse().unwrap(),
                "--stderr" => options.stderr.push(value()),
                "--ignore-term" => options.ignore_term = true,
                "--term-delay" => options.term_delay = ms(value()),
                "--children" => options.children = true,
                "--flood" => options.flood = value().parse().unwrap(),
                "--watchdog" => options.watchdog = true,
                "--banner" => options.banner = true,
                "--health-file" => options.health_file = Some(value().into()),
                "--mute" => options.mute = true,
                "--proxy" => options.proxy = true,
                "--print-env" => options.print_env = true,
                "--graceful" => options.graceful = true,
                "--wrong-port" => options.wrong_port = true,
                "--greedy" => options.greedy = true,
                // A file with more of them, as a release that is good or broken in some way.
                "--release" => {
                    let more = fs::read_to_string(value()).unwrap();
                    options.add(&mut more.split_whitespace().map(str::to_owned));
                }
                _ => panic!("unknown option {name}"),
            }
        }
    }
}
