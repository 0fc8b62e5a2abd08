//! What the person who typed a command sees, and the exit code.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::homescar::{Homescar, WORKER, message};

/// Runs a command to its end: exit code, standard output, standard error.
fn homescar(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_homescar"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn one_line(text: &str) -> &str {
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text.trim_end()
}

fn file(text: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("homescar.toml");
    fs::write(&path, text).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

#[test]
fn an_address_that_is_taken_is_one_line_and_69() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, said) = homescar(&["run", "--listen", &address, "--", WORKER]);
    assert_eq!(code, Some(69));
    let port = taken.local_addr().unwrap().port();
    assert_eq!(
        one_line(&said),
        format!(
            "homescar: listener web: cannot listen on {address}: another process listens there \
             (`ss -ltnp 'sport = :{port}'` shows which)"
        )
    );
}

/// Two homescars would share a port, as both ask for SO_REUSEPORT, if nobody looked.
#[tokio::test]
async fn a_second_homescar_on_the_same_address_is_refused() {
    let first = Homescar::command(
        &[
            "run",
            "--log-format",
            "json",
            "--listen",
            "127.0.0.1:0",
            "--workers",
            "1",
            "--",
            WORKER,
        ],
        &[],
    );
    let address = first.address("web").await.to_string();
    let (code, _, said) = homescar(&["run", "--listen", &address, "--", WORKER]);
    assert_eq!(code, Some(69), "{said}");
    assert!(one_line(&said).contains("another process listens there"));
}

#[test]
fn a_foreign_address_is_one_line_and_69() {
    let (code, _, said) = homescar(&["run", "--listen", "192.0.2.1:3000", "--", WORKER]);
    assert_eq!(code, Some(69));
    assert!(
        one_line(&said).contains("no interface of this machine has that address"),
        "{said}"
    );
}

#[test]
fn a_privileged_port_says_what_to_do() {
    // Dropped privileges keep the descriptor of the binary's folder readable: run it from a copy.
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &str, name: &str| {
        let to = folder.path().join(name);
        // By another process: whatever other tests start meanwhile would inherit our descriptor of
        // the copy, and a program that is open for writing cannot be run.
        assert!(
            Command::new("cp")
                .arg(from)
                .arg(&to)
                .status()
                .unwrap()
                .success()
        );
        to
    };
    let program = copy(env!("CARGO_BIN_EXE_homescar"), "homescar");
    let worker = copy(WORKER, "worker");
    let mut command = Command::new(program);
    command
        .args(["run", "--listen", "127.0.0.1:81", "--"])
        .arg(worker)
        .current_dir("/");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        one_line(&said).contains("setcap cap_net_bind_service=+ep"),
        "{said}"
    );
}

#[test]
fn a_missing_command_is_one_line_and_64_or_78() {
    let (code, _, said) = homescar(&["run", "--", "no-such-program"]);
    assert_eq!(code, Some(64));
    assert!(
        one_line(&said).contains("`no-such-program` was not found in PATH"),
        "{said}"
    );

    let (_folder, path) = file(
        "[listener.web]\nbind = \"127.0.0.1:0\"\ncluster = \"app\"\n[cluster.app]\nworkers = { \
         command = [\"no-such-program\"] }\n",
    );
    let (code, _, said) = homescar(&["serve", "-c", &path]);
    assert_eq!(code, Some(78));
    let said = one_line(&said);
    assert!(said.starts_with(&format!("{path}:5:")), "{said}");
    assert!(
        said.contains("`no-such-program` was not found in PATH"),
        "{said}"
    );
}

#[test]
fn files_that_cannot_be_read_are_one_line_and_78() {
    let folder = TempDir::new().unwrap();
    let cases = [
        (folder.path().join("missing.toml"), "does not exist"),
        (folder.path().to_path_buf(), "directory"),
    ];
    for (path, expected) in cases {
        for command in ["serve", "check"] {
            let (code, _, said) = homescar(&[command, "-c", path.to_str().unwrap()]);
            assert_eq!(code, Some(78), "{said}");
            let said = one_line(&said);
            assert!(said.contains(path.to_str().unwrap()), "{said}");
            assert!(
                said.to_lowercase().contains(&expected.to_lowercase()),
                "{said}"
            );
        }
    }
}

