//! What is counted of a listener. Each thread of the data plane counts for itself.

use std::time::Duration;

use super::CloseReason;
use crate::{
    metrics::{Counted, Counter, Histogram, Lives, Tally, Waits, under},
    tls::HandshakeError,
};

/// Counters of a listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Connections that were accepted.
    pub accepted: Counter,
    /// Why they ended, by the number of the [`CloseReason`].
    pub closes: Tally<{ CloseReason::ALL.len() }>,
    /// How long they lasted.
    pub lives: Histogram<Lives>,
    /// How long clients were held for their slot, of those that were.
    pub held: Histogram<Waits>,
    /// Handshakes of TLS, by their position in [`HANDSHAKES`].
    pub handshakes: Tally<{ HANDSHAKES.len() }>,
    /// How long handshakes took that went well.
    pub handshake: Histogram<Waits>,
    /// Records that were not written, as only a share is.
    pub left_out: Counter,
    /// Requests, by their version (the position in [`VERSIONS`]) and class.
    pub requests: [Tally<{ CLASSES.len() }>; VERSIONS.len()],
    /// How they ended, by their position in [`ENDS`].
    pub ends: Tally<{ ENDS.len() }>,
    /// How long they took, by class, WebSockets left out.
    pub durations: [Histogram<Waits>; CLASSES.len()],
    /// Connections and streams that became WebSockets.
    pub websockets: Counter,
    /// Who closed them (the position in [`PARTIES`]), and with which code ([`CODES`]).
    pub websocket_closes: [Tally<{ CODES.len() + 1 }>; PARTIES.len()],
    /// How long they lasted.
    pub websocket_lives: Histogram<Lives>,
}

impl ListenerStats {
    /// Counts a handshake that went well, or why it did not.
    pub(super) fn shook_hands(&self, failed: Option<&HandshakeError>, took: Duration) {
        let label = failed.map_or(HANDSHAKES[0], HandshakeError::as_label);
        let found = HANDSHAKES.iter().position(|known| *known == label);
        self.handshakes.count(found.unwrap_or(HANDSHAKES.len() - 1));
        if failed.is_none() {
            self.handshake.observe(took);
        }
    }
}

impl Counted for ListenerStats {
    fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
        see("accepted", &self.accepted);
        let closes = CloseReason::ALL.map(|reason| format!("{} {}", reason.by(), reason.as_str()));
        under("closes", see, |see| self.closes.each(closes, see));
        under("lives", see, |see| self.lives.each(see));
        under("held", see, |see| self.held.each(see));
        under("handshakes", see, |see| {
            self.handshakes.each(HANDSHAKES, see)
        });
        under("handshake", see, |see| self.handshake.each(see));
        see("left_out", &self.left_out);
        for (version, requests) in VERSIONS.iter().zip(&self.requests) {
            let name = format!("requests.{version}");
            under(name, see, |see| requests.each(CLASSES, see));
        }
        let ends = ENDS.iter().map(|(by, reason)| format!("{by} {reason}"));
        under("ends", see, |see| self.ends.each(ends, see));
        for (class, durations) in CLASSES.iter().zip(&self.durations) {
            under(format!("durations.{class}"), see, |see| durations.each(see));
        }
        see("websockets", &self.websockets);
        for (party, closes) in PARTIES.iter().zip(&self.websocket_closes) {
            let codes = CODES.iter().map(u16::to_string);
            let codes = codes.chain(["other".to_owned()]);
            under(format!("websocket_closes.{party}"), see, |see| {
                closes.each(codes, see);
            });
        }
        under("websocket_lives", see, |see| self.websocket_lives.each(see));
    }
}

/// Versions of HTTP.
pub const VERSIONS: [&str; 3] = ["1.0", "1.1", "2"];

/// Classes of status codes; the last one is for no answer at all.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

/// The class of a status; 0 is none.
pub(super) const fn class_of(status: u16) -> usize {
    match status {
        100..600 => status as usize / 100 - 1,
        _ => CLASSES.len() - 1,
    }
}

/// What may become of a handshake: well, or a label of [`HandshakeError`].
pub const HANDSHAKES: [&str; 12] = [
    "ok",
    "timeout",
    "overload",
    "not_tls",
    "gone",
    "no_common_version",
    "no_common_parameters",
    "no_common_protocol",
    "no_certificate",
    "bad_certificate",
    "refused_by_client",
    "bad_message",
];

