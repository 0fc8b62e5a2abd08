//! The house keeps its own rules: who may use whom, how long a file is, where unsafe code lives.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which rooms a room may use, as printed in `src/lib.rs`.
const MAY_USE: [(&str, &[&str]); 15] = [
    ("affinity", &[]),
    ("metrics", &[]),
    ("text", &[]),
    ("config", &[]),
    ("handover", &[]),
    ("log", &["config", "text"]),
    ("tls", &["config", "handover"]),
    (
        "cluster",
        &["affinity", "config", "handover", "metrics", "tls"],
    ),
    ("health", &["cluster", "config", "tls"]),
    ("supervisor", &["cluster", "config", "handover"]),
    (
        "proxy",
        &[
            "affinity", "cluster", "config", "handover", "log", "metrics", "text", "tls",
        ],
    ),
    (
        "direct",
        &["affinity", "cluster", "config", "handover", "proxy"],
    ),
    (
        "admin",
        &[
            "affinity",
            "cluster",
            "config",
            "direct",
            "log",
            "metrics",
            "proxy",
            "supervisor",
        ],
    ),
    ("demo", &[]),
    (
        "app",
        &[
            "admin",
            "affinity",
            "cluster",
            "config",
            "direct",
            "handover",
            "health",
            "log",
            "metrics",
            "proxy",
            "supervisor",
            "tls",
        ],
    ),
];

const LONGEST_FILE: usize = 450;

/// Files that may hold unsafe code.
const UNSAFE: [&str; 6] = [
    "src/app/upgrade/crash.rs",
    "src/cluster/backlog.rs",
    "src/handover.rs",
    "src/supervisor/exec.rs",
    "src/supervisor/node/unread.rs",
    "src/supervisor/process.rs",
];

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn source() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = rust_files(&root.join("src"));
    assert!(files.len() > 50, "only {} files", files.len());
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            (file.strip_prefix(root).unwrap().to_owned(), text)
        })
        .collect()
}

/// The code of a file without its comments.
fn code(text: &str) -> String {
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms that code names: `crate::room…` and `use crate::{room…, room…}`.
fn rooms_used(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = code[at + "crate::".len()..].trim_start();
        let Some(list) = rest.strip_prefix('{') else {
            rooms.push(rest);
            continue;
        };
        let mut depth = 1;
        let mut start = 0;
        for (index, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => {
                    rooms.push(&list[start..index]);
                    start = index + 1;
                }
                _ => {}
            }
            if depth == 0 {
                rooms.push(&list[start..index]);
                break;
            }
        }
    }
    let name = |text: &str| -> String {
        text.trim()
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect()
    };
    rooms
        .into_iter()
        .map(name)
        .filter(|room| !room.is_empty())
        .collect()
}

#[test]
fn rooms_are_found_in_code() {
    let code =
        "use crate::{\n    cluster::{Cluster, Event},\n    config,\n};\nlet x = crate::log::y();";
    assert_eq!(rooms_used(code), ["cluster", "config", "log"]);
}

#[test]
fn each_room_uses_only_what_it_may() {
    let may_use: BTreeMap<_, _> = MAY_USE.into();
    let mut arrows = 0;
    let mut faults = Vec::new();
    for (file, text) in source() {
        let room = file
            .components()
            .nth(1)
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let room = room.trim_end_matches(".rs");
        let Some(allowed) = may_use.get(room) else {
            assert!(["main", "lib", "cli"].contains(&room), "{room} has no rule");
            continue;
        };
        for used in rooms_used(&code(&text)) {
            arrows += 1;
            if used != room && !allowed.contains(&&*used) {
                faults.push(format!(
                    "{} uses {used}, which {room} may not",
                    file.display()
                ));
            }
        }
    }
    assert!(arrows > 50, "only {arrows} uses were found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_map_prints_the_same_rules() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (room, _) in MAY_USE {
        assert!(
            map.contains(&format!("[`{room}`]")),
            "src/lib.rs does not know {room}"
        );
        assert!(
            map.contains(&format!("pub mod {room};")),
            "there is no {room}"
        );
    }
}

#[test]
fn files_are_rooms_and_not_halls() {
    let long: Vec<_> = source()
        .into_iter()
        .filter(|(_, text)| text.lines().count() > LONGEST_FILE)
        .map(|(file, text)| format!("{}: {} lines", file.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn unsafe_code_lives_where_it_is_known() {
    let found: Vec<_> = source()
        .into_iter()
        .filter(|(_, text)| code(text).contains("unsafe {"))
        .map(|(file, _)| file.display().to_string())
        .collect();
    assert_eq!(found, UNSAFE);
}
