//! Listeners: their connections and requests, and how they ended.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::super::{Board, Place, standing};
use crate::{
    direct::Usage,
    metrics::{Labels, Page, Seen},
    proxy::{
        CloseReason, Listener,
        stats::{CLASSES, CODES, ENDS, HANDSHAKES, ListenerStats, PARTIES, VERSIONS},
    },
};

pub(super) fn write(
    page: &mut Page<'_>,
    board: &Board,
    usages: &BTreeMap<String, Vec<Usage>>,
) -> fmt::Result {
    let places = board.places();
    let active = places.iter().filter_map(|place| {
        let labels: Labels<'_, 1> = [("listener", place.name())];
        Some((labels, standing::connections(place, usages)?))
    });
    page.gauge(
        "homescar_listener_connections_active",
        "Connections open now; in direct mode, as far as the kernel tells.",
        active,
    )?;
    let relayed = places.iter().filter_map(|place| match place {
        Place::Relayed { listener, .. } => Some(listener),
        Place::Direct { .. } => None,
    });
    let relayed = Relayed(relayed.collect());
    relayed.connections(page)?;
    relayed.requests(page)?;
    relayed.websockets(page)
}

/// Those that homescar is on the path of.
struct Relayed<'a>(Vec<&'a Arc<Listener>>);

impl Relayed<'_> {
    fn connections(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter(
            "homescar_listener_connections",
            "Connections that were accepted.",
            self.each(|stats| stats.accepted.get()),
        )?;
        let closes = self.0.iter().flat_map(|listener| {
            CloseReason::ALL.iter().enumerate().map(|(number, reason)| {
                let labels: Labels<'_, 3> = [
                    ("listener", listener.name()),
                    ("by", reason.by()),
                    ("reason", reason.as_str()),
                ];
                let count = listener.stats().sum(|stats| stats.closes.get(number));
                (labels, count)
            })
        });
        page.counter(
            "homescar_closes",
            "Connections that ended, by whom they were ended and why.",
            closes,
        )?;
        page.histogram(
            "homescar_connection_duration_seconds",
            "How long connections lasted.",
            self.times(|stats| stats.lives.seen()),
        )?;
        page.histogram(
            "homescar_held_seconds",
            "How long clients were held for their slot, of those that were.",
            self.times(|stats| stats.held.seen()),
        )?;
        page.counter(
            "homescar_records_left_out",
            "Records that were not written, as [log] records wants only a share.",
            self.each(|stats| stats.left_out.get()),
        )?;
        let handshakes = self.0.iter().flat_map(|listener| {
            HANDSHAKES.iter().enumerate().map(|(number, result)| {
                let labels: Labels<'_, 2> = [("listener", listener.name()), ("result", result)];
                let count = listener.stats().sum(|stats| stats.handshakes.get(number));
                (labels, count)
            })
        });
        page.counter(
            "homescar_tls_handshakes",
            "TLS handshakes with clients: ok, or why not; overload is the refusal when too many are \
             on their way.",
            handshakes,
        )?;
        page.histogram(
            "homescar_tls_handshake_duration_seconds",
            "How long handshakes took that went well.",
            self.times(|stats| stats.handshake.seen()),
        )
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let requests = self.0.iter().flat_map(|listener| {
            VERSIONS.iter().enumerate().flat_map(move |(row, version)| {
                CLASSES.iter().enumerate().map(move |(column, class)| {
                    let labels: Labels<'_, 3> = [
                        ("listener", listener.name()),
                        ("version", version),
                        ("code_class", class),
                    ];
                    let count = listener
                        .stats()
                        .sum(|stats| stats.requests[row].get(column));
                    (labels, count)
                })
            })
        });
        page.counter(
            "homescar_requests",
            "Requests that ended, by version of HTTP and class of the status.",
            requests,
        )?;
        let ends = self.0.iter().flat_map(|listener| {
            ENDS.iter()
                .enumerate()
                .filter_map(move |(number, (by, reason))| {
                    let count = listener.stats().sum(|stats| stats.ends.get(number));
                    let labels: Labels<'_, 3> = [
                        ("listener", listener.name()),
                        ("by", by),
                        ("reason", reason),
                    ];
                    (count > 0).then_some((labels, count))
                })
        });
        page.counter(
            "homescar_request_ends",
            "Requests that ended, by whom they were ended and why.",
            ends,
        )?;
        let durations = self.0.iter().flat_map(|listener| {
            CLASSES
                .iter()
                .enumerate()
                .filter_map(move |(number, class)| {
                    let mut all = Seen::default();
                    for stats in listener.stats().all() {
                        all += stats.durations[number].seen();
                    }
                    let labels: Labels<'_, 2> =
                        [("listener", listener.name()), ("code_class", class)];
                    (all.count() > 0).then_some((labels, all))
                })
        });
        page.histogram(
            "homescar_request_duration_seconds",
            "From a request's head to the end of its response, WebSockets left out.",
            durations,
        )
    }

    fn websockets(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter(
            "homescar_websockets",
            "Requests that became WebSockets.",
            self.each(|stats| stats.websockets.get()),
        )?;
        let active = self.0.iter().map(|listener| {
            let stats = listener.stats();
            // In this order: one that ends meanwhile makes no negative number.
            let closed = stats.sum(|stats| stats.websocket_lives.seen().count());
            let opened = stats.sum(|stats| stats.websockets.get());
            let labels: Labels<'_, 1> = [("listener", listener.name())];
            (labels, opened.saturating_sub(closed))
        });
        page.gauge("homescar_websockets_active", "WebSockets open now.", active)?;
        let codes: Vec<String> = CODES.iter().map(ToString::to_string).collect();
        let codes: Vec<&str> = codes.iter().map(String::as_str).chain(["other"]).collect();
        let codes = &codes;
        let closes = self.0.iter().flat_map(|listener| {
            PARTIES.iter().enumerate().flat_map(move |(row, by)| {
                codes.iter().enumerate().filter_map(move |(column, code)| {
                    let of = |stats: &ListenerStats| stats.websocket_closes[row].get(column);
                    let count = listener.stats().sum(of);
                    let labels: Labels<'_, 3> =
                        [("listener", listener.name()), ("by", by), ("code", code)];
                    (count > 0).then_some((labels, count))
                })
            })
        });
        page.counter(
            "homescar_websocket_closes",
            "WebSockets that ended, by who closed them and the code of the first Close frame; 1005 \
             is a frame without a code, 1006 an end without a frame.",
            closes,
        )?;
        page.histogram(
            "homescar_websocket_duration_seconds",
            "How long WebSockets lasted.",
            self.times(|stats| stats.websocket_lives.seen()),
        )
    }

    fn each(
        &self,
        of: impl Fn(&ListenerStats) -> u64,
    ) -> impl Iterator<Item = (Labels<'_, 1>, u64)> {
        self.0.iter().map(move |listener| {
            let labels: Labels<'_, 1> = [("listener", listener.name())];
            (labels, listener.stats().sum(&of))
        })
    }

    fn times(
        &self,
        of: impl Fn(&ListenerStats) -> Seen,
    ) -> impl Iterator<Item = (Labels<'_, 1>, Seen)> {
        self.0.iter().map(move |listener| {
            let labels: Labels<'_, 1> = [("listener", listener.name())];
            let mut all = Seen::default();
            for stats in listener.stats().all() {
                all += of(stats);
            }
            (labels, all)
        })
    }
}
