//! Configuration files: what each fault is told as, and that nothing is lost on the way back.

use std::{
    fs,
    io::Write,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
};

use homescar::config::{
    Balance, Bind, Check, Config, Contract, Facts, Fault, Key, Log, LogFormat, LogLevel, OnDown,
    OnFull, Passive, Position, Records, RunOptions, Source,
};
use proptest::prelude::*;

/// When set, the expectations are written anew from what is said now. Read them all before they
/// are committed.
const REWRITE: &str = "HOMESCAR_REWRITE_EXPECTED";

/// A machine that is the same everywhere: 4 cores, 1,048,576 descriptors, root, a `PATH` with
/// `node` and `python3` and the user `www-data`.
fn facts() -> Facts {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Facts {
        cores: NonZeroUsize::MIN.saturating_add(3),
        max_descriptors: 1_048_576,
        euid: 0,
        folder: root.to_owned(),
        path: root.join("tests/config/invalid/bin").into(),
        web_concurrency: None,
        socket: "/run/homescar.sock".into(),
        has_user: |name| name == "www-data",
    }
}

/// The files of a folder with this extension, by name; never empty.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&folder).expect("a folder of files");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.display());
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|stem| stem.to_str())
        .expect("a name")
}

#[test]
fn every_invalid_file_is_told_exactly_what_is_wrong() {
    let folder = "tests/config/invalid";
    let tomls = files(folder, "toml");
    assert!(tomls.len() >= 45, "only {} invalid files", tomls.len());
    // Paths in messages are relative to here, so that they are the same on every machine.
    let facts = Facts {
        folder: PathBuf::from(folder),
        path: "bin".into(),
        ..facts()
    };
    let mut wrong = Vec::new();
    for toml in &tomls {
        let name = stem(toml);
        let euid = if name.ends_with("without_root") {
            1000
        } else {
            0
        };
        let facts = Facts {
            euid,
            ..facts.clone()
        };
        let text = fs::read_to_string(toml).unwrap();
        let got = match Config::parse(&text, &format!("{name}.toml"), &facts) {
            Ok(_) => "(no fault)\n".to_owned(),
            Err(faults) => format!("{faults}\n"),
        };
        let expected_file = toml.with_extension("expected");
        if std::env::var_os(REWRITE).is_some() {
            fs::write(&expected_file, &got).unwrap();
        }
        let expected = fs::read_to_string(&expected_file).unwrap_or_default();
        if got != expected || expected.starts_with("(no fault)") {
            wrong.push(format!("{name}.toml\nexpected:\n{expected}got:\n{got}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let mut names = tomls.iter().map(|path| stem(path));
    let mut expected = files(folder, "expected").into_iter();
    let orphan = expected.find(|path| !names.by_ref().any(|name| name == stem(path)));
    assert_eq!(orphan, None, "an expectation without its file");
}

#[test]
fn every_valid_file_and_example_survives_the_way_back() {
    for folder in ["tests/config/valid", "config"] {
        for file in files(folder, "toml") {
            let config = Config::load(&file, &facts()).unwrap_or_else(|faults| panic!("{faults}"));
            let toml = config.to_toml();
            let name = file.with_file_name("effective.toml");
            let name = name.to_str().unwrap();
            let again = Config::parse(&toml, name, &facts())
                .unwrap_or_else(|faults| panic!("{faults}\nin\n{toml}"));
            assert_eq!(again, config, "of {}, written as\n{toml}", file.display());
            assert_eq!(again.to_toml(), toml, "of {}", file.display());
        }
    }
}

fn valid(name: &str) -> Config {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("tests/config/valid").join(name);
    Config::load(&file, &facts()).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn the_smallest_example_has_every_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::load(&root.join("config/minimal.toml"), &facts()).unwrap();
    let expected = r#"threads = 4
limits = { connections = 524144 }

[listener.web]
bind = ["0.0.0.0:3000"]
mode = "tcp"
backlog = 4096
probes = "127.72.83.0"
cluster = "app"
accept_proxy = false
trusted = []
limits = { connections = "off", per_client = "off" }
timeouts = { header = "10s", idle = "1h" }

[cluster.app]
affinity = { key = "address", prefix_v4 = 32, prefix_v6 = 64, seed = 0 }
on_down = "hold 2s"
send_proxy = "off"
health = { tcp = true, interval = "1s", timeout = "10s", rise = 2, fall = 3 }
passive = "off"
slow_start = "off"
max_load = "off"
max_connections_per_slot = "off"
rebalance = "10/s"
drain = { timeout = "30s", spread = "10s", close = 1012, reason = "" }
timeouts = { connect = "2s", response = "1m" }

[cluster.app.workers]
command = ["node", "server.js"]
count = 4
contract = "node"
env = {}
# cwd: the folder that homescar was started in
# user: the one that homescar runs as
ready = "auto"
ready_timeout = "1m"
stop_timeout = "30s"
stable = "5s"
max_rss = "off"
watchdog = "off"

[admin]
socket = "/run/homescar.sock"
# listen: not over TCP

[log]
format = "text"
level = "info"
records = "all"
"#;
    assert_eq!(config.to_toml(), expected);
}

#[test]
fn the_example_with_every_knob_shows_the_defaults() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let load = |name: &str| {
        let config = Config::load(&root.join("config").join(name), &facts()).unwrap();
        let file = fs::read_to_string(root.join("config").join(name)).unwrap();
        (config, file)
    };
    let (full, text) = load("full.toml");
    let (minimal, _) = load("minimal.toml");
    // But for the second cluster, which shows `backends`, and what is relative to the machine.
    let first = Config {
        clusters: vec![full.clusters[0].clone()],
        ..full.clone()
    };
    assert_eq!(first.to_toml(), minimal.to_toml());
    for line in full.to_toml().lines() {
        let key = line.split(" =").next().unwrap();
        let key = key.trim_start_matches("# ").split(':').next().unwrap();
        assert!(text.contains(key), "`{key}` is missing in full.toml");
    }
}

#[test]
fn listeners_and_slots_keep_the_order_of_the_file() {
    let config = valid("binds.toml");
    let names: Vec<_> = config.listeners.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["one", "two", "three", "four"]);
    assert_eq!(config.listeners[1].bind, [Bind::all(3002)]);
    let all = [Bind::all(3003), Bind::all(3004), Bind::all(3005)];
    assert_eq!(config.listeners[2].bind, all);
    let localhost = config.listeners[0].bind[2];
    assert_eq!(localhost.addr, "127.0.0.1:3001".parse().unwrap());
    let v6 = config.listeners[3].bind[1];
    assert!(!v6.dual_stack, "an IPv6 address is for IPv6 alone");

    let Source::Static(backends) = valid("backends.toml").clusters[0].source.clone() else {
        panic!("static backends");
    };
    let names: Vec<_> = backends.iter().map(|one| &*one.name).collect();
    let expected = [
        "10.0.0.1:3000",
        "localhost:3000",
        "[2001:0db8::1]:3000",
        "unix:/run/app/0.sock",
        "10.0.0.2:3000",
        "localhost:3001",
        "big.one",
        "sock",
    ];
    assert_eq!(names, expected, "the address as typed is the name");
    assert_eq!(backends[5].weight.get(), 256);
}

#[test]
fn what_is_written_is_what_is_used() {
    let config = valid("workers.toml");
    let Source::Workers(workers) = &config.clusters[0].source else {
        panic!("workers");
    };
    assert_eq!(workers.count.get(), 4, "one per core");
    assert_eq!(workers.contract, Contract::Fd);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cwd = root.join("tests/config/valid/app");
    assert_eq!(
        workers.cwd.as_deref(),
        Some(&*cwd),
        "from the file's folder"
    );
    assert_eq!(workers.watchdog.unwrap().as_millis(), 1500);
    assert_eq!(workers.env["PORT"], "3000");

    let config = valid("backends.toml");
    let cluster = &config.clusters[0];
    assert_eq!(cluster.affinity.key, Key::None);
    assert_eq!(cluster.affinity.seed, u64::MAX);
    assert_eq!(cluster.on_down, OnDown::Reject);
    let check = &cluster.health.as_ref().unwrap().check;
    let path = "/health?full=1".to_owned();
    assert_eq!(*check, Check::Http { path, expect: 204 });

    let clusters = &valid("balance.toml").clusters;
    let balance = &clusters[0].balance;
    let capacity = balance.capacity.as_ref().unwrap();
    assert_eq!((capacity.per_slot.get(), capacity.queue_length), (10, 0));
    assert_eq!(capacity.on_full, OnFull::Next);
    assert_eq!(balance.max_load, Some(2.0));
    assert_eq!(balance.rebalance.map(NonZeroU32::get), Some(25));
    assert!(balance.passive.as_ref().unwrap().server_errors);
    assert_eq!(clusters[1].balance, Balance::default());
    let of_workers = clusters[2].balance.passive.clone();
    assert_eq!(of_workers, Some(Passive::default()), "when it is asked for");

    let listener = &valid("proxy_protocol.toml").listeners[0];
    let trusted: Vec<_> = listener.trusted.iter().map(ToString::to_string).collect();
    let networks = [
        "10.0.0.0/8",
        "192.0.2.1/32",
        "2001:db8::/32",
        "10.1.0.0/16",
        "0.0.0.0/0",
    ];
    assert_eq!(trusted, networks);
    assert_eq!(listener.timeouts.idle, None);
}

#[test]
fn files_that_cannot_be_read_are_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str| {
        let path = folder.path().join(name);
        let faults = Config::load(&path, &facts()).unwrap_err().to_string();
        let rest = faults.strip_prefix(&format!("{}: ", path.display()));
        rest.unwrap_or_else(|| panic!("no file name in front of: {faults}"))
            .to_owned()
    };
    assert_eq!(told("missing.toml"), "does not exist; check the path");
    assert_eq!(
        told("."),
        "is a directory; write the path of the file in it, as in homescar.toml"
    );
    fs::write(folder.path().join("latin1.toml"), b"a = 1\n# caf\xe9\n").unwrap();
    assert_eq!(
        told("latin1.toml"),
        "is not UTF-8 text, from line 2, column 6 on; save it as such"
    );
    fs::write(folder.path().join("empty.toml"), "").unwrap();
    assert!(told("empty.toml").starts_with("is empty; the smallest configuration is"));
    let mut large = fs::File::create(folder.path().join("large.toml")).unwrap();
    large.write_all(&vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(
        told("large.toml"),
        "is larger than 1 MiB: this is no configuration"
    );
}

#[test]
fn faults_can_be_read_one_by_one() {
    let faults = Config::parse("threads = 0", "x.toml", &facts()).unwrap_err();
    let found: Vec<&Fault> = faults.iter().collect();
    let position = Some(Position {
        line: 1,
        column: 11,
    });
    assert_eq!(found.len(), 2);
    assert_eq!((found[1].position, &*found[1].key), (position, "threads"));
}

/// A file as somebody leaves it in the middle of an edit: a piece is gone, or there twice, or
/// something odd stands in its place.
fn broken(text: &str, from: usize, length: usize, odd: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let from = from % (chars.len() + 1);
    let to = (from + length).min(chars.len());
    let piece: String = chars[from..to].iter().collect();
    let odd = if odd == "twice" {
        piece.repeat(2)
    } else {
        odd.to_owned()
    };
    let before: String = chars[..from].iter().collect();
    let after: String = chars[to..].iter().collect();
    format!("{before}{odd}{after}")
}

proptest! {
    #[test]
    fn a_broken_file_has_faults_on_one_line_each_and_a_good_one_a_way_back(
        file in 0_usize..1000,
        from in 0_usize..4000,
        length in 0_usize..40,
        odd in prop_oneof![
            Just("twice"), Just(""), Just("\""), Just("["), Just("]]"), Just("{"), Just("}"),
            Just("="), Just("\n"), Just("-1"), Just("0"), Just("99999999999999999999"),
            Just("\\u0000"), Just("ß€"), Just("."), Just("true"), Just("\u{1b}"),
        ],
    ) {
        let mut all = files("tests/config/valid", "toml");
        all.extend(files("config", "toml"));
        let file = &all[file % all.len()];
        let text = broken(&fs::read_to_string(file).unwrap(), from, length, odd);
        let name = file.to_str().unwrap();
        match Config::parse(&text, name, &facts()) {
            Ok(config) => {
                let toml = config.to_toml();
                let again = Config::parse(&toml, name, &facts());
                prop_assert_eq!(again, Ok(config), "written as\n{}", toml);
            }
            Err(faults) => {
                let told = faults.to_string();
                prop_assert_eq!(told.lines().count(), faults.iter().count());
                let places: Vec<_> = faults.iter().filter_map(|fault| fault.position).collect();
                prop_assert!(places.is_sorted(), "{}", told);
                let last = text.lines().count() + 1;
                prop_assert!(places.iter().all(|at| (1..=last).contains(&at.line)), "{}", told);
            }
        }
    }
}

fn run_options() -> RunOptions {
    RunOptions {
        command: vec!["node".to_owned(), "server.js".to_owned()],
        ..RunOptions::default()
    }
}

fn worker_count(config: &Config) -> usize {
    match &config.clusters[0].source {
        Source::Workers(workers) => workers.count.get(),
        Source::Static(_) => panic!("workers"),
    }
}

#[test]
fn run_needs_nothing_but_a_command() {
    let config = Config::for_run(run_options(), &facts()).unwrap();
    assert_eq!(&*config.listeners[0].name, "web");
    assert_eq!(&*config.listeners[0].cluster, "app");
    assert_eq!(config.listeners[0].bind[0].to_string(), "127.0.0.1:3000");
    assert_eq!(worker_count(&config), 4, "one per core");
    let toml = config.to_toml();
    let again = Config::parse(&toml, "run.toml", &facts()).unwrap();
    assert_eq!(again, config, "written as\n{toml}");
}

#[test]
fn the_contract_suits_the_command_unless_it_is_said() {
    let contract = |command: &[&str], said| {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let options = RunOptions {
            command,
            contract: said,
            ..RunOptions::default()
        };
        let config = Config::for_run(options, &facts()).unwrap();
        let Source::Workers(workers) = &config.clusters[0].source else {
            panic!("workers");
        };
        workers.contract
    };
    assert_eq!(contract(&["node", "server.js"], None), Contract::Node);
    let (node, port) = (["node", "server.js"], Some(Contract::Port));
    assert_eq!(contract(&node, port), Contract::Port);
    assert_eq!(contract(&["python3", "node"], None), Contract::Port);
    let of = |program: &str| Contract::of_command(&[program.to_owned()]);
    assert_eq!(of("/opt/node-22/bin/node"), Contract::Node);
    assert_eq!(of("nodejs"), Contract::Node);
    assert_eq!(of("node-gyp"), Contract::Port);
    assert_eq!(Contract::of_command(&[]), Contract::Port);
}

#[test]
fn run_takes_what_it_is_told() {
    let options = RunOptions {
        listen: vec![":3000".to_owned(), "127.0.0.1:4000".to_owned()],
        workers: Some(7),
        contract: Some(Contract::Fd),
        log: Log {
            format: LogFormat::Json,
            level: LogLevel::Debug,
            records: Records::ALL,
        },
        ..run_options()
    };
    // What is said on the command line counts more than the environment, even a bad one.
    let facts = Facts {
        web_concurrency: Some("many".to_owned()),
        ..facts()
    };
    let config = Config::for_run(options, &facts).unwrap();
    assert_eq!(config.listeners[0].bind.len(), 2);
    assert_eq!(config.listeners[0].bind[0], Bind::all(3000));
    assert_eq!(worker_count(&config), 7);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn run_reads_web_concurrency() {
    let count = |set: &str| {
        let facts = Facts {
            web_concurrency: Some(set.to_owned()),
            ..facts()
        };
        Config::for_run(run_options(), &facts)
            .map(|config| worker_count(&config))
            .map_err(|faults| faults.to_string())
    };
    assert_eq!(count("3"), Ok(3));
    assert_eq!(count(""), Ok(4), "set to nothing is not set");
    for bad in ["many", "0", "-1", "1025", "2.5"] {
        let told = format!(
            "WEB_CONCURRENCY: must be a number between 1 and 1024, is \"{bad}\"; unset the \
             variable, or say --workers N"
        );
        assert_eq!(count(bad), Err(told));
    }
}

#[test]
fn run_tells_all_faults_by_their_flags() {
    let options = RunOptions {
        listen: ["127.0.0.1", ":3000", "0.0.0.0:3000", ":3000"]
            .map(str::to_owned)
            .to_vec(),
        workers: Some(0),
        command: vec!["nodee".to_owned()],
        ..run_options()
    };
    let told = Config::for_run(options, &facts()).unwrap_err().to_string();
    let lines: Vec<_> = told.lines().collect();
    let expected = [
        "--listen: \"127.0.0.1\" has no port: write it as in \"127.0.0.1:3000\"",
        "--listen: \"0.0.0.0:3000\" overlaps \":3000\"; remove one of the two",
        "--listen: \":3000\" is given twice; remove one",
        "--workers: must be a number between 1 and 1024, is 0",
        "command: `nodee` was not found in PATH; install it, or write its whole path",
    ];
    assert_eq!(lines, expected);

    let nothing = RunOptions {
        command: Vec::new(),
        ..run_options()
    };
    let told = Config::for_run(nothing, &facts()).unwrap_err().to_string();
    let missing = "command: is missing: write it after --, as in `homescar run -- node server.js`";
    assert_eq!(told, missing);
}

#[test]
fn this_process_has_plausible_facts() {
    let facts = Facts::of_this_process();
    assert!(facts.max_descriptors > 0);
    assert!(facts.folder.is_absolute());
    assert!((facts.has_user)("root"));
    assert!(!(facts.has_user)("nobody-at-all"));
    let connections = |max_descriptors, workers| {
        let facts = Facts {
            max_descriptors,
            ..facts.clone()
        };
        facts.max_connections(workers)
    };
    assert_eq!(connections(1024, 0), 384);
    assert_eq!(connections(1024, 50), 184);
    assert_eq!(connections(100, 4), 1, "never none at all");
}
