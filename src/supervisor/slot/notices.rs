//! What a slot's task makes of what a Node worker says on its channel.

use super::SlotTask;
use crate::{
    config::ReadyBy,
    supervisor::{
        contract::Room,
        generation::{Ended, Generation},
        node::{Channel, Notice},
        notify::Message,
        report,
        worker::Event,
    },
};

impl SlotTask {
    /// What a Node worker made known on its channel.
    pub(super) async fn take_notice(&mut self, notices: Vec<Notice>) -> Vec<Event> {
        let Some(generation) = &mut self.running else {
            return Vec::new();
        };
        let mut events = Vec::new();
        for notice in notices {
            match notice {
                Notice::Ready => events.push(Event::Notified(Message::Ready)),
                Notice::Listening => {
                    let port = generation.channel.as_ref().and_then(Channel::routed_port);
                    self.room.knows(port);
                    if generation.workers.ready != ReadyBy::Notify {
                        events.push(Event::Notified(Message::Ready));
                    }
                }
                Notice::Leaving => events.push(Event::Notified(Message::Stopping)),
                Notice::Lag(lag) => generation.count_lag(lag),
                Notice::Routed(socket, address) => {
                    if generation.moves_to(socket, address) {
                        self.cluster.report(generation.started()).await;
                        if generation.said_ready {
                            // It was, and connections wait for its other server.
                            let ready = generation.ready();
                            self.cluster.report(ready).await;
                        }
                    }
                }
                Notice::Misfit(why) => {
                    misfit(&mut self.room, &generation.workers.command, why);
                    events.push(Event::Misfit);
                }
            }
        }
        events
    }

    /// Whether the next generation should be under another contract than this one was.
    pub(super) fn learn_from(&mut self, ended: &Ended, command: &[String], was_better: bool) {
        if ended.misfit {
            let why = "it has ended without a word on the channel";
            misfit(&mut self.room, command, why);
        } else if !was_better {
            // It was no better under contract `port`.
            self.room.is_perhaps_not_misfit();
        }
    }
}

/// A generation was not ready in time.
pub(super) fn was_not_ready(room: &mut Room, generation: &Generation) {
    room.knows(None);
    let channel = generation.channel.as_ref();
    if channel.is_some_and(|channel| !channel.is_online()) {
        let command = &generation.workers.command;
        misfit(room, command, "it has said nothing on the channel");
    }
}

/// The slot's next generation is going to be under contract `port`.
fn misfit(room: &mut Room, command: &[String], why: &str) {
    if room.is_misfit(command) {
        report::misfit(&room.slot(), why);
    }
}

pub(super) async fn noticed(channel: Option<&mut Channel>) -> Vec<Notice> {
    match channel {
        Some(channel) => channel.next().await,
        None => std::future::pending().await,
    }
}
