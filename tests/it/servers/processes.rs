//! What the kernel says of a server's processes and sockets.

use std::{collections::BTreeSet, fs};

use crate::support::process::stat;

/// The processes of a group that live.
pub(super) fn group(leader: u32) -> Vec<u32> {
    let leader = leader.to_string();
    let is_member = |pid: &u32| {
        stat(format!("/proc/{pid}/stat").into())
            .is_some_and(|stat| stat[2] == leader && !["Z", "X"].contains(&&*stat[0]))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(is_member).collect()
}

/// The inodes of a process's sockets.
pub(super) fn sockets(pid: u32) -> BTreeSet<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter_map(|fd| {
        let target = fs::read_link(fd.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        Some(inode.trim_end_matches(']').to_owned())
    })
    .collect()
}

/// The one TCP socket that a process listens on: its inode, and how many connections wait to be
/// accepted from it (`/proc/net/tcp` gives that as the receive queue).
pub(super) fn listening(pid: u32) -> (String, usize) {
    let own = sockets(pid);
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut found = table.lines().filter_map(|line| {
        let column: Vec<_> = line.split_whitespace().collect();
        let (_, waiting) = column[4].split_once(':')?;
        let waiting = usize::from_str_radix(waiting, 16).ok()?;
        (column[3] == "0A" && own.contains(column[9])).then(|| (column[9].to_owned(), waiting))
    });
    let socket = found.next().expect("a listening socket");
    assert_eq!(found.next(), None, "{pid} listens on more than one");
    socket
}
