//! Redis as the bus: lines by PUBLISH/SUBSCRIBE, history in lists, and people as announcements
//! that fade when nobody repeats them.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    time::Duration,
};

use futures_util::StreamExt as _;
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection, pipe};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval, timeout};

use super::{ANSWER_WITHIN, BusEnds, BusError, Event, Request};
use crate::demo::message::{HISTORY, Line, People};

const CHANNEL: &str = "homescar:demo:bus";
const HISTORY_PREFIX: &str = "homescar:demo:history:";
/// A room in which nobody says anything for a day is forgotten.
const HISTORY_EXPIRES_SECS: i64 = 24 * 3600;
const ANNOUNCE_EVERY: Duration = Duration::from_secs(4);
const FADE_AFTER: Duration = Duration::from_secs(12);
/// Workers whose people are counted; announcements of more are ignored.
const WORKERS_AT_MOST: usize = 1024;

/// A Redis, and who we are to it.
#[derive(Debug)]
pub(crate) struct RedisBus {
    client: Client,
    slot: String,
    generation: u64,
}

/// What goes over the channel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Message {
    Line {
        room: String,
        line: Line,
    },
    People {
        slot: String,
        generation: u64,
        rooms: People,
    },
    /// Somebody is new and does not know who is where.
    Ask,
}

impl RedisBus {
    pub(crate) const fn new(client: Client, slot: String, generation: u64) -> Self {
        Self {
            client,
            slot,
            generation,
        }
    }

    /// One pair of connections (a subscribed one can do nothing else), until either breaks.
    pub(super) async fn connection(
        &self,
        ends: &mut BusEnds,
        stood: &mut bool,
    ) -> Result<Infallible, BusError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        let mut commands = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let subscribing = async {
            let mut pubsub = self.client.get_async_pubsub().await?;
            pubsub.subscribe(CHANNEL).await?;
            Ok::<_, BusError>(pubsub.into_on_message())
        };
        let subscribed = timeout(ANSWER_WITHIN, subscribing).await;
        let mut messages = subscribed.map_err(|_elapsed| BusError::Silent)??;
        let mut census = Census::default();
        let mut announce = interval(ANNOUNCE_EVERY);
        *stood = true;
        ends.tell(Event::Up).await?;
        publish(&mut commands, &Message::Ask).await?;
        loop {
            tokio::select! {
                message = messages.next() => {
                    let payload: String = message.ok_or(BusError::Closed)?.get_payload()?;
                    // Whoever may write to this Redis may also write nonsense; it ends nothing.
                    let Ok(message) = serde_json::from_str(&payload) else { continue };
                    match message {
                        Message::Line { room, line } => {
                            ends.tell(Event::Line { room, line }).await?;
                        }
                        Message::People { slot, generation, rooms } => {
                            let changed = census.announced((slot, generation), rooms, Instant::now());
                            tell(ends, changed).await?;
                        }
                        Message::Ask => self.announce(&mut commands, ends).await?,
                    }
                }
                request = ends.requests.recv() => match request.ok_or(BusError::NoChat)? {
                    Request::Say { room, line } => say(&mut commands, room, line).await?,
                    Request::History { room, answer } => {
                        // Who asked may have given up.
                        drop(answer.send(history(&mut commands, &room).await?));
                    }
                },
                changed = ends.people.changed() => {
                    changed.map_err(|_closed| BusError::NoChat)?;
                    self.announce(&mut commands, ends).await?;
                }
                _ = announce.tick() => {
                    // Also the proof that Redis still answers.
                    self.announce(&mut commands, ends).await?;
                    tell(ends, census.faded(Instant::now())).await?;
                }
            }
        }
    }

    async fn announce(
        &self,
        commands: &mut MultiplexedConnection,
        ends: &mut BusEnds,
    ) -> Result<(), BusError> {
        let message = Message::People {
            slot: self.slot.clone(),
            generation: self.generation,
            rooms: ends.people.borrow_and_update().clone(),
        };
        publish(commands, &message).await
    }
}

async fn tell(ends: &BusEnds, changed: People) -> Result<(), BusError> {
    for (room, people) in changed {
        ends.tell(Event::People { room, people }).await?;
    }
    Ok(())
}

