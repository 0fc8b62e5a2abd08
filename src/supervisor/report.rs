//! The log lines of the supervisor.

use std::{fmt::Write as _, time::Duration};

use tracing::{debug, error, info, warn};

use super::{
    generation::Ended,
    receipt::{Connections, SlotReceipt},
    restart::{STABLE_AFTER, Say, Verdict},
    worker::Why,
};
use crate::config::Workers;

pub(super) fn booted(slot: &str, generation: u32, pid: u32, after: Duration) {
    info!(%slot, generation, pid, "{slot} ready after {}", brief(after));
}

pub(super) fn recovered(slot: &str, failures: u32) {
    info!(
        %slot,
        "{slot} runs stably again, after {failures} generations that did not: crash loop over"
    );
}

pub(super) fn ending(
    slot: &str,
    generation: u32,
    pid: u32,
    workers: &Workers,
    (why, detail): (Why, Option<String>),
    grace: Duration,
) {
    let grace = brief(grace);
    let reason = match why {
        Why::Asked => {
            debug!(%slot, generation, pid, "{slot} is asked to end; KILL in {grace}");
            return;
        }
        Why::Itself => {
            info!(%slot, generation, pid, "{slot} says that it is stopping; KILL in {grace}");
            return;
        }
        Why::NotReady => {
            let detail = detail.map(|detail| format!(" ({detail})"));
            format!(
                "not ready after {}{}",
                brief(workers.ready_timeout),
                detail.unwrap_or_default()
            )
        }
        Why::Misfit => "cannot be run under contract node".to_owned(),
        Why::Watchdog => match workers.watchdog {
            Some(every) => format!("no WATCHDOG=1 for {}", brief(every)),
            None => "its watchdog triggered".to_owned(),
        },
        Why::Unresponsive => "does not answer".to_owned(),
    };
    warn!(%slot, generation, pid, "{slot} {reason}: TERM now, KILL in {grace}");
}

/// A generation has ended that nobody asked to.
pub(super) fn ended(slot: &str, ended: &Ended, verdict: Verdict) {
    let Ended {
        generation,
        pid,
        how,
        lived,
        stderr,
        misfit: _,
    } = ended;
    let (lived, next) = (brief(*lived), brief(verdict.delay));
    match verdict.say {
        Say::Line => {
            warn!(%slot, generation, pid, "{slot} ended: {how}, after {lived}; next try in {next}");
        }
        Say::CrashLoop { count, span } => {
            let stable = brief(STABLE_AFTER);
            let text = format!(
                "{slot} crash-loops: {count} generations in {} ended before they had been ready \
                 for {stable}; the last: {how}, after {lived}; next try in {next}{}",
                brief(span),
                tail(stderr)
            );
            error!(%slot, generation, pid, "{text}");
        }
        Say::Reminder { count, span } => error!(
            %slot, generation, pid,
            "{slot} still crash-loops: {count} generations in {}; the last: {how}, after {lived}; \
             next try in {next}",
            brief(span)
        ),
        Say::Nothing => {
            debug!(%slot, generation, pid, "{slot} ended: {how}, after {lived}; next try in {next}");
        }
    }
}

/// The last words of a worker, to stand behind a message.
pub(super) fn tail(stderr: &[String]) -> String {
    let mut text = String::from(match stderr {
        [] => "; it wrote nothing to stderr",
        _ => "; the last that it wrote to stderr:",
    });
    for line in stderr {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "\n    | {line}");
    }
    text
}

/// A slot goes on under contract `port`.
pub(super) fn misfit(slot: &str, why: &str) {
    warn!(
        %slot,
        "{slot} is not a worker for contract node ({why}): it goes on with contract port, a free \
         port in PORT; say contract = \"port\" (--contract port) if that is right"
    );
}

/// A generation has ended whose place was taken before.
pub(super) fn left(receipt: &SlotReceipt, ended: &Ended) {
    let (generation, pid) = (ended.generation, ended.pid);
    let (how, lived) = (&ended.how, brief(ended.lived));
    let SlotReceipt {
        slot, connections, ..
    } = receipt;
    let Connections {
        goodbyes,
        cut,
        failed,
        ..
    } = connections;
    info!(
        %slot, generation, pid, goodbyes, cut, failed,
        "{slot}: generation {generation} ended: {how}, after {lived}"
    );
}

/// A worker has ended for good.
pub(super) fn stopped(slot: &str, ended: &Ended) {
    let Ended {
        generation,
        pid,
        how,
        lived,
        stderr: _,
        misfit: _,
    } = ended;
    info!(%slot, generation, pid, "{slot} stopped: {how}, after {}", brief(*lived));
}

/// A duration for people: `138 ms`, `3.2 s`, `2m 5s`.
pub(super) fn brief(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => {
            let tenths = duration.as_millis() / 100;
            match tenths % 10 {
                0 => format!("{} s", tenths / 10),
                rest => format!("{}.{rest} s", tenths / 10),
            }
        }
        seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_brief() {
        let of = |millis| brief(Duration::from_millis(millis));
        assert_eq!(of(0), "0 ms");
        assert_eq!(of(138), "138 ms");
        assert_eq!(of(3_259), "3.2 s");
        assert_eq!(of(30_000), "30 s");
        assert_eq!(of(125_400), "2m 5s");
    }
}
