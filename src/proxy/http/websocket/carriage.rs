//! Moves what can be moved of a WebSocket, and finds the moment for a goodbye.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{io::ReadBuf, task::coop::has_budget_remaining, time::sleep_until};

use super::{
    backlog::Backlog,
    frame::{Direction, close},
    tunnel::{Conduct, Party, Phase, Tunnel},
};
use crate::{
    config::Drain,
    proxy::{
        http::{buffers, record::Outcome},
        registry::Leaving,
        relay::Side,
    },
};

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 16;
/// What a client is told that is sent to its own slot.
const GOING_HOME: &str = "rebalance";

/// A WebSocket and its two sides.
pub(super) struct Carriage<'a, D, U> {
    pub(super) down: &'a mut D,
    pub(super) up: &'a mut U,
    pub(super) tunnel: &'a mut Tunnel,
    pub(super) conduct: Conduct<'a>,
}

/// How it is over, and whether in an orderly way.
pub(super) type Over = (Outcome, bool);

impl<D: Side, U: Side> Carriage<'_, D, U> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        if self.tunnel.goes.is_some() {
            self.poll_goes(cx);
        }
        let before = (self.tunnel.traffic, self.tunnel.phase);
        self.leave();
        if let Poll::Ready(over) = self.poll_down(cx) {
            return Poll::Ready(over);
        }
        if let Poll::Ready(over) = self.poll_up(cx) {
            return Poll::Ready(over);
        }
        self.note_closes();
        if before.1 != self.tunnel.phase {
            self.tunnel.begins_phase();
        }
        let has_moved = before != (self.tunnel.traffic, self.tunnel.phase);
        let look = self.conduct.ticket.look(has_moved);
        if look.is_asked && self.is_asked(cx) {
            return self.poll(cx);
        }
        let is_too_late = match &mut self.tunnel.timer {
            Some(timer) => timer.as_mut().poll(cx).is_ready(),
            None => look.is_idle && self.tunnel.phase.lasts(),
        };
        match is_too_late {
            true => Poll::Ready(self.too_late(cx)),
            false => Poll::Pending,
        }
    }

    /// It was asked to go, at some time. True when that is only known now, and has come.
    fn is_asked(&mut self, cx: &mut Context<'_>) -> bool {
        if self.tunnel.asked.is_none()
            && self.tunnel.goes.is_none()
            && let Some((at, _)) = self.conduct.ticket.said()
        {
            self.tunnel.goes = Some(Box::pin(sleep_until(at)));
            self.poll_goes(cx);
            return self.tunnel.asked.is_some();
        }
        false
    }

    /// Waits for that time.
    fn poll_goes(&mut self, cx: &mut Context<'_>) {
        let goes = self.tunnel.goes.as_mut();
        if goes.is_none_or(|goes| goes.as_mut().poll(cx).is_pending()) {
            return;
        }
        self.tunnel.goes = None;
        self.tunnel.asked = self.conduct.ticket.said().map(|(_, why)| why);
        if self.tunnel.phase == Phase::Open {
            self.tunnel.phase = Phase::Leaving;
        }
    }

    /// Says goodbye to the client, if that is due and no frame is in the way.
    fn leave(&mut self) {
        if self.tunnel.phase != Phase::Leaving || !self.tunnel.downward.is_between_frames() {
            return;
        }
        if self.tunnel.downward.close.is_some() {
            // The backend has said it already.
            self.tunnel.phase = Phase::Open;
            return;
        }
        self.say_goodbye();
    }

    fn say_goodbye(&mut self) {
        let Drain {
            close_code,
            close_reason,
            ..
        } = self.conduct.drain;
        let reason = match self.tunnel.asked {
            Some(Leaving::Home) => GOING_HOME,
            Some(Leaving::Drain) | None => close_reason,
        };
        let mut frame = Vec::new();
        close(&mut frame, Direction::FromBackend, *close_code, reason);
        self.tunnel.to_down.append(&frame);
        self.tunnel
            .first_close
            .get_or_insert((Party::Proxy, Some(*close_code)));
        self.tunnel.phase = Phase::Said;
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        for _ in 0..READS_PER_TURN {
            match self.tunnel.to_up.poll_flush(cx, self.up) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.backend_lost(cx),
            }
            if self.tunnel.client_ended {
                return self.after_client(cx);
            }
            let closing = matches!(self.tunnel.phase, Phase::Said | Phase::Ending);
            if closing && self.tunnel.upward.close.is_some() {
                // It has answered. The backend may end by itself now.
                self.tunnel.phase = Phase::Ending;
                if self.tunnel.backend_ended {
                    return Poll::Ready((self.how_it_ended(), true));
                }
                return Poll::Pending;
            }
            if self.tunnel.client_waits && !self.down.may_read() {
                return Poll::Pending;
            }
            let read = buffers::scratch(|scratch| {
                let mut read = ReadBuf::new(scratch);
                let polled = Pin::new(&mut *self.down).poll_read(cx, &mut read);
                let bytes = read.filled();
                if matches!(polled, Poll::Ready(Ok(()))) && !bytes.is_empty() {
                    self.tunnel.upward.feed(bytes);
                    self.tunnel.traffic.up += bytes.len() as u64;
                    if !self.tunnel.backend_ended {
                        let sent = self.tunnel.to_up.data(cx, self.up, bytes);
                        return Poll::Ready(sent.map(|()| true).or(Err(false)));
                    }
                }
                polled.map(|read| read.map(|()| !bytes.is_empty()).or(Err(true)))
            });
            self.tunnel.client_waits = waits(&read);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.tunnel.client_ended = true,
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
        if self.tunnel.backend_ended {
            return Poll::Ready((self.how_it_ended(), true));
        }
        let _gone = Pin::new(&mut *self.up).poll_shutdown(cx);
        self.tunnel.phase = Phase::Ending;
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        for _ in 0..READS_PER_TURN {
            match self.tunnel.to_down.poll_flush(cx, self.down) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.up.reset_on_close();
                    return Poll::Ready((Outcome::new("client", "reset"), false));
                }
            }
            if self.tunnel.backend_ended {
                return self.after_backend(cx);
            }
            if self.tunnel.backend_waits && !self.up.may_read() {
                return Poll::Pending;
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
            self.tunnel.backend_waits = waits(&read);
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.tunnel.backend_ended = true,
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
        let used = match self.tunnel.phase {
            Phase::Said => return Ok(()),
            Phase::Ending
                if self
                    .tunnel
                    .first_close
                    .is_some_and(|(by, _)| by == Party::Proxy) =>
            {
                return Ok(());
            }
            Phase::Open | Phase::Ending => {
                self.tunnel.downward.feed(bytes);
                bytes.len()
            }
            Phase::Leaving => self.tunnel.downward.feed_frame(bytes),
        };
        self.tunnel.traffic.down += used as u64;
        self.tunnel.to_down.data(cx, self.down, &bytes[..used])?;
        self.note_closes();
        if self.tunnel.phase == Phase::Leaving && self.tunnel.downward.is_between_frames() {
            self.leave();
            if self.tunnel.phase == Phase::Open {
                return self.forward(cx, &bytes[used..]);
            }
        }
        Ok(())
    }

    /// The backend has ended its stream, and all of it is passed on.
    fn after_backend(&mut self, cx: &Context<'_>) -> Poll<Over> {
        let said = self.tunnel.downward.close.is_some() || self.tunnel.client_ended;
        match self.tunnel.phase {
            Phase::Open | Phase::Leaving if !said && self.tunnel.downward.is_between_frames() => {
                // It went without a word: the client gets one.
                self.say_goodbye();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Open | Phase::Leaving | Phase::Ending => {
                let is_whole = self.tunnel.downward.is_between_frames();
                Poll::Ready((self.how_it_ended(), is_whole))
            }
            Phase::Said => Poll::Pending,
        }
    }

    /// The backend's connection was reset.
    fn backend_lost(&mut self, cx: &Context<'_>) -> Poll<Over> {
        self.tunnel.backend_ended = true;
        self.tunnel.to_up = Backlog::default();
        match self.tunnel.phase {
            Phase::Open | Phase::Leaving
                if self.tunnel.downward.is_between_frames()
                    && self.tunnel.downward.close.is_none() =>
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
        match self.tunnel.phase {
            Phase::Open | Phase::Leaving => (Outcome::new("proxy", "idle_timeout"), false),
            Phase::Said | Phase::Ending => {
                if !self.tunnel.backend_ended && self.tunnel.upward.is_between_frames() {
                    // So that the backend knows.
                    let mut frame = Vec::new();
                    close(&mut frame, Direction::FromClient, 1001, "");
                    self.tunnel.to_up.append(&frame);
                    let _gone = self.tunnel.to_up.poll_flush(cx, self.up);
                }
                (self.how_it_ended(), true)
            }
        }
    }

    fn note_closes(&mut self) {
        let (client, backend) = (self.tunnel.upward.close, self.tunnel.downward.close);
        if self.tunnel.first_close.is_none() {
            let backend = backend.map(|code| (Party::Backend, code));
            self.tunnel.first_close = backend.or_else(|| client.map(|code| (Party::Client, code)));
        }
        if self.tunnel.phase == Phase::Open && client.is_some() && backend.is_some() {
            self.tunnel.phase = Phase::Ending;
        }
    }

    fn how_it_ended(&self) -> Outcome {
        let asked = self.tunnel.asked;
        match self.tunnel.first_close.map(|(by, _)| by) {
            Some(Party::Proxy) if asked == Some(Leaving::Home) => {
                Outcome::new("proxy", "rebalanced")
            }
            Some(Party::Proxy) if self.tunnel.backend_ended && asked.is_none() => {
                Outcome::new("backend", "gone")
            }
            Some(by) => Outcome::new(by.as_str(), "closed"),
            None if self.tunnel.client_ended => Outcome::new("client", "gone"),
            None => Outcome::new("backend", "gone"),
        }
    }
}

/// Whether this task is the one that is woken when there is more to read. It is not where it had to wait
/// because other tasks had to get their turn.
fn waits<T>(read: &Poll<T>) -> bool {
    read.is_pending() && has_budget_remaining()
}
