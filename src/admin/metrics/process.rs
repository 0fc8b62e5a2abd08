//! homescar itself: its process, its threads, its configuration, its certificates.

use std::{fmt, fs, iter, time::SystemTime};

use super::super::{Board, Phase};
use crate::{
    log,
    metrics::{Labels, Page},
    supervisor,
};

const NONE: Labels<'static, 0> = [];

pub(super) fn write(page: &mut Page<'_>, board: &Board) -> fmt::Result {
    page.info(
        "homescar_build",
        "The version of homescar.",
        [[("version", env!("CARGO_PKG_VERSION"))]],
    )?;
    page.gauge(
        "process_start_time_seconds",
        "When homescar was started, in seconds since 1970.",
        [(NONE, seconds(board.since()))],
    )?;
    let pid = std::process::id();
    page.counter(
        "process_cpu_seconds",
        "Processor time of homescar, without its workers.",
        supervisor::processor_time(pid).map(|used| (NONE, used.as_secs_f64())),
    )?;
    page.gauge(
        "process_resident_memory_bytes",
        "Resident memory of homescar.",
        supervisor::resident(pid).map(|bytes| (NONE, bytes)),
    )?;
    let open = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    page.gauge(
        "process_open_fds",
        "Open descriptors of homescar.",
        open.map(|open| (NONE, open as u64)),
    )?;
    page.gauge(
        "homescar_draining",
        "1 when homescar is ending.",
        [(NONE, u64::from(board.phase() == Phase::Draining))],
    )?;
    page.gauge(
        "homescar_ready",
        "1 when clients are served, as /ready says.",
        [(NONE, u64::from(board.is_ready()))],
    )?;
    page.gauge(
        "homescar_connections_active",
        "Connections that homescar holds now.",
        [(NONE, board.plane().open())],
    )?;
    page.counter(
        "homescar_log_lines_dropped",
        "Log lines that came faster than they could be written.",
        [(NONE, log::dropped_lines())],
    )?;
    write_lag(page, board)?;
    write_reloads(page, board)?;
    write_certificates(page, board)
}

fn write_lag(page: &mut Page<'_>, board: &Board) -> fmt::Result {
    let lags = board.plane().lags();
    let named = lags.into_iter().enumerate();
    let named: Vec<_> = named
        .map(|(index, seen)| (format!("data-{index}"), seen))
        .chain(iter::once(("control".to_owned(), board.lag().seen())))
        .collect();
    let samples = named.iter().map(|(thread, seen)| {
        let labels: Labels<'_, 1> = [("thread", thread)];
        (labels, seen.clone())
    });
    page.histogram(
        "homescar_event_loop_lag_seconds",
        "How late a thread comes to a timer that is due twice a second.",
        samples,
    )
}

fn write_reloads(page: &mut Page<'_>, board: &Board) -> fmt::Result {
    let reloads = board.reloads().clone();
    let results: [(Labels<'_, 1>, u64); 2] = [
        ([("result", "ok")], reloads.succeeded),
        ([("result", "failed")], reloads.failed),
    ];
    page.counter(
        "homescar_config_reloads",
        "Reloads of the configuration.",
        results,
    )?;
    page.gauge(
        "homescar_config_last_reload_success",
        "1 when the last reload went well, or there was none.",
        [(NONE, u64::from(reloads.error.is_none()))],
    )?;
    page.gauge(
        "homescar_config_last_reload_success_timestamp_seconds",
        "When the configuration in use was taken on, in seconds since 1970.",
        [(NONE, seconds(board.configured()))],
    )
}

fn write_certificates(page: &mut Page<'_>, board: &Board) -> fmt::Result {
    let all = board.certificates();
    let samples = all.iter().map(|certificate| {
        let labels: Labels<'_, 2> = [
            (certificate.kind, &certificate.owner),
            ("name", &certificate.name),
        ];
        (labels, seconds(certificate.not_after))
    });
    page.gauge(
        "homescar_tls_certificate_not_after_seconds",
        "The end of a certificate's time, in seconds since 1970; by the listener or cluster that \
         shows it, and its first name.",
        samples,
    )
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
