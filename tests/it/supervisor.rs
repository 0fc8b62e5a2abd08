//! Workers are started, kept and ended, however rude they are.

use std::{ffi::OsString, fs, path::Path, time::Duration};

use homescar::{
    cluster::{Skip, Snapshot},
    config::{Address, Contract, ReadyBy},
};
use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
    },
    unistd::Pid,
};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::support::{
    DEADLINE, Log, Rig, ask, cluster_of, connect, is_alive, kill_9, number_after, pid_of,
    until_dead, whoami, workers,
};

#[tokio::test]
async fn a_worker_is_told_who_it_is_and_comes_back_as_the_next_generation() {
    let log = Log::capture();
    let mut config = workers(&["--print-env", "--ready-notify"]);
    config.env = [
        ("GREETING".to_owned(), "hello".to_owned()),
        ("NODE_APP_INSTANCE".to_owned(), "seven".to_owned()),
        ("PORT".to_owned(), "1".to_owned()),
    ]
    .into();
    config.cwd = Some("/".into());
    config.watchdog = None;
    let rig = Rig::start(&cluster_of(config));
    let first = rig.ready("app/0", 1).await;
    let me = whoami(&first).await;
    assert_eq!(
        (&me["slot"], &me["generation"]),
        (&"app/0".into(), &1.into())
    );
    assert_eq!(me["pid"], pid_of(&first));
    for variable in [
        "HOMESCAR_SLOT=app/0",
        "HOMESCAR_GENERATION=1",
        &format!("HOMESCAR_INSTANCE={}", rig.home.id()),
        "GREETING=hello",
        "NODE_APP_INSTANCE=seven",
        "WEB_CONCURRENCY=1",
        &format!("NOTIFY_SOCKET={}/", rig.home.dir().display()),
    ] {
        log.wait_for(&format!("worker: {variable}")).await;
    }
    let Address::Tcp(addr) = first.backend.as_ref().unwrap().address else {
        panic!("a port");
    };
    log.wait_for(&format!("worker: PORT={}", addr.port())).await;
    assert!(log.with("worker: LISTEN_").is_empty());
    assert!(log.with("worker: WATCHDOG_").is_empty());
    let booted = log.wait_for("app/0 ready after").await;
    assert!(booted.starts_with("INFO homescar::supervisor"), "{booted}");

    kill_9(pid_of(&first));
    let down = |snapshot: &Snapshot| snapshot.entries[0].skip == Some(Skip::Restarting);
    let vacant = rig.until("restarting", down).await;
    assert!(vacant.entries[0].backend.is_none());
    let second = rig.ready("app/0", 2).await;
    assert_eq!(whoami(&second).await["generation"], 2);
    let ended = log.wait_for("app/0 ended: signal KILL, after").await;
    assert!(ended.starts_with("WARN"), "{ended}");
    rig.stop().await;
    assert!(!is_alive(pid_of(&second)));
    log.wait_for("app/0 stopped: signal TERM, after").await;
    assert_eq!(rig.cluster.load().entries[0].skip, Some(Skip::Stopping));
}

#[tokio::test]
async fn under_contract_unix_a_worker_listens_at_a_path_again_and_again() {
    let mut config = workers(&[]);
    config.contract = Contract::Unix;
    let rig = Rig::start(&cluster_of(config));
    for generation in 1..=3 {
        let entry = rig.ready("app/0", generation).await;
        assert_eq!(whoami(&entry).await["generation"], generation);
        let backend = entry.backend.as_ref().unwrap();
        assert!(
            matches!(&backend.address, Address::Unix(path) if path.starts_with(rig.home.dir()))
        );
        kill_9(pid_of(&entry));
    }
    rig.stop().await;
    let dir = rig.home.dir().to_owned();
    drop(rig);
    assert!(!dir.exists(), "the runtime directory goes at the end");
}

