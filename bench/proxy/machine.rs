//! The machine: its CPUs, clocks, limits, and what to say about it.

use std::{fs, process::Command, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    time::ClockId,
    unistd::Pid,
};

use super::Outcome;

/// One CPU for the proxy, another for the load and the backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    proxy: usize,
    load: usize,
}

impl Cpus {
    /// The first two that this process may use.
    pub(crate) fn choose() -> Outcome<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cpus =
            (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).is_ok_and(|is_set| is_set));
        match (cpus.next(), cpus.next()) {
            (Some(proxy), Some(load)) => Ok(Self { proxy, load }),
            _ => Err("two CPUs are needed: one for the proxy, one for the load".into()),
        }
    }

    /// Moves this thread, and what it starts from now on, to the proxy's CPU.
    pub(crate) fn take_proxy(self) -> Outcome {
        pin(self.proxy)
    }

    /// Moves this thread, and what it starts from now on, to the load's CPU.
    pub(crate) fn take_load(self) -> Outcome {
        pin(self.load)
    }
}

fn pin(cpu: usize) -> Outcome {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|error| format!("cannot move to CPU {cpu}: {error}").into())
}

/// CPU time, and time spent waiting for a CPU that something else had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system, in all threads, also those that have ended.
    pub(crate) cpu: Duration,
    waited: Duration,
}

impl Usage {
    /// Of a process.
    pub(crate) fn of_process(pid: Pid) -> Outcome<Self> {
        let cpu = ClockId::pid_cpu_clock_id(pid)?.now()?.into();
        let mut waited = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the reading.
            if let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) {
                waited += waited_of(&schedstat)?;
            }
        }
        Ok(Self { cpu, waited })
    }

    /// Of this thread.
    pub(crate) fn of_this_thread() -> Outcome<Self> {
        let cpu = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into();
        let waited = waited_of(&fs::read_to_string("/proc/thread-self/schedstat")?)?;
        Ok(Self { cpu, waited })
    }

    /// And what another one used.
    pub(crate) fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        // Their waits overlap when they share a CPU: the longest is the least that it can be.
        self.waited = self.waited.max(other.waited);
    }

    /// What was used since.
    pub(crate) const fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            waited: self.waited.saturating_sub(before.waited),
        }
    }

    /// The share of the time in which it had a CPU, of the time in which it could have had one.
    pub(crate) fn busy(self, wall: Duration) -> f64 {
        let available = wall.saturating_sub(self.waited).max(self.cpu);
        self.cpu.as_secs_f64() / available.as_secs_f64()
    }

    /// The share of the time in which it was kept waiting by something else on its CPU.
    pub(crate) fn kept_waiting(self, wall: Duration) -> f64 {
        self.waited.as_secs_f64() / wall.as_secs_f64()
    }
}

/// The second figure of a `schedstat` file, in nanoseconds.
fn waited_of(schedstat: &str) -> Outcome<Duration> {
    let waited = schedstat
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|field| field.parse().ok());
    waited
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("/proc/…/schedstat says {schedstat:?}").into())
}

/// The time in which the CPUs of the machine were not idle, whoever had them: to a hundredth of a second.
pub(crate) fn machine_cpu() -> Outcome<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = fields
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, …
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else {
        return Err("/proc/stat does not begin with the times of all CPUs".into());
    };
    Ok(Duration::from_millis(
        10 * (user + nice + system + irq + softirq),
    ))
}

/// A process, and after it those that it has started, and theirs.
pub(crate) fn tree_of(root: Pid) -> Outcome<Vec<Pid>> {
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        next += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let children = fs::read_to_string(task.path().join("children"))?;
            for child in children.split_ascii_whitespace() {
                tree.push(Pid::from_raw(child.parse()?));
            }
        }
    }
    Ok(tree)
}

/// The proportional share of memory of a process, in KiB.
pub(crate) fn pss_kib(pid: Pid) -> Outcome<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = fs::read_to_string(&path)?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse().ok())
        .ok_or_else(|| format!("{path} names no Pss").into())
}

/// As many descriptors as the hard limit gives; the proxies inherit it.
pub(crate) fn raise_descriptor_limit() -> Outcome {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// How many connections this process may hold at both ends at one time, with a reserve.
pub(crate) fn most_connections() -> Outcome<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(soft.saturating_sub(200) / 2)
}

/// What a reader of the table must know: date, CPU, cores, kernel.
pub(crate) fn facts() -> Outcome<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("CPU of unknown model", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // Pinned to one CPU, a thread has a parallelism of one; the machine's count is in /proc.
    let cores = cores.get().max(
        cpuinfo
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count(),
    );
    let date = output_of("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?;
    Ok(format!(
        "{date} · {model}, {cores} cores · Linux {}",
        kernel.trim()
    ))
}

/// The first line that a program writes, to standard output or else to standard error.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no supervisor to spawn with"
)]
pub(crate) fn output_of(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let text = match output.stdout.is_empty() {
        true => String::from_utf8_lossy(&output.stderr),
        false => String::from_utf8_lossy(&output.stdout),
    };
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    if !output.status.success() || first.is_empty() {
        return Err(format!(
            "{program} {} failed: {}",
            arguments.join(" "),
            output.status
        )
        .into());
    }
    Ok(first)
}