#[test]
fn check_prints_what_is_in_effect_and_takes_it_back() {
    let (_folder, path) = file(
        "[listener.web]\nbind = \"127.0.0.1:0\"\ncluster = \"app\"\n[cluster.app]\nbackends = \
         [\"10.0.0.1:3000\"]\n",
    );
    let (code, printed, said) = homescar(&["check", "-c", &path]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    for expected in [
        "on_down = \"hold 2s\"",
        "prefix_v6 = 64",
        "idle = \"1h\"",
        "level = \"info\"",
    ] {
        assert!(printed.contains(expected), "{expected} in\n{printed}");
    }
    let (_folder, path) = file(&printed);
    let (code, again, said) = homescar(&["check", "-c", &path]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(printed, again);
}

#[test]
fn check_names_all_faults_at_once() {
    let (_folder, path) = file(
        "colour = \"red\"\n[listener.web]\nbind = \"nowhere\"\ncluster = \"ap\"\n[cluster.app]\n\
         backends = [\"10.0.0.1\"]\nworkerz = 1\n",
    );
    let (code, _, said) = homescar(&["check", "-c", &path]);
    assert_eq!(code, Some(78));
    assert_eq!(said.lines().count(), 5, "{said}");
    for (line, expected) in said.lines().zip([":1:", ":3:", ":4:", ":6:", ":7:"]) {
        assert!(line.starts_with(&format!("{path}{expected}")), "{line}");
    }
}

#[test]
fn a_wrong_command_line_is_64_and_help_is_an_answer() {
    for arguments in [
        &["frobnicate"][..],
        &[],
        &["run"],
        &["serve"],
        &["run", "--workers"],
    ] {
        let (code, _, said) = homescar(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {said}");
        assert!(!said.is_empty());
    }
    let (code, _, said) = homescar(&["run", "--listen", "nowhere", "--", WORKER]);
    assert_eq!(code, Some(64));
    assert!(one_line(&said).contains("--listen"), "{said}");
    let (code, help, _) = homescar(&["--help"]);
    assert_eq!(code, Some(0));
    for command in ["run", "serve", "check", "demo"] {
        assert!(help.contains(command), "{help}");
    }
    assert!(!help.contains("demo-worker"), "{help}");
    let (code, version, _) = homescar(&["--version"]);
    assert_eq!(
        (code, version.trim()),
        (Some(0), concat!("homescar ", env!("CARGO_PKG_VERSION")))
    );
}

/// The whole job in one line, with WEB_CONCURRENCY as the number of workers.
#[tokio::test]
async fn run_needs_no_file() {
    let homescar = Homescar::command(
        &[
            "run",
            "--log-format",
            "json",
            "--listen",
            "127.0.0.1:0",
            "--",
            WORKER,
        ],
        &[("WEB_CONCURRENCY", "3")],
    );
    homescar.all_ready("app", 3).await;
    let address = homescar.address("web").await;
    let mut client = crate::support::client::Client::connect(address)
        .await
        .unwrap();
    assert!(client.whoami().await.unwrap().slot.starts_with("app/"));
    assert!(!homescar.log().iter().any(|line| line["slot"] == "app/3"));
}

/// `run` chooses direct mode where it can be, says so in one line, and `--mode` overrides it.
#[tokio::test]
async fn run_chooses_the_mode() {
    for (options, mode) in [
        (&["--contract", "fd"][..], Some("direct")),
        (&["--contract", "fd", "--mode", "tcp"], None),
        (&["--contract", "port"], None),
    ] {
        let mut arguments = vec!["run", "--log-format", "json", "--workers", "1"];
        arguments.extend(["--listen", "127.0.0.1:0"]);
        arguments.extend(options);
        arguments.extend(["--", WORKER]);
        let homescar = Homescar::command(&arguments, &[]);
        homescar.all_ready("app", 1).await;
        let log = homescar.log();
        let listening = log.iter().find(|line| message(line) == "listening");
        assert_eq!(listening.unwrap()["mode"].as_str(), mode, "{options:?}");
        let said = |line: &&serde_json::Value| message(line).contains("handed to their workers");
        let said = log.iter().filter(said).count();
        assert_eq!(said, usize::from(mode.is_some()), "{options:?}");
    }
}

#[test]
fn direct_mode_that_cannot_be_is_one_line_and_64() {
    for (options, why) in [
        (&["--contract", "unix"][..], "contract unix does not"),
        (&["--contract", "fd", "--workers", "181"], "not for 181"),
        (
            &[
                "--contract",
                "node",
                "--listen",
                "127.0.0.1:1",
                "--listen",
                "127.0.0.2:1",
            ],
            "a Node server listens on one",
        ),
        (
            &["--contract", "fd", "--listen", "[::1]:0"],
            "for checks by IPv4",
        ),
    ] {
        let mut arguments = vec!["run", "--mode", "direct"];
        arguments.extend(options);
        arguments.extend(["--", WORKER]);
        let (code, _, said) = homescar(&arguments);
        assert_eq!(code, Some(64), "{said}");
        assert!(one_line(&said).contains(why), "{said}");
    }
}

/// In a pipe the log is plain: a time, a level, no escape sequences.
#[tokio::test]
async fn in_a_pipe_the_log_is_plain_text() {
    let homescar = Homescar::command(
        &[
            "run",
            "--listen",
            "127.0.0.1:0",
            "--workers",
            "1",
            "--",
            WORKER,
        ],
        &[],
    );
    let line = homescar.message("ready after").await;
    let line = line.as_str().unwrap();
    assert!(!line.contains('\u{1b}'), "{line:?}");
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
    assert!(rest.starts_with("INFO "), "{line}");
}

#[tokio::test]
async fn what_the_command_line_says_of_the_log_beats_the_file_also_after_a_reload() {
    let (_folder, path) = file(&format!(
        r#"
        [log]
        level = "error"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = 1 }}
        "#
    ));
    let arguments = ["serve", "-c", &path];
    let log = ["--log-format", "json", "--log-level", "info"];
    let homescar = Homescar::command(&[&arguments[..], &log[..]].concat(), &[]);
    homescar.ready("app/0").await;
    homescar.signal(Signal::SIGHUP);
    homescar.message("reloaded").await;
    let log = homescar.log();
    let formats = log.iter().filter(|line| message(line).contains("format"));
    assert_eq!(formats.count(), 0, "{log:?}");
}