#[tokio::test]
async fn under_contract_fd_connections_wait_while_the_worker_restarts() {
    let log = Log::capture();
    let mut config = workers(&["--print-env"]);
    config.contract = Contract::Fd;
    let rig = Rig::start(&cluster_of(config));
    let first = rig.ready("app/0", 1).await;
    let me = whoami(&first).await;
    assert_eq!(me["generation"], 1);
    log.wait_for("worker: LISTEN_FDS=1").await;
    log.wait_for("worker: LISTEN_FDNAMES=app/0").await;
    log.wait_for(&format!("worker: LISTEN_PID={}", pid_of(&first)))
        .await;
    assert!(log.with("worker: PORT=").is_empty());
    kill_9(pid_of(&first));
    until_dead(pid_of(&first), Duration::from_secs(5)).await;
    // The same address, with nobody behind it yet.
    let answer = ask(&mut connect(&first).await, "whoami").await;
    assert!(answer.contains(r#""generation":2"#), "{answer}");
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_that_exits_at_once_is_one_loud_state() {
    let log = Log::capture();
    let options = ["--exit-code", "3", "--exit-after", "0", "--never-listen"];
    let mut options = options.to_vec();
    options.extend(["--stderr", "no database", "--stderr", "giving \x1b[2J up"]);
    let rig = Rig::start(&cluster_of(workers(&options)));
    let started = Instant::now();
    let loud = log.wait_for("crash-loops").await;
    assert!(loud.starts_with("ERROR homescar::supervisor"), "{loud}");
    for part in [
        "app/0 crash-loops: 5 generations in ",
        "the last: exit code 3, after ",
        "next try in 1.",
        "\n    | no database\n    | giving \\u{1b}[2J up",
    ] {
        assert!(loud.contains(part), "{part:?} is not in {loud:?}");
    }
    let looping = |snapshot: &Snapshot| snapshot.entries[0].skip == Some(Skip::CrashLoop);
    let snapshot = rig.until("a crash loop", looping).await;
    assert!(!snapshot.entries[0].is_coming_back(Skip::CrashLoop));

    let busy = cpu_time();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let busy = cpu_time() - busy;
    assert!(busy < Duration::from_millis(300), "CPU {busy:?} in 3 s");
    let tries = log.with("app/0 ended").len() + log.with("crash-loops").len();
    // 0, 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 s, each up to a fifth earlier.
    let most = if started.elapsed() < Duration::from_secs(5) {
        6
    } else {
        8
    };
    assert!(tries <= most, "{tries} generations ended");
    assert_eq!(log.with("crash-loops").len(), 1);
    rig.stop().await;
}

/// CPU time of this thread, on which the whole rig runs.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named() {
    let log = Log::capture();
    let mut config = workers(&[]);
    config.command = vec!["no-such-command-here".to_owned()];
    let rig = Rig::start(&cluster_of(config));
    let loud = log.wait_for("crash-loops").await;
    let why = r#"homescar: cannot run "no-such-command-here": No such file or directory"#;
    assert!(loud.contains("exit code 127"), "{loud}");
    assert!(loud.contains(why), "{loud}");
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_spawned_is_a_crash_loop_too() {
    let log = Log::capture();
    let mut config = workers(&[]);
    config.user = Some("no-such-user".to_owned());
    let rig = Rig::start(&cluster_of(config));
    let looping = |snapshot: &Snapshot| snapshot.entries[0].skip == Some(Skip::CrashLoop);
    rig.until("a crash loop", looping).await;
    let loud = log.wait_for("crash-loops").await;
    let why = r#"it could not be started: no user "no-such-user" on this machine"#;
    assert!(loud.contains(why), "{loud}");
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_inherits_nothing_of_homescars() {
    let mut config = workers(&[]);
    config.command = vec!["sleep".to_owned(), "1000".to_owned()];
    config.contract = Contract::Fd;
    config.cwd = Some("/usr".into());
    let rig = Rig::start(&cluster_of(config));
    // Nothing has been spawned yet, and what is spawned has the limit of before.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft - 1, hard).unwrap();
    let started = |snapshot: &Snapshot| snapshot.entries[0].backend.is_some();
    let snapshot = rig.until("started", started).await;
    let pid = pid_of(&snapshot.entries[0]);
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while file("comm") != "sleep\n" {
        assert!(Instant::now() < deadline, "it is still {}", file("comm"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let limits = file("limits");
    let open_files = limits.lines().find(|l| l.starts_with("Max open files"));
    let limit: u64 = open_files.unwrap()[14..]
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(limit == soft || limit == soft + 1, "{limit}, not {soft}");
    let status = file("status");
    let mask = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        u64::from_str_radix(line[name.len()..].trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    assert_eq!(mask("SigIgn:") & (1 << (Signal::SIGPIPE as u32 - 1)), 0);
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd").to_str(), Some("/usr"));
    assert_eq!(link("fd/0").to_str(), Some("/dev/null"));
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut fds: Vec<_> = fds.map(|fd| fd.unwrap().file_name()).collect();
    fds.sort();
    let mut expected: Vec<_> = ["0", "1", "2", "3"].map(OsString::from).to_vec();
    expected.extend(
        inherited()
            .into_iter()
            .filter(|fd| fd.len() > 1 || *fd > *"3"),
    );
    expected.sort();
    assert_eq!(fds, expected);
    assert!(link("fd/3").to_str().unwrap().starts_with("socket:"));
    let raw = Pid::from_raw(pid.try_into().unwrap());
    assert_eq!(nix::unistd::getpgid(Some(raw)).unwrap(), raw);
    rig.stop().await;
}

/// Descriptors which whoever started the tests has left open for everybody.
fn inherited() -> Vec<OsString> {
    let fds = fs::read_dir("/proc/self/fdinfo").unwrap();
    let names = fds.map(|fd| fd.unwrap().file_name());
    let is_passed_on = |name: &OsString| {
        let path = Path::new("/proc/self/fdinfo").join(name);
        // One that was closed meanwhile was another test's.
        let info = fs::read_to_string(path).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
        let close_on_exec = 0o2_000_000;
        flags.is_some_and(|f| i64::from_str_radix(f.trim(), 8).unwrap() & close_on_exec == 0)
    };
    names.filter(is_passed_on).collect()
}

#[tokio::test]
async fn a_worker_of_another_user_reaches_its_own_sockets() {
    let mut config = workers(&["--ready-notify", "--children"]);
    config.user = Some("nobody".to_owned());
    config.contract = Contract::Unix;
    config.ready = ReadyBy::Notify;
    let log = Log::capture();
    let rig = Rig::start(&cluster_of(config));
    if !nix::unistd::geteuid().is_root() {
        // Only root may: then this is what is to be seen.
        log.wait_for("Operation not permitted").await;
        return rig.stop().await;
    }
    let entry = rig.ready("app/0", 1).await;
    let status = fs::read_to_string(format!("/proc/{}/status", pid_of(&entry))).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid;
    let uids = status.lines().find(|l| l.starts_with("Uid:")).unwrap();
    assert_eq!(number_after(uids, "Uid:"), nobody.as_raw());
    assert_eq!(whoami(&entry).await["slot"], "app/0");
    let line = log.wait_for("worker: grandchild").await;
    rig.stop().await;
    assert!(!is_alive(number_after(&line, "worker: grandchild")));
}

#[tokio::test]
async fn a_worker_that_ignores_term_is_killed_after_its_timeout() {
    let log = Log::capture();
    let mut config = workers(&["--ignore-term"]);
    config.stop_timeout = Duration::from_millis(400);
    let rig = Rig::start(&cluster_of(config));
    let entry = rig.ready("app/0", 1).await;
    let began = Instant::now();
    rig.stop().await;
    assert!(began.elapsed() >= Duration::from_millis(400));
    assert!(!is_alive(pid_of(&entry)));
    log.wait_for("app/0 stopped: signal KILL").await;
    assert_eq!(log.with("worker: TERM").len(), 1, "it was asked first");
}

#[tokio::test]
async fn a_second_wish_to_stop_kills_at_once() {
    let rig = Rig::start(&cluster_of(workers(&["--ignore-term"])));
    rig.ready("app/0", 1).await;
    let began = Instant::now();
    tokio::join!(rig.stop(), async { rig.supervisor.kill_now() });
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_worker_that_takes_its_time_is_let() {
    let log = Log::capture();
    let rig = Rig::start(&cluster_of(workers(&["--term-delay", "300"])));
    rig.ready("app/0", 1).await;
    rig.stop().await;
    log.wait_for("app/0 stopped: exit code 0").await;
}

#[tokio::test]
async fn children_and_daemonised_grandchildren_end_with_their_generation() {
    let log = Log::capture();
    let rig = Rig::start(&cluster_of(workers(&["--children"])));
    let first = rig.ready("app/0", 1).await;
    let child = number_after(&log.wait_for("worker: child").await, "worker: child");
    let line = log.wait_for("worker: grandchild").await;
    let grandchild = number_after(&line, "worker: grandchild");
    assert!(is_alive(child) && is_alive(grandchild));
    kill_9(pid_of(&first));
    rig.ready("app/0", 2).await;
    assert!(!is_alive(child) && !is_alive(grandchild));

    let line = log.with("worker: grandchild").pop().unwrap();
    let grandchild = number_after(&line, "worker: grandchild");
    assert!(is_alive(grandchild));
    rig.stop().await;
    assert!(!is_alive(grandchild));
}

#[tokio::test]
async fn a_flood_of_output_is_read_at_full_speed_and_dropped() {
    let log = Log::capture();
    let rig = Rig::start(&cluster_of(workers(&["--flood", "100000000"])));
    // It listens only once all of it is written.
    rig.ready("app/0", 1).await;
    let report = log.wait_for("of output dropped").await;
    assert!(report.starts_with("WARN"), "{report}");
    assert!(report.contains("app/0 (pid "), "{report}");
    rig.stop().await;
    let logged = log.with("worker: xxx").len();
    assert!((1_000..20_000).contains(&logged), "{logged} lines");
    let reports = log.with("of output dropped");
    let dropped: usize = reports
        .iter()
        .map(|line| {
            let number = line.split_once("): ").unwrap().1.split(' ').next().unwrap();
            number.replace(',', "").parse::<usize>().unwrap()
        })
        .sum();
    assert_eq!(logged + dropped, 100_000_000_usize.div_ceil(1024));
}

#[tokio::test]
async fn a_worker_that_never_gets_ready_is_replaced_and_never_routed_to() {
    let log = Log::capture();
    let mut config = workers(&["--never-listen"]);
    config.ready_timeout = Duration::from_millis(300);
    let rig = Rig::start(&cluster_of(config));
    let third = |snapshot: &Snapshot| {
        let entry = &snapshot.entries[0];
        assert!(entry.skip.is_some());
        entry.backend.as_ref().is_some_and(|b| b.generation == 3)
    };
    rig.until("the third generation", third).await;
    let line = log.wait_for("app/0 not ready after 300 ms: TERM now").await;
    assert!(line.starts_with("WARN"), "{line}");
    rig.stop().await;
}

#[tokio::test]
async fn ready_by_notify_waits_for_the_workers_own_word() {
    let mut config = workers(&[]);
    config.ready = ReadyBy::Notify;
    config.ready_timeout = Duration::from_millis(700);
    let rig = Rig::start(&cluster_of(config));
    let second = |snapshot: &Snapshot| {
        let entry = &snapshot.entries[0];
        assert!(entry.skip.is_some(), "it listens but says nothing");
        entry.backend.as_ref().is_some_and(|b| b.generation == 2)
    };
    rig.until("the second generation", second).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_missed_watchdog_replaces_the_worker() {
    let log = Log::capture();
    let mut config = workers(&["--ready-notify", "--watchdog", "--ignore-term"]);
    config.watchdog = Some(Duration::from_millis(600));
    config.stop_timeout = Duration::from_millis(200);
    let rig = Rig::start(&cluster_of(config));
    let first = rig.ready("app/0", 1).await;
    let ended = |snapshot: &Snapshot| snapshot.entries[0].skip.is_some();
    let window = Duration::from_millis(1_500);
    let early = rig.cluster.wait_until(window, ended).await;
    assert!(early.is_none(), "it pings, and is left alone");
    let mut stream = connect(&first).await;
    ask(&mut stream, "whoami").await;
    stream.write_all(b"hang\n").await.unwrap();
    let hung = |snapshot: &Snapshot| snapshot.entries[0].skip == Some(Skip::Unresponsive);
    rig.until("unresponsive", hung).await;
    rig.ready("app/0", 2).await;
    assert!(!is_alive(pid_of(&first)));
    log.wait_for("app/0 no WATCHDOG=1 for 600 ms: TERM now, KILL in 200 ms")
        .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_gets_no_clients_any_more() {
    let mut config = workers(&["--ready-notify"]);
    config.watchdog = Some(Duration::from_millis(200));
    let rig = Rig::start(&cluster_of(config));
    let (sender, mut told) = mpsc::unbounded_channel();
    let cluster = rig.cluster.clone();
    let _watching = Log::watch(move |line| {
        if line.contains("TERM now") {
            sender.send(cluster.load().entries[0].skip).unwrap();
        }
    });
    let skip = timeout(DEADLINE, told.recv()).await.unwrap();
    assert_eq!(skip, Some(Some(Skip::Unresponsive)));
    rig.stop().await;
}

#[tokio::test]
async fn dropping_the_supervisor_kills_its_workers() {
    let rig = Rig::start(&cluster_of(workers(&["--ignore-term"])));
    let entry = rig.ready("app/0", 1).await;
    let Rig { supervisor, .. } = rig;
    drop(supervisor);
    until_dead(pid_of(&entry), Duration::from_secs(5)).await;
}
