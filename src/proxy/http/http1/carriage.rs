//! One request on its way: finds its home, and carries it and its response.

use std::{mem, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Next, saved::Ongoing, write_refusal};
use crate::proxy::{
    carried::Carried,
    connect::Search,
    connection::{Connection, Open},
    http::{
        answer::Answer,
        backend::Backend,
        buffers,
        client::Client,
        dispatch::Destination,
        exchange::{End, Exchange, Upload},
        head::Version,
        out::Out,
        record::{Outcome, RequestRecord},
        request::Terms,
        websocket::{Tunnel, WebSocket},
    },
    record::Traffic,
    registry::{self, Passage},
    relay::Side as _,
    secure::Downstream,
};

/// One request on its way, and what it needs.
pub(super) struct Carriage<'a, D: Downstream> {
    pub(super) client: &'a mut Client<Open<D>>,
    pub(super) connection: &'a Connection,
    pub(super) record: RequestRecord,
    pub(super) terms: Terms,
    pub(super) upload: Upload,
}

/// One attempt with one backend.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) backend: Backend,
    pub(super) answer: Answer,
    /// The backend's connection carried a request before.
    pub(super) is_reused: bool,
    /// The request may be sent once more.
    pub(super) may_retry: bool,
    /// Until when something has to happen, where it has begun in an earlier image of the program.
    pub(super) until: Option<Instant>,
}

/// What comes of an attempt.
enum Attempt {
    Over(Next),
    /// The request can be sent once more.
    Again(Out, bool),
    /// Both sides speak another protocol now.
    Switched(Box<Backend>),
}

