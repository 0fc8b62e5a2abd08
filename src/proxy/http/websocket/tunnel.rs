//! Carries a WebSocket until it is over, and says goodbye when it has to go.

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::ReadBuf, time::Instant};

use super::frame::{Direction, Tracker, close};
use crate::{
    config::Drain,
    proxy::{
        http::{
            body::Encoder,
            buffers,
            deadline::{Deadline, NEVER},
            out::Out,
            record::Outcome,
        },
        record::Traffic,
        registry::{Farewell, Leaving},
        relay::Side,
    },
};

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;
/// For a client to answer a Close frame.
const ANSWER: Duration = Duration::from_secs(5);
/// For the other side to end too, once one has ended or all is said.
const LAST: Duration = Duration::from_secs(1);

/// What a client is told that is sent to its own slot.
const GOING_HOME: &str = "rebalance";

/// An upgraded connection.
#[derive(Debug)]
pub(in super::super) struct Tunnel<'a, D, U> {
    pub(in super::super) down: &'a mut D,
    pub(in super::super) up: &'a mut U,
    /// For the client: what is left of the handshake.
    pub(in super::super) to_down: Out,
    pub(in super::super) idle: Option<Duration>,
    /// What is said when it has to go.
    pub(in super::super) drain: &'a Drain,
    pub(in super::super) farewell: Farewell,
}

/// How a WebSocket ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TunnelEnd {
    pub(in super::super) outcome: Outcome,
    /// Who sent the first Close frame, and its status code.
    pub(in super::super) closed_by: Option<&'static str>,
    pub(in super::super) code: Option<u16>,
    pub(in super::super) frames_up: u64,
    pub(in super::super) frames_down: u64,
    pub(in super::super) traffic: Traffic,
    /// Nobody is to be told by a reset.
    pub(in super::super) is_orderly: bool,
}

impl<D: Side, U: Side> Tunnel<'_, D, U> {
    /// Carries it. `from_client` and `from_backend` came before it began.
    pub(in super::super) async fn run(self, from_client: &[u8], from_backend: &[u8]) -> TunnelEnd {
        let Self {
            down,
            up,
            to_down,
            idle,
            drain,
            farewell,
        } = self;
        let idle = idle.unwrap_or(NEVER);
        let mut carriage = Carriage {
            down,
            up,
            to_up: Out::default(),
            to_down,
            upward: Tracker::new(Direction::FromClient),
            downward: Tracker::new(Direction::FromBackend),
            client_ended: false,
            backend_ended: false,
            phase: Phase::Open,
            first_close: None,
            deadline: Deadline::new(Instant::now() + idle),
            idle,
            drain,
            asked: None,
            traffic: Traffic::default(),
        };
        carriage.early(from_client, from_backend);
        let mut asked = pin!(farewell.wait());
        let (outcome, is_orderly) = poll_fn(|cx| {
            if carriage.asked.is_none()
                && let Poll::Ready(why) = asked.as_mut().poll(cx)
            {
                carriage.asked = Some(why);
                if carriage.phase == Phase::Open {
                    carriage.phase = Phase::Leaving;
                }
            }
            carriage.poll(cx)
        })
        .await;
        if is_orderly {
            let farewell = tokio::io::AsyncWriteExt::shutdown(carriage.down);
            let _gone = tokio::time::timeout(LAST, farewell).await;
        } else {
            carriage.down.reset_on_close();
        }
        let (closed_by, code) = carriage.first_close.unzip();
        TunnelEnd {
            outcome,
            closed_by,
            code: code.flatten(),
            frames_up: carriage.upward.frames,
            frames_down: carriage.downward.frames,
            traffic: carriage.traffic,
            is_orderly,
        }
    }
}

struct Carriage<'a, D, U> {
    down: &'a mut D,
    up: &'a mut U,
    to_up: Out,
    to_down: Out,
    upward: Tracker,
    downward: Tracker,
    client_ended: bool,
    backend_ended: bool,
    phase: Phase,
    first_close: Option<(&'static str, Option<u16>)>,
    deadline: Deadline,
    idle: Duration,
    drain: &'a Drain,
    /// Why it was asked to go, if it was.
    asked: Option<Leaving>,
    traffic: Traffic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Both sides are there.
    Open,
    /// It has to go as soon as the backend's frame is over.
    Leaving,
    /// We have sent the client a Close frame, and hear no more of the backend.
    Said,
    /// All is said, or one side has ended: the other one gets a moment.
    Ending,
}

