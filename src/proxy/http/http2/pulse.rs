//! Whether anybody is there: a client that is silent for long is asked for a sign of life.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// Silence for which the client is asked for a sign of life, and what it gets for one.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(20);

/// The pulse of a connection.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The client has sent something since the last look.
    heard: Arc<AtomicBool>,
    pings: Option<PingPong>,
    is_asked: bool,
    due: Instant,
}

impl Pulse {
    pub(super) fn new(heard: Arc<AtomicBool>, pings: Option<PingPong>, now: Instant) -> Self {
        Self {
            heard,
            pings,
            is_asked: false,
            due: now + INTERVAL,
        }
    }

    /// Looks, if it is time to; when to do so again, if somebody is there.
    pub(super) fn look(&mut self, now: Instant) -> Option<Instant> {
        if now < self.due {
            return Some(self.due);
        }
        let is_heard = self.heard.swap(false, Relaxed);
        if !is_heard && self.is_asked {
            return None;
        }
        self.is_asked = !is_heard;
        self.due = now
            + match self.is_asked {
                true => TIMEOUT,
                false => INTERVAL,
            };
        if let (Some(pings), true) = (&mut self.pings, self.is_asked) {
            // Anything that comes is a sign of life; but the last answer has to be taken first.
            let mut cx = Context::from_waker(Waker::noop());
            let _answer = pings.poll_pong(&mut cx);
            let _on_its_way = pings.send_ping(Ping::opaque());
        }
        Some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_for_long_and_does_not_answer_is_gone() {
        let heard = Arc::new(AtomicBool::new(true));
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(Arc::clone(&heard), None, now);
        assert_eq!(pulse.look(at(10)), Some(at(30)));
        assert_eq!(pulse.look(at(30)), Some(at(60)), "it has been heard");
        assert_eq!(pulse.look(at(60)), Some(at(80)), "it is asked");
        heard.store(true, Relaxed);
        assert_eq!(pulse.look(at(80)), Some(at(110)), "it has answered");
        assert_eq!(pulse.look(at(110)), Some(at(130)), "it is asked again");
        assert_eq!(pulse.look(at(130)), None);
    }
}
