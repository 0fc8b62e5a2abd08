//! A connection as a task: what there is of it at a time, and no more.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::proxy::{
    http::{Upgraded, Visit},
    link::{Link, Pace, Step},
    secure::Downstream,
};

/// What a connection is once it has begun. It may last, and be idle, and is small.
pub(super) enum Lasting {
    /// It is relayed.
    Link(Box<Link>),
    /// It brings requests.
    Visit(Pin<Box<dyn Future<Output = Option<Self>> + Send>>),
    /// It is a WebSocket.
    Upgraded(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Lasting {
    pub(super) fn visit<D: Downstream + 'static>(mut visit: Visit<D>) -> Self {
        Self::Visit(Box::pin(async move {
            let websocket = visit.run().await?;
            Some(Self::upgraded(visit.upgraded(*websocket)))
        }))
    }

    pub(super) fn upgraded<D: Downstream + 'static>(upgraded: Upgraded<D>) -> Self {
        Self::Upgraded(Box::pin(upgraded))
    }
}

/// The future of a connection.
pub(super) enum Life {
    /// All that comes before what lasts, or instead of it. Large, and gone by then.
    Begins(Pin<Box<dyn Future<Output = Option<Lasting>> + Send>>),
    /// It is relayed.
    Linked(Box<Link>, Pace),
    /// It brings requests.
    Visits(Pin<Box<dyn Future<Output = Option<Lasting>> + Send>>),
    /// It is a WebSocket.
    Upgraded(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// It has ended.
    Over,
}

impl Life {
    pub(super) fn begins(future: impl Future<Output = Option<Lasting>> + Send + 'static) -> Self {
        Self::Begins(Box::pin(future))
    }

    pub(super) fn lasts(lasting: Lasting) -> Self {
        match lasting {
            Lasting::Link(link) => Self::Linked(link, Pace::Starts),
            Lasting::Visit(visit) => Self::Visits(visit),
            Lasting::Upgraded(upgraded) => Self::Upgraded(upgraded),
        }
    }

    async fn linked_again(link: Box<Link>) -> Option<Lasting> {
        link.link_again().await.map(Lasting::Link)
    }
}

impl Future for Life {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let life = self.get_mut();
        loop {
            *life = match life {
                Self::Begins(begins) => match ready!(begins.as_mut().poll(cx)) {
                    Some(lasting) => Self::lasts(lasting),
                    None => Self::Over,
                },
                Self::Linked(link, pace) => match ready!(link.poll(pace, cx)) {
                    Step::End => Self::Over,
                    Step::LinkAgain => match mem::replace(life, Self::Over) {
                        Self::Linked(link, _) => Self::begins(Self::linked_again(link)),
                        other => other,
                    },
                },
                Self::Visits(visit) => match ready!(visit.as_mut().poll(cx)) {
                    Some(lasting) => Self::lasts(lasting),
                    None => Self::Over,
                },
                Self::Upgraded(upgraded) => {
                    ready!(upgraded.as_mut().poll(cx));
                    Self::Over
                }
                Self::Over => return Poll::Ready(()),
            }
        }
    }
}