/// By whom a request was ended, and why: what records say in `by` and `reason`.
pub const ENDS: [(&str, &str); 39] = [
    ("backend", "done"),
    ("client", "gone"),
    ("client", "slow"),
    ("client", "reset"),
    ("client", "closed"),
    ("backend", "gone"),
    ("backend", "reset"),
    ("backend", "closed"),
    ("backend", "broken"),
    ("backend", "not_http"),
    ("backend", "response_timeout"),
    ("backend", "connect_failed"),
    ("proxy", "closed"),
    ("proxy", "rebalanced"),
    ("proxy", "cut"),
    ("proxy", "idle_timeout"),
    ("proxy", "slot_down"),
    ("proxy", "no_backend"),
    ("proxy", "no_resources"),
    ("client", "bad_request"),
    ("client", "bare_line_feed"),
    ("client", "bad_target"),
    ("client", "bad_host"),
    ("client", "bad_length"),
    ("client", "bad_transfer_encoding"),
    ("client", "unknown_transfer_coding"),
    ("client", "bad_chunk"),
    ("client", "bad_connection"),
    ("client", "bad_websocket_handshake"),
    ("client", "websocket_version"),
    ("client", "method"),
    ("client", "request_timeout"),
    ("client", "body_too_large"),
    ("client", "target_too_long"),
    ("client", "expectation"),
    ("client", "head_too_large"),
    ("client", "too_many_fields"),
    ("client", "http_version"),
    // What this list does not know; the last one.
    ("proxy", "other"),
];

/// The position of an end in [`ENDS`].
pub(super) fn end_of(by: &str, reason: &str) -> usize {
    let found = ENDS.iter().position(|end| *end == (by, reason));
    found.unwrap_or(ENDS.len() - 1)
}

/// Who closes a WebSocket.
pub const PARTIES: [&str; 3] = ["client", "backend", "proxy"];

/// The position of a party in [`PARTIES`].
pub(super) fn party_of(by: &str) -> usize {
    let found = PARTIES.iter().position(|party| *party == by);
    found.unwrap_or(PARTIES.len() - 1)
}

/// The status codes of Close frames that are registered (RFC 6455 §11.7): 1005 is a frame without
/// a code, 1006 the end without a frame.
pub const CODES: [u16; 15] = [
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015,
];

/// The position of a code in [`CODES`]; one more than the last for all others.
pub(super) fn code_of(code: u16) -> usize {
    let found = CODES.iter().position(|known| *known == code);
    found.unwrap_or(CODES.len())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn classes_are_those_of_their_hundreds() {
        let of = |status| CLASSES[class_of(status)];
        let classes = [0, 99, 101, 200, 204, 304, 499, 599, 600].map(of);
        let expected = [
            "none", "none", "1xx", "2xx", "2xx", "3xx", "4xx", "5xx", "none",
        ];
        assert_eq!(classes, expected);
    }

    #[test]
    fn codes_that_are_not_registered_are_one() {
        assert_eq!(code_of(1000), 0);
        assert_eq!(CODES[code_of(1012)], 1012);
        assert_eq!((code_of(1004), code_of(4000)), (CODES.len(), CODES.len()));
    }

    /// The ends that the source names, as far as they stand there in one piece.
    #[test]
    fn every_end_of_a_request_is_known() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/proxy/http");
        let mut found = 0;
        let mut know = |by: &str, reason: &str| {
            found += 1;
            assert_ne!(end_of(by, reason), ENDS.len() - 1, "{by}, {reason}");
        };
        for file in [
            "refusal.rs",
            "http1/carriage.rs",
            "stream.rs",
            "websocket/tunnel.rs",
        ] {
            let text = fs::read_to_string(folder.join(file)).unwrap();
            for (_, rest) in text
                .match_indices("Outcome::new(\"")
                .map(|(at, m)| (at, &text[at + m.len()..]))
            {
                let mut words = rest.split('"');
                let by = words.next().unwrap();
                if words.next() == Some(", ") {
                    know(by, words.next().unwrap());
                }
            }
            for line in text.lines().filter(|line| line.contains("Self::new(")) {
                know("client", line.split('"').nth(1).unwrap());
            }
        }
        assert!(found > 30, "only {found} ends were found");
        for reason in CloseReason::ALL {
            assert!(CloseReason::ALL[reason.number()] == reason);
        }
    }
}
