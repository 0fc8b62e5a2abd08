//! `homescar restart`: slot after slot, and what came of it.

use std::{num::NonZeroUsize, time::Duration};

use super::{Exit, complain, print, socket};
use crate::{
    admin::view::{Receipt, Restart, Step},
    supervisor::{Connections, Outcome, SlotReceipt},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The cluster whose workers are replaced
    cluster: String,
    /// Slots at a time
    #[arg(long, value_name = "N", default_value = "1")]
    parallel: NonZeroUsize,
    #[command(flatten)]
    socket: socket::Arguments,
}

/// Shows each slot as soon as it is known what came of it. A slot that was not replaced makes the
/// command fail.
pub(super) fn run(arguments: &Arguments) -> Exit {
    let request = Restart {
        cluster: arguments.cluster.clone(),
        parallel: Some(arguments.parallel),
    };
    let is_json = arguments.socket.json;
    arguments.socket.speak(async |client| {
        let mut steps = client.stream::<Step>("/restart", &request).await?;
        while let Some(step) = steps.next().await? {
            match step {
                Step::Slot(slot) if !is_json => print(line(&slot).as_bytes()),
                Step::Slot(_) => {}
                Step::Receipt(receipt) => {
                    let text = match is_json {
                        true => serde_json::to_string_pretty(&receipt)? + "\n",
                        false => summary(&receipt),
                    };
                    print(text.as_bytes());
                    let exit = if receipt.ok { Exit::Ok } else { Exit::Failure };
                    return Ok(exit);
                }
            }
        }
        complain("the restart ended without a receipt: homescar is ending");
        Ok(Exit::Failure)
    })
}

fn line(receipt: &SlotReceipt) -> String {
    let SlotReceipt {
        slot,
        outcome,
        generation,
        pid,
        before,
        boot_ms,
        drain_ms,
        connections,
        why,
        stderr,
    } = receipt;
    let time =
        |ms: &Option<u64>| humantime::format_duration(Duration::from_millis(ms.unwrap_or(0)));
    let mut text = match outcome {
        Outcome::Replaced => {
            let before = before.map_or_else(|| "–".to_owned(), |before| before.to_string());
            let (generation, pid) = (generation.unwrap_or(0), pid.unwrap_or(0));
            let drained = drain_ms.map(|_| format!(", drained in {}", time(drain_ms)));
            format!(
                "{slot}  replaced: generation {before} → {generation} (pid {pid}), ready after \
                 {}{}{}",
                time(boot_ms),
                drained.unwrap_or_default(),
                ends(*connections)
            )
        }
        Outcome::Failed => format!("{slot}  NOT REPLACED: {}", why.as_deref().unwrap_or("?")),
        Outcome::Untouched => format!("{slot}  left alone: {}", why.as_deref().unwrap_or("?")),
    };
    for line in stderr {
        text = text + "\n    | " + line;
    }
    text + "\n"
}

/// What is worth telling of the connections that the old generation had.
fn ends(connections: Connections) -> String {
    let Connections {
        ended: _,
        goodbyes,
        cut,
        failed,
    } = connections;
    let told = [
        (goodbyes, "WebSockets closed"),
        (cut, "cut"),
        (failed, "failed"),
    ];
    let told = told.iter().filter(|(count, _)| *count > 0);
    told.map(|(count, what)| format!(", {count} {what}"))
        .collect()
}

fn summary(receipt: &Receipt) -> String {
    let count = |outcome| {
        receipt
            .slots
            .iter()
            .filter(|s| s.outcome == outcome)
            .count()
    };
    let replaced = count(Outcome::Replaced);
    let took = humantime::format_duration(Duration::from_millis(receipt.ms));
    let cluster = &receipt.cluster;
    match receipt.ok {
        true => format!("{cluster}: {replaced} replaced in {took}\n"),
        false => format!(
            "{cluster}: aborted after {took}; {replaced} replaced, the others go on as they were\n"
        ),
    }
}
