//! Lines and descriptors in and out of a channel, each bounded.

use std::{collections::VecDeque, io, net::TcpListener, os::fd::AsFd, sync::Arc, time::Duration};

use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};
use tokio::{io::Interest, net::UnixStream, time::Instant};
use tracing::{debug, warn};

use super::{message, unread::unread};
use crate::{
    handover::{self, Number, Outgoing},
    supervisor::pass,
};

/// The longest line that is kept. The protocol's own are short.
const LONGEST: usize = 64 * 1024;
/// What is read of one channel in a second, so that a worker that floods it floods itself.
const BYTES_PER_SECOND: usize = 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);
/// Answers that may wait to be taken; with so many, no more questions are read.
const ANSWERS: usize = 64;
/// Until it is looked again whether a descriptor can follow a ping.
const SOON: Duration = Duration::from_millis(20);
/// As often as Node itself sends a descriptor that has not arrived.
const TRIES: u32 = 4;

/// A stream with what has half come, and what has not yet gone.
#[derive(Debug)]
pub(super) struct Wire {
    pub stream: UnixStream,
    /// Since when the worker's end is closed.
    pub closed: Option<Instant>,
    slot: Arc<str>,
    incoming: Incoming,
    outgoing: VecDeque<Letter>,
    /// How much of the first of them has gone out.
    sent: usize,
    /// Whose descriptor is on its way.
    unconfirmed: Option<Letter>,
    /// A [`message::PING`] is not answered yet.
    pinged: bool,
}

/// The end of a line, and how much came lately.
#[derive(Debug)]
struct Incoming {
    rest: Vec<u8>,
    /// The present line is too long.
    skipping: bool,
    since: Instant,
    bytes: usize,
    warned: bool,
}

#[derive(Clone, Debug)]
struct Letter {
    line: Vec<u8>,
    socket: Option<Arc<TcpListener>>,
    /// How often it was sent.
    tries: u32,
}

impl Letter {
    fn new(text: &str, socket: Option<Arc<TcpListener>>) -> Self {
        let line = format!("{text}\n").into_bytes();
        Self {
            line,
            socket,
            tries: 0,
        }
    }
}

/// A [`Wire`] on which nothing is under way, for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedWire {
    stream: Number,
    is_closed: bool,
    rest: Vec<u8>,
    skipping: bool,
    warned: bool,
}

impl SavedWire {
    /// The same again. Needs a runtime.
    pub(super) fn resumed(
        self,
        slot: Arc<str>,
        pinged: bool,
        incoming: &mut handover::Incoming,
    ) -> io::Result<Wire> {
        let stream = std::os::unix::net::UnixStream::from(incoming.take(self.stream)?);
        let mut wire = Wire::new(UnixStream::from_std(stream)?, slot);
        wire.closed = self.is_closed.then(Instant::now);
        wire.incoming.rest = self.rest;
        wire.incoming.skipping = self.skipping;
        wire.incoming.warned = self.warned;
        wire.pinged = pinged;
        Ok(wire)
    }
}

