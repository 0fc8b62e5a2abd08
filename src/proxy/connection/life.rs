//! A connection as a task: what there is of it at a time, and no more.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::proxy::link::{Link, Pace, Step};

/// The future of a connection.
pub(super) enum Life {
    /// All that comes before a link, or instead of one. Large, and gone by the time there is a link,
    /// which may last, and be idle.
    Begins(Pin<Box<dyn Future<Output = Option<Box<Link>>> + Send>>),
    /// It is relayed.
    Linked(Box<Link>, Pace),
    /// It has ended.
    Over,
}

impl Life {
    pub(super) fn begins(future: impl Future<Output = Option<Box<Link>>> + Send + 'static) -> Self {
        Self::Begins(Box::pin(future))
    }

    pub(super) const fn linked(link: Box<Link>) -> Self {
        Self::Linked(link, Pace::Starts)
    }
}

impl Future for Life {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let life = self.get_mut();
        loop {
            *life = match life {
                Self::Begins(begins) => match ready!(begins.as_mut().poll(cx)) {
                    Some(link) => Self::linked(link),
                    None => Self::Over,
                },
                Self::Linked(link, pace) => match ready!(link.poll(pace, cx)) {
                    Step::End => Self::Over,
                    Step::LinkAgain => match mem::replace(life, Self::Over) {
                        Self::Linked(link, _) => Self::begins(link.link_again()),
                        other => other,
                    },
                },
                Self::Over => return Poll::Ready(()),
            }
        }
    }
}
