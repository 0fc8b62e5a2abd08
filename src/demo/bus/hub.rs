//! The worker's end of the hub.

use std::{collections::HashMap, convert::Infallible, path::PathBuf};

use futures_util::StreamExt as _;
use serde::Serialize;
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::oneshot,
    time::timeout,
};
use tokio_util::codec::FramedRead;

use super::{ANSWER_WITHIN, BusEnds, BusError, Event, Request};
use crate::demo::{
    hub_wire::{FromHub, ToHub, encode, from_hub_codec},
    message::Line,
};

/// Questions that may wait for their answer at one time; past it the oldest are given up.
const ASKED_AT_MOST: usize = 1024;

/// The hub that listens at a path.
#[derive(Debug)]
pub(crate) struct HubBus {
    path: PathBuf,
}

impl HubBus {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// One connection, until it breaks.
    pub(super) async fn connection(
        &self,
        ends: &mut BusEnds,
        stood: &mut bool,
    ) -> Result<Infallible, BusError> {
        let connected = timeout(ANSWER_WITHIN, UnixStream::connect(&self.path)).await;
        let stream = connected.map_err(|_elapsed| BusError::Silent)??;
        let (read, mut write) = stream.into_split();
        let mut lines = FramedRead::new(read, from_hub_codec());
        let mut asked = Asked::default();
        *stood = true;
        ends.tell(Event::Up).await?;
        ends.people.mark_changed();
        loop {
            tokio::select! {
                line = lines.next() => {
                    let line = line.ok_or(BusError::Closed)??;
                    match serde_json::from_str(&line)? {
                        FromHub::Line { room, line } => ends.tell(Event::Line { room, line }).await?,
                        FromHub::People { room, people } => {
                            ends.tell(Event::People { room, people }).await?;
                        }
                        FromHub::History { ticket, lines } => asked.answer(ticket, lines),
                    }
                }
                request = ends.requests.recv() => {
                    let message = match request.ok_or(BusError::NoChat)? {
                        Request::Say { room, line } => ToHub::Say { room, line },
                        Request::History { room, answer } => ToHub::History {
                            room,
                            ticket: asked.ask(answer),
                        },
                    };
                    send(&mut write, &message).await?;
                }
                changed = ends.people.changed() => {
                    changed.map_err(|_closed| BusError::NoChat)?;
                    let rooms = ends.people.borrow_and_update().clone();
                    send(&mut write, &ToHub::People { rooms }).await?;
                }
            }
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &impl Serialize) -> Result<(), BusError> {
    let line = encode(message);
    let written = timeout(ANSWER_WITHIN, write.write_all(line.as_bytes())).await;
    Ok(written.map_err(|_elapsed| BusError::Silent)??)
}

/// Who waits for which history.
#[derive(Debug, Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Vec<Line>>>,
}

impl Asked {
    fn ask(&mut self, answer: oneshot::Sender<Vec<Line>>) -> u64 {
        if self.waiting.len() >= ASKED_AT_MOST {
            self.waiting.retain(|_, answer| !answer.is_closed());
        }
        if self.waiting.len() >= ASKED_AT_MOST {
            self.waiting.clear();
        }
        self.last += 1;
        self.waiting.insert(self.last, answer);
        self.last
    }

    fn answer(&mut self, ticket: u64, lines: Vec<Line>) {
        if let Some(answer) = self.waiting.remove(&ticket) {
            // Who asked may have given up.
            drop(answer.send(lines));
        }
    }
}