type Over = (Outcome, bool);

impl<D: Side, U: Side> Carriage<'_, D, U> {
    fn early(&mut self, from_client: &[u8], from_backend: &[u8]) {
        self.upward.feed(from_client);
        self.to_up.buffer().extend_from_slice(from_client);
        self.traffic.up += from_client.len() as u64;
        self.downward.feed(from_backend);
        if !from_backend.is_empty() {
            self.to_down.append(from_backend);
            self.traffic.down += from_backend.len() as u64;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let before = (self.traffic, self.phase);
        self.leave();
        if let Poll::Ready(over) = self.poll_down(cx) {
            return Poll::Ready(over);
        }
        if let Poll::Ready(over) = self.poll_up(cx) {
            return Poll::Ready(over);
        }
        self.note_closes();
        if before.1 != self.phase {
            let patience = match self.phase {
                Phase::Open | Phase::Leaving => self.idle,
                Phase::Said => ANSWER,
                Phase::Ending => LAST,
            };
            self.deadline.set(Instant::now() + patience);
        } else if before.0 != self.traffic && matches!(self.phase, Phase::Open | Phase::Leaving) {
            self.deadline.set(Instant::now() + self.idle);
        }
        if self.deadline.poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.too_late(cx))
    }

    /// Says goodbye to the client, if that is due and no frame is in the way.
    fn leave(&mut self) {
        if self.phase != Phase::Leaving || !self.downward.is_between_frames() {
            return;
        }
        if self.downward.close.is_some() {
            // The backend has said it already.
            self.phase = Phase::Open;
            return;
        }
        self.say_goodbye();
    }

    fn say_goodbye(&mut self) {
        let Drain {
            close_code,
            close_reason,
            ..
        } = self.drain;
        let reason = match self.asked {
            Some(Leaving::Home) => GOING_HOME,
            Some(Leaving::Drain) | None => close_reason,
        };
        let mut frame = Vec::new();
        close(&mut frame, Direction::FromBackend, *close_code, reason);
        self.to_down.append(&frame);
        self.first_close.get_or_insert(("proxy", Some(*close_code)));
        self.phase = Phase::Said;
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        for _ in 0..READS_PER_TURN {
            match self.to_up.poll_flush(cx, self.up) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.backend_lost(cx),
            }
            if self.client_ended {
                return self.after_client(cx);
            }
            let closing = matches!(self.phase, Phase::Said | Phase::Ending);
            if closing && self.upward.close.is_some() {
                // It has answered. The backend may end by itself now.
                self.phase = Phase::Ending;
                if self.backend_ended {
                    return Poll::Ready((self.how_it_ended(), true));
                }
                return Poll::Pending;
            }
            let read = buffers::scratch(|scratch| {
                let mut read = ReadBuf::new(scratch);
                let polled = Pin::new(&mut *self.down).poll_read(cx, &mut read);
                let bytes = read.filled();
                if matches!(polled, Poll::Ready(Ok(()))) && !bytes.is_empty() {
                    self.upward.feed(bytes);
                    self.traffic.up += bytes.len() as u64;
                    if !self.backend_ended {
                        let sent = self.to_up.data(cx, self.up, Encoder::Plain, bytes);
                        return Poll::Ready(sent.map(|()| true).or(Err(false)));
                    }
                }
                polled.map(|read| read.map(|()| !bytes.is_empty()).or(Err(true)))
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.client_ended = true,
                Poll::Ready(Err(true)) => {
                    self.up.reset_on_close();
                    return Poll::Ready((Outcome::new("client", "reset"), false));
                }
                Poll::Ready(Err(false)) => return self.backend_lost(cx),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The client has ended: the backend is told, and gets a moment.
    fn after_client(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        if self.backend_ended {
            return Poll::Ready((self.how_it_ended(), true));
        }
        let _gone = Pin::new(&mut *self.up).poll_shutdown(cx);
        self.phase = Phase::Ending;
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        for _ in 0..READS_PER_TURN {
            match self.to_down.poll_flush(cx, self.down) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.up.reset_on_close();
                    return Poll::Ready((Outcome::new("client", "reset"), false));
                }
            }
            if self.backend_ended {
                return self.after_backend(cx);
            }
            let read = buffers::scratch(|scratch| {
                let mut read = ReadBuf::new(scratch);
                let polled = Pin::new(&mut *self.up).poll_read(cx, &mut read);
                let bytes = read.filled();
                if matches!(polled, Poll::Ready(Ok(()))) && !bytes.is_empty() {
                    return Poll::Ready(self.forward(cx, bytes).map(|()| true).or(Err(true)));
                }
                polled.map(|read| read.map(|()| false).or(Err(false)))
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.backend_ended = true,
                Poll::Ready(Err(false)) => return self.backend_lost(cx),
                Poll::Ready(Err(true)) => {
                    self.up.reset_on_close();
                    return Poll::Ready((Outcome::new("client", "reset"), false));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Passes on what the backend says, up to where we say goodbye.
    fn forward(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> std::io::Result<()> {
        let used = match self.phase {
            Phase::Said => return Ok(()),
            Phase::Ending if self.first_close.is_some_and(|(by, _)| by == "proxy") => return Ok(()),
            Phase::Open | Phase::Ending => {
                self.downward.feed(bytes);
                bytes.len()
            }
            Phase::Leaving => self.downward.feed_frame(bytes),
        };
        self.traffic.down += used as u64;
        self.to_down
            .data(cx, self.down, Encoder::Plain, &bytes[..used])?;
        self.note_closes();
        if self.phase == Phase::Leaving && self.downward.is_between_frames() {
            self.leave();
            if self.phase == Phase::Open {
                return self.forward(cx, &bytes[used..]);
            }
        }
        Ok(())
    }

    /// The backend has ended its stream, and all of it is passed on.
    fn after_backend(&mut self, cx: &Context<'_>) -> Poll<Over> {
        let said = self.downward.close.is_some() || self.client_ended;
        match self.phase {
            Phase::Open | Phase::Leaving if !said && self.downward.is_between_frames() => {
                // It went without a word: the client gets one.
                self.say_goodbye();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Open | Phase::Leaving | Phase::Ending => {
                let is_whole = self.downward.is_between_frames();
                Poll::Ready((self.how_it_ended(), is_whole))
            }
            Phase::Said => Poll::Pending,
        }
    }

    /// The backend's connection was reset.
    fn backend_lost(&mut self, cx: &Context<'_>) -> Poll<Over> {
        self.backend_ended = true;
        self.to_up = Out::default();
        match self.phase {
            Phase::Open | Phase::Leaving
                if self.downward.is_between_frames() && self.downward.close.is_none() =>
            {
                self.say_goodbye();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Said => Poll::Pending,
            _ => Poll::Ready((Outcome::new("backend", "reset"), false)),
        }
    }

    /// Nobody did anything for too long.
    fn too_late(&mut self, cx: &mut Context<'_>) -> Over {
        match self.phase {
            Phase::Open | Phase::Leaving => (Outcome::new("proxy", "idle_timeout"), false),
            Phase::Said | Phase::Ending => {
                if !self.backend_ended && self.upward.is_between_frames() {
                    // So that the backend knows.
                    close(self.to_up.buffer(), Direction::FromClient, 1001, "");
                    let _gone = self.to_up.poll_flush(cx, self.up);
                }
                (self.how_it_ended(), true)
            }
        }
    }

    fn note_closes(&mut self) {
        let (client, backend) = (self.upward.close, self.downward.close);
        if self.first_close.is_none() {
            let backend = backend.map(|code| ("backend", code));
            self.first_close = backend.or_else(|| client.map(|code| ("client", code)));
        }
        if self.phase == Phase::Open && client.is_some() && backend.is_some() {
            self.phase = Phase::Ending;
        }
    }

    fn how_it_ended(&self) -> Outcome {
        match self.first_close {
            Some(("proxy", _)) if self.asked == Some(Leaving::Home) => {
                Outcome::new("proxy", "rebalanced")
            }
            Some(("proxy", _)) if self.backend_ended && self.asked.is_none() => {
                Outcome::new("backend", "gone")
            }
            Some((by, _)) => Outcome::new(by, "closed"),
            None if self.client_ended => Outcome::new("client", "gone"),
            None => Outcome::new("backend", "gone"),
        }
    }
}
