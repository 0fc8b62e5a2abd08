//! homescar is killed with -9, and nothing of it is left.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use tokio::time::Instant;

use crate::support::{
    Log, Rig, cluster_of, is_alive, kill_9, number_after, pid_of, until_dead, workers,
};

#[tokio::test]
async fn workers_and_all_of_theirs_die_with_a_killed_parent() {
    let mut parent = Parent::start();
    let began = Instant::now();
    kill_9(parent.process.id());
    for pid in [parent.worker, parent.child, parent.grandchild] {
        until_dead(pid, Duration::from_secs(1)).await;
    }
    while fs::exists(&parent.dir).unwrap() {
        let dir = &parent.dir;
        assert!(began.elapsed() < Duration::from_secs(5), "{dir} is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    parent.process.wait().unwrap();
}

#[tokio::test]
async fn workers_die_with_a_killed_parent_also_when_the_guard_is_gone() {
    let mut parent = Parent::start();
    let guard = guard_of(&parent.dir);
    kill_9(guard);
    until_dead(guard, Duration::from_secs(5)).await;
    kill_9(parent.process.id());
    until_dead(parent.worker, Duration::from_secs(1)).await;
    parent.process.wait().unwrap();
    // What only the guard would have found.
    for pid in [parent.child, parent.grandchild] {
        kill_9(pid);
    }
    fs::remove_dir_all(&parent.dir).unwrap();
}

/// The guard of the homescar whose runtime directory this is.
fn guard_of(dir: &str) -> u32 {
    let wanted = format!("\0{dir}\0");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let guards = processes.filter(|process| {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.contains("\0__guard\0") && command.ends_with(&wanted)
    });
    let mut pids = guards.map(|process| process.file_name().to_str().unwrap().parse().unwrap());
    pids.next().expect("a guard")
}

/// A process like homescar with one worker, which has children.
struct Parent {
    process: std::process::Child,
    worker: u32,
    child: u32,
    grandchild: u32,
    /// Its runtime directory.
    dir: String,
}

impl Parent {
    fn start() -> Self {
        let mut process = parent();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut after = |word: &str| loop {
            let line = lines.next().expect("more lines").unwrap();
            if let Some((_, rest)) = line.split_once(word) {
                break rest.to_owned();
            }
        };
        let pid = |text: String| number_after(&text, "");
        let parent = Self {
            child: pid(after("child ")),
            grandchild: pid(after("grandchild ")),
            worker: pid(after("worker is ")),
            dir: after("dir is "),
            process,
        };
        for pid in [parent.worker, parent.child, parent.grandchild] {
            assert!(is_alive(pid));
        }
        parent
    }
}

/// This test binary again, to be killed: it becomes `role_of_a_parent`.
#[expect(clippy::disallowed_methods, reason = "a process that the test kills")]
fn parent() -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "death::role_of_a_parent", "--nocapture"])
        .env(PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

const PARENT: &str = "HOMESCAR_TEST_PARENT";

#[tokio::test]
async fn role_of_a_parent() {
    if std::env::var_os(PARENT).is_none() {
        return;
    }
    let log = Log::capture();
    let rig = Rig::start(&cluster_of(workers(&["--children"])));
    let entry = rig.ready("app/0", 1).await;
    let say = |text: &str| {
        use std::io::Write;
        writeln!(std::io::stdout(), "{text}").unwrap();
    };
    say(&log.wait_for("worker: child").await);
    say(&log.wait_for("worker: grandchild").await);
    say(&format!("worker is {}", pid_of(&entry)));
    say(&format!("dir is {}", rig.home.dir().display()));
    std::future::pending().await
}
