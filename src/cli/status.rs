//! `homescar status`: everything at a glance.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{CellAlignment, Table, presets};

use super::{Exit, socket};
use crate::admin::view::{Cluster, Listener, Slot, Status};

pub(super) fn run(arguments: &socket::Arguments) -> Exit {
    arguments.ask::<Status>("/status", text)
}

/// The page.
fn text(status: &Status) -> String {
    let mut page = String::new();
    let file = status.config.as_deref().map(|file| format!(" · {file}"));
    let phase = match status.phase.as_str() {
        "running" => String::new(),
        phase => format!(" · {}", phase.to_uppercase()),
    };
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _written = writeln!(page, "{text}");
    };
    line(format_args!(
        "homescar {} · pid {} · up {} · {} connections{}{phase}",
        status.version,
        status.pid,
        time(status.uptime),
        status.connections,
        file.unwrap_or_default()
    ));
    if let Some(error) = &status.reloads.error {
        line(format_args!("the last reload changed nothing: {error}"));
    }
    line(format_args!("\n{}", listeners(&status.listeners)));
    for cluster in &status.clusters {
        let Cluster { name, affinity, .. } = cluster;
        line(format_args!("\ncluster {name}, sticky by {affinity}"));
        line(format_args!("{}", slots(&cluster.slots)));
    }
    trimmed(&page)
}

/// Tables fill their last column with spaces.
pub(super) fn trimmed(page: &str) -> String {
    let lines = page.lines().map(str::trim_end);
    lines.fold(String::new(), |page, line| page + line + "\n")
}

fn listeners(listeners: &[Listener]) -> Table {
    let mut table = table(["LISTENER", "MODE", "ADDRESS", "CLUSTER", "OPEN"]);
    for listener in listeners {
        table.add_row([
            listener.name.clone(),
            listener.mode.clone(),
            listener.addresses.join(" "),
            listener.cluster.clone(),
            listener
                .connections
                .map_or_else(dash, |open| open.to_string()),
        ]);
    }
    right(&mut table, 4..5)
}

fn slots(slots: &[Slot]) -> Table {
    let mut table = table([
        "SLOT", "STATE", "GEN", "PID", "ACTIVE", "TOTAL", "UP", "DOWN", "MEMORY", "LAG",
    ]);
    for slot in slots {
        let backend = slot.backend.as_ref();
        let generation = backend.filter(|backend| backend.generation > 0);
        let held = match slot.held {
            0 => String::new(),
            held => format!(", {held} wait"),
        };
        let why = slot.why.as_ref().map(|why| format!(": {why}"));
        table.add_row([
            slot.name.clone(),
            format!("{}{}{held}", slot.state, why.unwrap_or_default()),
            generation.map_or_else(dash, |backend| backend.generation.to_string()),
            backend
                .and_then(|backend| backend.pid)
                .map_or_else(dash, |pid| pid.to_string()),
            slot.active.to_string(),
            slot.total.to_string(),
            bytes(slot.bytes_up),
            bytes(slot.bytes_down),
            backend
                .and_then(|backend| backend.rss)
                .map_or_else(dash, bytes),
            slot.loop_lag_ms.map_or_else(dash, millis),
        ]);
    }
    right(&mut table, 2..10)
}

pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

/// Numbers stand at the right.
pub(super) fn right(table: &mut Table, columns: std::ops::Range<usize>) -> Table {
    for index in 0..table.column_count() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if columns.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.clone()
}

pub(super) fn dash() -> String {
    "–".to_owned()
}

/// `2h 5m`: the two largest units.
pub(super) fn time(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `0ms`, `2s 5ms`.
fn millis(count: u64) -> String {
    match count {
        0 => "0ms".to_owned(),
        count => humantime::format_duration(Duration::from_millis(count)).to_string(),
    }
}

/// `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (count.max(1).ilog2() / 10).min(4);
    let unit = UNITS[power as usize];
    let tenths = (u128::from(count) * 10) >> (10 * power);
    match (power, tenths) {
        (0, _) => format!("{count} B"),
        (_, 1000..) => format!("{} {unit}", tenths / 10),
        _ => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(150 << 20), "150 MiB");
        assert_eq!(bytes(u64::MAX), "16777215 TiB");
        assert_eq!(time(7_530), "2h 5m");
        assert_eq!(time(0), "0s");
        assert_eq!((millis(0), millis(2005)), ("0ms".into(), "2s 5ms".into()));
    }
}
