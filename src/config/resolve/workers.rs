//! `workers = { … }`: the processes of a cluster.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Component, PathBuf},
    sync::Arc,
};

use super::{Context, auto_or_count};
use crate::config::{
    Contract, Workers,
    file::{Item, Section},
    keys, value,
};

/// Variables that homescar gives to each worker itself.
const OWN_VARIABLES: [&str; 10] = [
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "HOMESCAR_SLOT",
    "HOMESCAR_GENERATION",
    "NODE_APP_INSTANCE",
];

/// Less than what any program has would replace workers for ever.
const LEAST_MEMORY: u64 = 1 << 20;

impl Context<'_> {
    pub(super) fn workers(&self, item: &Item<'_>) -> Option<Arc<Workers>> {
        let section = item.section(&keys::WORKERS)?;
        let what = "write the program and its arguments, as in [\"node\", \"server.js\"]";
        let command = section.require("command", what);
        let count = section.get("count");
        let count = count.and_then(|item| auto_or_count(&item)).flatten();
        let default = Workers::new(Vec::new(), count.unwrap_or_else(|| self.cores()));
        let contract = section.get("contract").and_then(|item| item.word());
        let contract = contract.flatten().unwrap_or_else(|| {
            // Only to know it: what is wrong with the command is said below.
            let program = command.as_ref().and_then(Item::first_text);
            Contract::of_command(program.map(str::to_owned).as_slice())
        });
        let env = env(&section, contract);
        // `Err`: it was written, but cannot be used, so that nothing can be looked up in it.
        let cwd = section.get("cwd").map(|item| self.cwd(&item).ok_or(()));
        let cwd = cwd.transpose();
        let command = command.and_then(|item| {
            let argv = argv(&item)?;
            if let (Some((program, program_at)), Ok(cwd)) = (argv.first(), &cwd) {
                let path = env.get("PATH").map(String::as_str);
                let checked = self.facts.check_program(program, cwd.as_deref(), path);
                checked.map_err(|why| program_at.fault(why)).ok()?;
            }
            Some(argv.into_iter().map(|(argument, _)| argument).collect())
        });
        let ready = section.get("ready").and_then(|item| item.word());
        let time = |key: &str| section.get(key)?.duration();
        let watchdog = section.get("watchdog");
        let watchdog = watchdog.and_then(|item| item.unless_off(Item::duration));
        let max_rss = section.get("max_rss");
        let max_rss =
            max_rss.and_then(|item| item.unless_off(|item| item.bytes(LEAST_MEMORY..=u64::MAX)));
        Some(Arc::new(Workers {
            command: command.unwrap_or_default(),
            contract,
            env,
            cwd: cwd.ok().flatten(),
            user: section.get("user").and_then(|item| self.user(&item)),
            ready: ready.unwrap_or(default.ready),
            ready_timeout: time("ready_timeout").unwrap_or(default.ready_timeout),
            stop_timeout: time("stop_timeout").unwrap_or(default.stop_timeout),
            stable: time("stable").unwrap_or(default.stable),
            max_rss: max_rss.flatten(),
            watchdog: watchdog.flatten(),
            ..default
        }))
    }

    /// The folder, absolute and without `.` in it.
    fn cwd(&self, item: &Item<'_>) -> Option<PathBuf> {
        let text = item.text()?;
        let folder = self.folder.join(text);
        let is_noise = |part: &Component<'_>| matches!(part, Component::CurDir);
        let folder: PathBuf = folder.components().filter(|part| !is_noise(part)).collect();
        let shown = folder.display();
        let from = match text.starts_with('/') {
            true => "",
            false => " (relative paths start at the folder of this file)",
        };
        match folder.metadata() {
            _ if text.is_empty() => item.fault("is empty; write a folder, or remove it"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                item.fault(format!("the folder {shown} does not exist{from}"));
            }
            Err(error) => item.fault(format!("the folder {shown} cannot be used: {error}")),
            Ok(found) if !found.is_dir() => {
                item.fault(format!("{shown} is not a folder{from}"));
            }
            Ok(_) => return Some(folder),
        }
        None
    }

    fn user(&self, item: &Item<'_>) -> Option<String> {
        let user = item.text()?;
        let typed = value::quoted(user);
        if !(self.facts.has_user)(user) {
            item.fault(format!(
                "there is no user {typed} on this machine; write a name of /etc/passwd"
            ));
        } else if self.facts.euid != 0 {
            let uid = self.facts.euid;
            item.fault(format!(
                "only root can run workers as another user, and homescar runs as uid {uid}; \
                 remove it, or start homescar as root"
            ));
        }
        Some(user.to_owned())
    }
}

/// Program and arguments, each with the item to blame.
fn argv<'a>(item: &Item<'a>) -> Option<Vec<(String, Item<'a>)>> {
    if let Some(text) = item.as_text() {
        let words: Vec<_> = text.split_whitespace().map(value::quoted).collect();
        let list = words.join(", ");
        item.fault(format!(
            "must be a list, as it is run without a shell: write [{list}]"
        ));
        return None;
    }
    let items = item.filled_list("[\"node\", \"server.js\"]")?;
    let mut argv = Vec::new();
    let length = items.len();
    for (index, item) in items.into_iter().enumerate() {
        let Some(argument) = item.text() else {
            continue;
        };
        match argument {
            _ if argument.contains('\0') => item.fault("has a zero byte in it; remove it"),
            "" if index == 0 => item.fault("the program's name is empty; write one"),
            _ => argv.push((argument.to_owned(), item)),
        }
    }
    (argv.len() == length).then_some(argv)
}

fn env(section: &Section<'_>, contract: Contract) -> BTreeMap<String, String> {
    let entries = section.get("env").map(|item| item.entries());
    let mut env = BTreeMap::new();
    let may_have_port = matches!(contract, Contract::Fd | Contract::Node);
    for entry in entries.into_iter().flatten() {
        let name = entry.name;
        let own = OWN_VARIABLES.contains(&name) || (name == "PORT" && !may_have_port);
        match name {
            _ if name.is_empty() || name.contains(['=', '\0']) => {
                entry.fault("is not the name of a variable: it is empty or has a `=` in it");
            }
            _ if own => entry.fault("homescar sets this for each worker itself; remove it"),
            _ => {}
        }
        let Some(text) = entry.item.text() else {
            continue;
        };
        if text.contains('\0') {
            entry.item.fault("has a zero byte in it; remove it");
        }
        env.insert(name.to_owned(), text.to_owned());
    }
    env
}