impl Wire {
    /// What the next image has to know of it.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedWire> {
        Ok(SavedWire {
            stream: outgoing.add(&self.stream)?,
            is_closed: self.closed.is_some(),
            rest: self.incoming.rest.clone(),
            skipping: self.incoming.skipping,
            warned: self.incoming.warned,
        })
    }

    /// Whether nothing waits to be sent, or to be confirmed.
    pub(super) fn is_quiet(&self) -> bool {
        self.closed.is_some() || (self.outgoing.is_empty() && self.unconfirmed.is_none())
    }

    pub(super) fn new(stream: UnixStream, slot: Arc<str>) -> Self {
        Self {
            stream,
            closed: None,
            slot,
            incoming: Incoming {
                rest: Vec::new(),
                skipping: false,
                since: Instant::now(),
                bytes: 0,
                warned: false,
            },
            outgoing: VecDeque::new(),
            sent: 0,
            unconfirmed: None,
            pinged: false,
        }
    }

    /// Reads what is there, once, and gives the lines that it completes. Descriptors that come with
    /// it are closed by the kernel, as we make no room for them (`unix(7)`).
    pub(super) fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut buffer = [0; 16 * 1024];
        let len = match self.stream.try_read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Vec::new(),
            Err(_) => 0,
        };
        if len == 0 {
            debug!(slot = %self.slot, "its channel is closed");
            self.closed = Some(Instant::now());
            return Vec::new();
        }
        self.incoming.lines(&buffer[..len], &self.slot)
    }

    /// What there is to wait for.
    pub(super) fn interest(&self) -> Option<Interest> {
        let open = self.closed.is_none();
        let reads = open
            && self.outgoing.len() < ANSWERS
            && self.reads_again_at().is_none_or(|at| at <= Instant::now());
        let writes = open && !self.outgoing.is_empty() && self.may_send();
        match (reads, writes) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        }
    }

    /// When reading goes on, after a flood.
    pub(super) fn reads_again_at(&self) -> Option<Instant> {
        let flooded = self.closed.is_none() && self.incoming.bytes >= BYTES_PER_SECOND;
        flooded.then_some(self.incoming.since + SECOND)
    }

    /// Sends a line, with a socket, when its turn has come.
    pub(super) fn post(&mut self, text: &str, socket: Option<Arc<TcpListener>>) {
        self.outgoing.push_back(Letter::new(text, socket));
    }

    /// The last descriptor has arrived.
    pub(super) fn confirmed(&mut self) {
        self.unconfirmed = None;
    }

    /// The last descriptor has not arrived; `false` when it was sent often enough.
    pub(super) fn send_again(&mut self) -> bool {
        match self.unconfirmed.take() {
            Some(letter) if letter.tries >= TRIES => return false,
            // Before all that has waited for it.
            Some(letter) => self.outgoing.insert(usize::from(self.sent > 0), letter),
            None => {}
        }
        true
    }

    /// Says that a descriptor has come. Node's own queue waits for this, so it waits for nothing.
    pub(super) fn confirm(&mut self) {
        let letter = Letter::new(message::RECEIVED, None);
        self.outgoing.insert(usize::from(self.sent > 0), letter);
    }

    /// Asks for a sign of life, if that can be asked: only one that has read all that it was sent
    /// reads this by itself. (Node takes a descriptor for that of the first such message which it
    /// reads along with it; and whatever else may have it disconnect is done with.)
    pub(super) fn ping(&mut self) -> bool {
        let can = self.closed.is_none()
            && self.outgoing.is_empty()
            && self.unconfirmed.is_none()
            && !self.pinged
            && !self.has_unread();
        if can {
            self.post(message::PING, None);
            self.pinged = true;
            self.flush();
        }
        can
    }

    /// Takes an answer for that to the ping, if there was one. They come in the order of what they
    /// answer, and no descriptor is on its way when a ping is sent.
    pub(super) const fn ponged(&mut self) -> bool {
        std::mem::replace(&mut self.pinged, false)
    }

    /// When a descriptor that waits for the ping before it to be read is looked at again.
    pub(super) fn sends_again_at(&self) -> Option<Instant> {
        let is_held_up = self.closed.is_none() && self.unconfirmed.is_none() && self.must_wait();
        is_held_up.then(|| Instant::now() + SOON)
    }

    fn must_wait(&self) -> bool {
        let is_next = |letter: &Letter| letter.socket.is_some();
        self.pinged && self.outgoing.front().is_some_and(is_next) && self.has_unread()
    }

    fn has_unread(&self) -> bool {
        unread(&self.stream).map_or(true, |unread| unread > 0)
    }

    fn may_send(&self) -> bool {
        let first = self.outgoing.front();
        let is_confirmation =
            |letter: &Letter| letter.line.trim_ascii_end() == message::RECEIVED.as_bytes();
        match self.unconfirmed {
            None => !self.must_wait(),
            Some(_) => first.is_some_and(is_confirmation),
        }
    }

    /// Sends what can be sent now. As in Node, nothing follows a descriptor before it is
    /// confirmed.
    pub(super) fn flush(&mut self) {
        while self.closed.is_none() && self.may_send() {
            let Some(letter) = self.outgoing.front() else {
                return;
            };
            let descriptors = letter.socket.iter().filter(|_| self.sent == 0);
            let descriptors: Vec<_> = descriptors.map(|socket| socket.as_fd()).collect();
            let bytes = &letter.line[self.sent..];
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                pass::send(&self.stream, bytes, &descriptors, SendFlags::DONTWAIT)
            });
            match sent {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end is closed, which reading shows.
                Err(_) => return self.outgoing.clear(),
            }
            if self.sent < letter.line.len() {
                continue;
            }
            self.sent = 0;
            let sent = self.outgoing.pop_front();
            if let Some(mut letter) = sent.filter(|letter| letter.socket.is_some()) {
                letter.tries += 1;
                self.unconfirmed = Some(letter);
            }
        }
    }
}