async fn publish(commands: &mut MultiplexedConnection, message: &Message) -> Result<(), BusError> {
    let text = serde_json::to_string(message)?;
    Ok(pipe()
        .publish(CHANNEL, text)
        .ignore()
        .exec_async(commands)
        .await?)
}

/// Remembers and publishes in one transaction, so that whoever asks for the history after having
/// seen a line finds it there.
async fn say(
    commands: &mut MultiplexedConnection,
    room: String,
    line: Line,
) -> Result<(), BusError> {
    let key = format!("{HISTORY_PREFIX}{room}");
    let remembered = serde_json::to_string(&line)?;
    let text = serde_json::to_string(&Message::Line { room, line })?;
    let last = HISTORY.cast_signed() - 1;
    let mut all = pipe();
    all.atomic()
        .lpush(&key, remembered)
        .ltrim(&key, 0, last)
        .expire(&key, HISTORY_EXPIRES_SECS)
        .publish(CHANNEL, text)
        .ignore();
    Ok(all.exec_async(commands).await?)
}

/// What is remembered, oldest first; a line that was sent twice is given once.
async fn history(commands: &mut MultiplexedConnection, room: &str) -> Result<Vec<Line>, BusError> {
    let key = format!("{HISTORY_PREFIX}{room}");
    let last = HISTORY.cast_signed() - 1;
    let (newest_first,): (Vec<String>,) = pipe().lrange(key, 0, last).query_async(commands).await?;
    let mut seen = HashSet::new();
    let lines = newest_first.iter().rev();
    Ok(lines
        .filter_map(|text| serde_json::from_str::<Line>(text).ok())
        .filter(|line| seen.insert(line.id.clone()))
        .collect())
}

/// A worker: its slot and generation.
type WorkerId = (String, u64);

/// Who has how many people where, as far as was announced lately.
#[derive(Debug, Default)]
struct Census {
    workers: HashMap<WorkerId, (People, Instant)>,
}

impl Census {
    /// Takes an announcement, and gives the rooms whose total may have changed. A slot's next
    /// generation replaces the one before (which announces itself again if it still lives).
    fn announced(&mut self, id: WorkerId, rooms: People, now: Instant) -> People {
        if self.workers.len() >= WORKERS_AT_MOST && !self.workers.contains_key(&id) {
            return People::new();
        }
        let mut changed: HashSet<String> = rooms.keys().cloned().collect();
        let replaced = self
            .workers
            .extract_if(|(slot, generation), _| *slot == id.0 && *generation <= id.1);
        for (_, (rooms, _)) in replaced {
            changed.extend(rooms.into_keys());
        }
        self.workers.insert(id, (rooms, now));
        self.totals(changed)
    }

    /// Forgets workers that have been silent, and gives the rooms whose total has changed.
    fn faded(&mut self, now: Instant) -> People {
        let silent = self
            .workers
            .extract_if(|_, (_, heard)| now.saturating_duration_since(*heard) > FADE_AFTER);
        let changed = silent
            .flat_map(|(_, (rooms, _))| rooms.into_keys())
            .collect();
        self.totals(changed)
    }

    fn totals(&self, rooms: HashSet<String>) -> People {
        let total = |room: &String| {
            let workers = self.workers.values();
            workers.filter_map(|(rooms, _)| rooms.get(room)).sum()
        };
        rooms
            .into_iter()
            .map(|room| (total(&room), room))
            .map(|(n, room)| (room, n))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(people: u32) -> People {
        People::from([("lobby".to_owned(), people)])
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_generation_replaces_and_the_silent_fade() {
        let start = Instant::now();
        let mut census = Census::default();
        assert_eq!(
            census.announced(("chat/0".into(), 1), rooms(2), start),
            rooms(2)
        );
        assert_eq!(
            census.announced(("chat/1".into(), 1), rooms(3), start),
            rooms(5)
        );
        let next = census.announced(("chat/0".into(), 2), People::new(), start);
        assert_eq!(
            next,
            rooms(3),
            "the people of generation 1 are not counted twice"
        );
        let later = start + FADE_AFTER + Duration::from_secs(1);
        census.announced(("chat/0".into(), 2), rooms(1), later);
        assert_eq!(census.faded(later), rooms(1), "chat/1 has been silent");
        assert_eq!(census.faded(later), People::new());
    }
}
