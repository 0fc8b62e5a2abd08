//! A client's connection between two of its moments, for the next image of the program: idle, or with
//! a request on its way. What makes no sense is not read.

use std::{io, sync::Arc};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{
    Next, Visit,
    carriage::{Carriage, Trial},
};
use crate::{
    handover::{Moment, text},
    proxy::{
        Listener, Settings,
        carried::Carried,
        connect::Upstream,
        connection::{Connection, Open},
        http::{
            answer::{Answer, SavedAnswer},
            backend::{Backend, SavedBackend},
            client::Client,
            dispatch::{Destination, SavedDestination},
            exchange::{Exchange, Upload},
            out::Out,
            record::{RequestRecord, SavedRequest},
            request::Terms,
        },
        record::ConnectionRecord,
        relay::Side,
        secure::Downstream,
    },
};

/// A [`Visit`] without its connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::proxy) struct SavedVisit {
    #[serde(with = "text")]
    input: Vec<u8>,
    #[serde(with = "text")]
    out: Vec<u8>,
    heads: u32,
    ongoing: Option<Ongoing>,
}

/// A request on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ongoing {
    request: SavedRequest,
    destination: SavedDestination,
    terms: Terms,
    upload: Upload,
    backend: SavedBackend,
    answer: SavedAnswer,
    is_reused: bool,
    may_retry: bool,
    until: Option<Moment>,
}

/// A request on its way that an earlier image of the program has begun.
#[derive(Debug)]
pub(super) struct Resumed {
    record: RequestRecord,
    destination: Destination,
    terms: Terms,
    upload: Upload,
    trial: Trial,
}

impl Ongoing {
    /// What the next image has to know of a request that stands still; of this attempt, whether its
    /// backend's connection carried a request before, and whether it may be sent once more.
    pub(super) fn of<S>(
        record: &RequestRecord,
        destination: &Destination,
        exchange: &Exchange<'_, S>,
        (is_reused, may_retry): (bool, bool),
    ) -> Self {
        Self {
            request: record.saved(),
            destination: destination.saved(),
            terms: exchange.terms.clone(),
            upload: exchange.upload.clone(),
            backend: exchange.backend.saved(),
            answer: exchange.answer.saved(),
            is_reused,
            may_retry,
            until: exchange.until.map(Moment::of),
        }
    }

    /// The connection that brought it.
    pub(super) fn carried<S: Side>(
        self,
        record: &ConnectionRecord,
        exchange: &Exchange<'_, S>,
    ) -> io::Result<Carried> {
        let visit = SavedVisit::of(exchange.client, Some(self));
        let backend = Some(&exchange.backend.stream);
        Carried::visit(record, &exchange.client.stream, backend, visit)
    }

    /// The same again; nothing when its cluster is not there.
    fn resumed(
        self,
        upstream: Upstream,
        listener: &Arc<Listener>,
        settings: &Settings,
    ) -> Option<Resumed> {
        let destination = Destination::resumed(&self.destination, settings)?;
        let snapshot = destination.cluster().load();
        let record = RequestRecord::resumed(self.request, Arc::clone(listener), &snapshot, false);
        let trial = Trial {
            backend: Backend::resumed(self.backend, upstream),
            answer: Answer::resumed(self.answer, destination.cluster()),
            is_reused: self.is_reused,
            may_retry: self.may_retry,
            until: self.until.map(Moment::instant),
        };
        Some(Resumed {
            record,
            destination,
            terms: self.terms,
            upload: self.upload,
            trial,
        })
    }
}

impl SavedVisit {
    fn of<S>(client: &Client<S>, ongoing: Option<Ongoing>) -> Self {
        Self {
            input: client.input.clone(),
            out: client.out.waiting().to_vec(),
            heads: client.heads,
            ongoing,
        }
    }

    /// What was begun on it, and the rest; nothing when its cluster is not there.
    pub(in crate::proxy) fn resume(
        self,
        upstream: Option<Upstream>,
        listener: &Arc<Listener>,
        settings: &Settings,
    ) -> Option<ResumedVisit> {
        let request = match (self.ongoing, upstream) {
            (None, _) => None,
            (Some(ongoing), Some(upstream)) => {
                Some(Box::new(ongoing.resumed(upstream, listener, settings)?))
            }
            (Some(_), None) => return None,
        };
        Some(ResumedVisit {
            input: self.input,
            out: self.out,
            heads: self.heads,
            request,
        })
    }
}

/// A [`Visit`] in this image that began in an earlier one, without its client's connection.
#[derive(Debug)]
pub(in crate::proxy) struct ResumedVisit {
    input: Vec<u8>,
    out: Vec<u8>,
    heads: u32,
    request: Option<Box<Resumed>>,
}

impl Visit<TcpStream> {
    /// One that began in an earlier image of the program.
    pub(in crate::proxy) fn resumed(
        client: Open<TcpStream>,
        resumed: ResumedVisit,
        connection: Connection,
    ) -> Self {
        let mut visit = Self::new(client, resumed.input, connection);
        visit.client.out = Out::holding(resumed.out);
        visit.client.heads = resumed.heads;
        visit.begun = resumed.request;
        visit
    }
}

impl<D: Downstream> Visit<D> {
    /// Between two requests.
    pub(super) fn carried(&self) -> io::Result<Carried> {
        let visit = SavedVisit::of(&self.client, None);
        let record = &self.connection.record;
        Carried::visit(record, &self.client.stream, None, visit)
    }

    /// Goes on with what an earlier image has begun.
    pub(super) fn go_on(&mut self, resumed: Resumed) -> BoxFuture<'_, Next> {
        let carriage = Carriage {
            client: &mut self.client,
            connection: &self.connection,
            record: resumed.record,
            terms: resumed.terms,
            upload: resumed.upload,
        };
        carriage.go_on(resumed.destination, resumed.trial)
    }
}