impl Incoming {
    /// The lines that bytes complete.
    fn lines(&mut self, bytes: &[u8], slot: &str) -> Vec<Vec<u8>> {
        let now = Instant::now();
        if self.since + SECOND <= now {
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes.len();
        let mut too_much = self.bytes >= BYTES_PER_SECOND;
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = part.ends_with(b"\n");
            if !self.skipping && self.rest.len() + part.len() > LONGEST {
                (self.skipping, too_much) = (true, true);
                self.rest = Vec::new();
            }
            if !self.skipping {
                self.rest.extend_from_slice(part);
            }
            if ends {
                let line = std::mem::take(&mut self.rest);
                if !std::mem::take(&mut self.skipping) {
                    lines.push(line);
                }
            }
        }
        if too_much && !std::mem::replace(&mut self.warned, true) {
            warn!(
                %slot,
                "{slot} sends more to its primary than homescar takes: lines over {LONGEST} bytes \
                 are passed over, and {BYTES_PER_SECOND} bytes read in a second"
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Wire::new(ours, "app/0".into()), theirs)
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_passed_over() {
        let (mut wire, _theirs) = pair().await;
        let half = vec![b'x'; LONGEST / 2 + 1];
        let lines = |wire: &mut Wire, bytes: &[u8]| wire.incoming.lines(bytes, "app/0");
        assert!(lines(&mut wire, &half).is_empty());
        assert!(lines(&mut wire, &half).is_empty());
        assert!(wire.incoming.rest.is_empty());
        assert!(wire.incoming.warned);
        let rest = lines(&mut wire, b"xx\none\ntw");
        assert_eq!(rest, [b"one\n"]);
        assert_eq!(lines(&mut wire, b"o\n"), [b"two\n"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_for_the_next_second() {
        let (mut wire, _theirs) = pair().await;
        assert_eq!(wire.interest(), Some(Interest::READABLE));
        wire.incoming.lines(&vec![b'\n'; BYTES_PER_SECOND], "app/0");
        assert_eq!(wire.interest(), None);
        let again = wire.reads_again_at().unwrap();
        tokio::time::sleep_until(again).await;
        assert_eq!(wire.interest(), Some(Interest::READABLE));
        wire.incoming.lines(b"\n", "app/0");
        assert_eq!(wire.reads_again_at(), None);
    }

    #[tokio::test]
    async fn a_ping_is_read_by_itself() {
        let (mut wire, theirs) = pair().await;
        let socket = || Some(Arc::new(TcpListener::bind("127.0.0.1:0").unwrap()));
        let read = |theirs: &UnixStream| {
            let mut buffer = [0; 64];
            let len = theirs.try_read(&mut buffer).unwrap_or_default();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        wire.stream.writable().await.unwrap();
        wire.post("1", None);
        wire.flush();
        assert!(!wire.ping(), "there is something to be read before");
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), "1\n");
        assert!(wire.ping());
        assert!(!wire.ping(), "one at a time");
        // A descriptor is not read along with it, and what has none may be.
        wire.post("2", None);
        wire.post("3", socket());
        wire.flush();
        assert!(wire.sends_again_at().is_some());
        assert_eq!(wire.interest(), Some(Interest::READABLE));
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), format!("{}\n2\n", message::PING));
        assert!(wire.sends_again_at().is_none());
        wire.flush();
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), "3\n");
        assert!(wire.ponged(), "its answer comes first");
        assert!(!wire.ponged());
        wire.confirmed();
        // Before a descriptor is confirmed, nothing is asked.
        wire.post("4", socket());
        wire.flush();
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), "4\n");
        assert!(!wire.ping());
        wire.confirmed();
        assert!(wire.ping());
    }

    #[tokio::test]
    async fn a_descriptor_is_confirmed_before_anything_follows_it() {
        let (mut wire, theirs) = pair().await;
        let socket = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        wire.post("1", Some(socket));
        wire.post("2", None);
        let read = |theirs: &UnixStream| {
            let mut buffer = [0; 64];
            let len = theirs.try_read(&mut buffer).unwrap_or_default();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        wire.stream.writable().await.unwrap();
        wire.flush();
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), "1\n");
        wire.confirm();
        wire.flush();
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), format!("{}\n", message::RECEIVED));
        for _ in 1..TRIES {
            assert!(wire.send_again());
            wire.flush();
            theirs.readable().await.unwrap();
            assert_eq!(read(&theirs), "1\n");
        }
        assert!(!wire.send_again());
        wire.flush();
        theirs.readable().await.unwrap();
        assert_eq!(read(&theirs), "2\n");
    }
}