impl<'a, D: Downstream> Carriage<'a, D> {
    /// Finds the request's home, and carries request and response.
    pub(super) fn start(mut self, destination: Destination, out: Out) -> BoxFuture<'a, Next> {
        let may_retry = self.terms.is_idempotent && self.terms.framing.is_empty();
        let is_plain = self.terms.websocket.is_none();
        Box::pin(async move {
            let mut search = destination.search(self.connection.record.listener().holds, is_plain);
            match self.run(&destination, &mut search, (out, may_retry)).await {
                Ok(next) => next,
                Err(backend) => self.becomes_tunnel(&destination, *backend),
            }
        })
    }

    /// Goes on where an earlier image of the program has stood still.
    pub(super) fn go_on(
        mut self,
        destination: Destination,
        mut trial: Trial,
    ) -> BoxFuture<'a, Next> {
        Box::pin(async move {
            let mut search = destination.search(self.connection.record.listener().holds, false);
            let end = self.attempt(&destination, &mut trial).await;
            let switched = match self.after(&destination, trial, end) {
                Attempt::Over(next) => return next,
                Attempt::Switched(backend) => Err(backend),
                Attempt::Again(out, is_reused) => match self.fails(&mut search, is_reused) {
                    Some(next) => return next,
                    None => self.run(&destination, &mut search, (out, false)).await,
                },
            };
            match switched {
                Ok(next) => next,
                Err(backend) => self.becomes_tunnel(&destination, *backend),
            }
        })
    }

    /// Gives the backend, when both sides speak another protocol now.
    async fn run(
        &mut self,
        destination: &Destination,
        search: &mut Search<'_>,
        (mut out, mut may_retry): (Out, bool),
    ) -> Result<Next, Box<Backend>> {
        loop {
            let ticket = &self.connection.ticket;
            let connected = tokio::select! {
                biased;
                connected = search.connect(&mut self.record.journey) => connected,
                () = async {
                    ticket.is_busy(Passage::after(&self.client.stream));
                    self.client.gone().await;
                } => return Ok(self.end(Outcome::CLIENT_GONE)),
            };
            let connected = match connected {
                Ok(connected) => connected,
                Err(reason) => {
                    let (status, outcome) = Outcome::unreached(reason);
                    return Ok(self.answer(status, outcome));
                }
            };
            let home = self.record.journey.home.as_ref();
            let lesson = home.map(|home| destination.lesson(home));
            let mut trial = Trial {
                backend: Backend::new(connected.upstream, mem::take(&mut out)),
                answer: Answer::new(&self.terms, lesson.unwrap_or_default()),
                is_reused: connected.is_reused,
                may_retry,
                until: None,
            };
            let end = self.attempt(destination, &mut trial).await;
            match self.after(destination, trial, end) {
                Attempt::Over(next) => return Ok(next),
                Attempt::Switched(backend) => return Err(backend),
                Attempt::Again(again, is_reused) => {
                    if let Some(next) = self.fails(search, is_reused) {
                        return Ok(next);
                    }
                    out = again;
                }
            }
            may_retry = false;
        }
    }

    /// A backend failed this request, which is to be sent once more; gives what comes if it cannot be.
    fn fails(&mut self, search: &mut Search<'_>, is_reused: bool) -> Option<Next> {
        search.reuse(false);
        self.connection.ticket.goes_nowhere();
        let home = self.record.journey.home.take().filter(|_| !is_reused)?;
        let noted = search.note_failure(Arc::clone(&home.slot().name));
        noted
            .is_err()
            .then(|| self.answer(502, Outcome::new("backend", "gone")))
    }

    /// Gives how it ended; nothing when there is no backend.
    async fn attempt(&mut self, destination: &Destination, trial: &mut Trial) -> Option<End> {
        let home = self.record.journey.home.as_ref()?;
        self.connection.ticket.goes_to(home, destination.key());
        let extra = destination.extra(&self.record.id, home);
        let mut exchange = Exchange {
            client: self.client,
            backend: &mut trial.backend,
            terms: &self.terms,
            extra: &extra,
            upload: &mut self.upload,
            answer: &mut trial.answer,
            ticket: &self.connection.ticket,
            timeouts: &self.connection.settings.config.timeouts,
            response: destination.response_timeout(),
            until: trial.until,
        };
        loop {
            if let Some(end) = exchange.run().await {
                return Some(end);
            }
            let attempt = (trial.is_reused, trial.may_retry);
            let ongoing = Ongoing::of(&self.record, destination, &exchange, attempt);
            registry::offer(ongoing.carried(&self.connection.record, &exchange));
            registry::thawed().await;
            // The upgrade did not come.
            Carried::stay([
                exchange.client.stream.descriptor(),
                exchange.backend.stream.descriptor(),
            ]);
        }
    }

    /// What comes of an attempt that has ended so.
    fn after(&mut self, destination: &Destination, trial: Trial, end: Option<End>) -> Attempt {
        let Trial {
            mut backend,
            answer,
            is_reused,
            may_retry,
            ..
        } = trial;
        let (Some(home), Some(end)) = (&self.record.journey.home, end) else {
            return Attempt::Over(match answer.status {
                0 => self.answer(503, Outcome::new("proxy", "no_backend")),
                _ => self.end(Outcome::CUT),
            });
        };
        self.record.status = answer.status;
        self.record.traffic = Traffic {
            up: self.upload.bytes,
            down: answer.bytes,
        };
        if end.is_failure(is_reused) || destination.is_failure(answer.status, &self.terms) {
            home.failed();
        }
        match end {
            End::BackendGone if may_retry && backend.is_silent() => {
                backend.out.rewind();
                Attempt::Again(backend.out, is_reused)
            }
            End::Done => {
                self.record.outcome = Outcome::DONE;
                let is_whole = self.upload.is_done();
                if let Some(stream) = backend.into_reusable().filter(|_| is_whole) {
                    home.keep(stream);
                }
                Attempt::Over(match (is_whole, answer.keep_alive) {
                    (true, true) => Next::Request,
                    (true, false) => Next::Close,
                    (false, _) => Next::Linger,
                })
            }
            End::Switched => Attempt::Switched(Box::new(backend)),
            end => Attempt::Over(self.conclude(end)),
        }
    }

    /// The connection has become a WebSocket: leaves behind all that it does not need.
    fn becomes_tunnel(self, destination: &Destination, mut backend: Backend) -> Next {
        let client = self.client;
        let mut from_backend = backend.take_rest();
        let to_down = mem::take(&mut client.out);
        let tunnel = Tunnel::new(to_down, &client.input, &from_backend);
        for early in [&mut client.input, &mut from_backend] {
            early.clear();
            buffers::release(early);
        }
        Next::WebSocket(Box::new(WebSocket::new(
            self.record,
            backend.into_stream(),
            tunnel,
            destination,
        )))
    }

    fn conclude(&mut self, end: End) -> Next {
        match end {
            End::Done | End::Switched => self.end(Outcome::DONE),
            End::ClientGone => self.end(Outcome::CLIENT_GONE),
            End::Refused(refusal) if self.record.status == 0 => {
                self.record.refused(refusal);
                write_refusal(self.client, &self.record, self.terms.is_head, false);
                Next::Linger
            }
            End::Refused(refusal) => self.end(Outcome::new("client", refusal.why)),
            End::BackendGone => self.answer(502, Outcome::new("backend", "gone")),
            End::NotHttp => self.answer(502, Outcome::new("backend", "not_http")),
            End::ResponseTimeout => self.answer(504, Outcome::new("backend", "response_timeout")),
            End::SlowClient => self.end(Outcome::new("client", "slow")),
            End::Idle => self.end(Outcome::new("proxy", "idle_timeout")),
            End::Broken => self.end(Outcome::new("backend", "broken")),
        }
    }

    /// Ends the connection too. Nobody shall take a response that broke off for one that is
    /// complete, so it is reset.
    fn end(&mut self, outcome: Outcome) -> Next {
        self.record.outcome = outcome;
        self.client.stream.reset_on_close();
        Next::Gone
    }

    /// Answers in place of the backend.
    fn answer(&mut self, status: u16, outcome: Outcome) -> Next {
        self.record.status = status;
        self.record.outcome = outcome;
        let keep_alive =
            self.terms.keep_alive && self.terms.version == Version::Http11 && self.upload.is_done();
        write_refusal(self.client, &self.record, self.terms.is_head, keep_alive);
        match keep_alive {
            true => Next::Request,
            false => Next::Linger,
        }
    }
}
