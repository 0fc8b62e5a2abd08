//! Whether it was the kernel that killed a worker, for want of memory: nothing of a process's end
//! says so, but the kernel counts.

use std::{fs, io, os::unix::process::ExitStatusExt as _, path::Path, process::ExitStatus};

use crate::cluster::ExitKind;

/// The processes that the kernel has killed for want of memory so far: in our control group where
/// that is told (`memory.events`), else on the whole machine.
pub(super) fn kills() -> Option<u64> {
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = group.lines().find_map(|line| line.strip_prefix("0::/"));
    let events = path.map(|path| Path::new("/sys/fs/cgroup").join(path).join("memory.events"));
    let counted = events.and_then(|file| count(&fs::read_to_string(file).ok()?));
    counted.or_else(|| count(&fs::read_to_string("/proc/vmstat").ok()?))
}

fn count(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line?.trim().parse().ok()
}

/// How a process ended. `by_us` says that we ended it, `before` is what [`kills`] said when it was
/// started, `now` what it says.
pub(super) fn kind_of(
    status: &io::Result<ExitStatus>,
    by_us: bool,
    before: Option<u64>,
    now: Option<u64>,
) -> ExitKind {
    let Ok(status) = status else {
        return ExitKind::Unknown;
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => ExitKind::Success,
        (Some(_), _) => ExitKind::Failure,
        (None, Some(libc::SIGKILL)) if !by_us && before < now => ExitKind::Oom,
        (None, _) => ExitKind::Signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_kills_who_was_killed_by_nobody_else() {
        let of =
            |raw, by_us, before, now| kind_of(&Ok(ExitStatus::from_raw(raw)), by_us, before, now);
        assert_eq!(of(0, false, Some(0), Some(1)), ExitKind::Success);
        assert_eq!(of(3 << 8, false, Some(0), Some(1)), ExitKind::Failure);
        assert_eq!(of(11, false, Some(0), Some(1)), ExitKind::Signal);
        assert_eq!(of(9, false, Some(0), Some(1)), ExitKind::Oom);
        assert_eq!(of(9, true, Some(0), Some(1)), ExitKind::Signal);
        assert_eq!(of(9, false, Some(1), Some(1)), ExitKind::Signal);
        assert_eq!(of(9, false, None, None), ExitKind::Signal);
        let unknown = Err(io::ErrorKind::Other.into());
        assert_eq!(kind_of(&unknown, false, None, None), ExitKind::Unknown);
    }

    #[test]
    fn the_count_is_found_among_others() {
        assert_eq!(
            count("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            Some(2)
        );
        assert_eq!(count("nr_free_pages 1\n"), None);
        assert!(kills().is_some(), "Linux counts them");
    }
}
