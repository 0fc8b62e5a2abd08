//! A response on its way to an HTTP/1 client.

use std::{io, task::Context};

use serde::{Deserialize, Serialize};

use super::{
    super::{registry::Ticket, relay::Side},
    backend::Receiver,
    body::{Encoder, Framing},
    dispatch::Extra,
    head::Version,
    lesson::{Lesson, SavedLesson},
    out::Out,
    request::Terms,
    response::Response,
};
use crate::cluster::Cluster;

/// The response on its way.
#[derive(Debug)]
pub(super) struct Answer {
    lesson: Lesson,
    /// The connection stays open for another request, as far as is known.
    pub(super) keep_alive: bool,
    pub(super) status: u16,
    encoder: Encoder,
    pub(super) bytes: u64,
}

/// An [`Answer`] for the next image of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedAnswer {
    lesson: Option<SavedLesson>,
    keep_alive: bool,
    status: u16,
    encoder: Encoder,
    bytes: u64,
}

impl Answer {
    pub(super) const fn new(terms: &Terms, lesson: Lesson) -> Self {
        Self {
            lesson,
            keep_alive: terms.keep_alive,
            status: 0,
            encoder: Encoder::Plain,
            bytes: 0,
        }
    }

    /// What the next image has to know of it.
    pub(super) fn saved(&self) -> SavedAnswer {
        SavedAnswer {
            lesson: self.lesson.saved(),
            keep_alive: self.keep_alive,
            status: self.status,
            encoder: self.encoder,
            bytes: self.bytes,
        }
    }

    /// The same again.
    pub(super) fn resumed(saved: SavedAnswer, cluster: &Cluster) -> Self {
        Self {
            lesson: Lesson::resumed(saved.lesson, cluster),
            keep_alive: saved.keep_alive,
            status: saved.status,
            encoder: saved.encoder,
            bytes: saved.bytes,
        }
    }
}

/// The client's side of a response.
pub(super) struct Download<'a, S> {
    pub(super) stream: &'a mut S,
    pub(super) out: &'a mut Out,
    pub(super) answer: &'a mut Answer,
    pub(super) terms: &'a Terms,
    pub(super) extra: &'a Extra<'a>,
    /// Once it is asked to go, the connection does not stay.
    pub(super) ticket: &'a Ticket,
    pub(super) upload_done: bool,
    pub(super) lost: Option<io::Error>,
}

impl<S: Side> Receiver for Download<'_, S> {
    fn head(&mut self, response: &Response<'_>) {
        let version = self.terms.version;
        let out = self.out.buffer();
        if response.is_interim() {
            let wanted = response.head.status != 100 || self.terms.expects_continue;
            if version == Version::Http11 && wanted {
                response.write_head(out, Framing::None);
                out.extend_from_slice(b"\r\n");
            }
            return;
        }
        let framing = response.framing_for(version);
        let answer = &mut *self.answer;
        answer.status = response.head.status;
        answer.lesson.head(response);
        answer.encoder = Encoder::new(framing);
        let may_stay = self.upload_done && !self.ticket.is_asked();
        answer.keep_alive &= may_stay && framing != Framing::UntilClose;
        response.write_head(out, framing);
        self.extra.write(out, response);
        out.extend_from_slice(match (answer.status, answer.keep_alive, version) {
            (101, ..) => b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            (_, false, _) => b"Connection: close\r\n\r\n",
            (_, true, Version::Http10) => b"Connection: keep-alive\r\n\r\n",
            (_, true, _) => b"\r\n",
        });
    }

    fn data(&mut self, cx: &mut Context<'_>, data: &[u8]) {
        self.answer.bytes += data.len() as u64;
        self.answer.lesson.data(data);
        if let Err(error) = self.out.data(cx, self.stream, self.answer.encoder, data) {
            self.lost = Some(error);
        }
    }

    fn end(&mut self, trailers: &[u8]) {
        self.answer.encoder.end(self.out.buffer(), trailers);
    }
}
