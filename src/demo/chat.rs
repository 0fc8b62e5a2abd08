//! The rooms of this worker: who is in them, and their tie to the other workers.
//!
//! A line is never delivered directly. It goes to the bus and comes back to every worker, this one
//! too, so that all see the same lines in the same order. After the bus was away, every room is
//! given the whole history again; the pages know by its id what they have already.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    bus::{ChatEnds, Event, Request},
    message::{Line, People, Refusal, ToPage},
};

/// For the history of a room to arrive.
const HISTORY_WITHIN: Duration = Duration::from_secs(3);

/// One socket's way out: a bounded queue, and the way to end a socket that does not read.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    /// What the socket is to send.
    pub(super) queue: mpsc::Sender<Utf8Bytes>,
    /// Cancelled when the queue has run over.
    pub(super) evicted: CancellationToken,
}

impl Outbox {
    /// Queues `text`. It never waits: a reader who is too slow is disconnected, and does not hold
    /// up a room.
    pub(super) fn push(&self, text: Utf8Bytes) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(text) {
            self.evicted.cancel();
        }
    }
}

/// A socket's number in this worker.
pub(super) type SocketId = u64;

/// All sockets and rooms of this worker.
#[derive(Debug)]
pub(super) struct Chat {
    bus_name: &'static str,
    requests: mpsc::Sender<Request>,
    people: watch::Sender<People>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sockets: HashMap<SocketId, Socket>,
    rooms: BTreeMap<String, Room>,
    last: SocketId,
    /// Why the bus is away, if it is.
    bus_away: Option<String>,
}

#[derive(Debug)]
struct Socket {
    outbox: Outbox,
    room: Option<String>,
}

/// A room with somebody of this worker in it.
#[derive(Debug, Default)]
struct Room {
    members: HashMap<SocketId, Outbox>,
    /// Over all workers, as the bus says.
    people: u32,
}

impl Chat {
    /// Nobody there, and the bus not yet up.
    pub(super) fn new(ends: ChatEnds) -> (Self, mpsc::Receiver<Event>) {
        let chat = Self {
            bus_name: ends.name,
            requests: ends.requests,
            people: ends.people,
            state: Mutex::new(State {
                sockets: HashMap::new(),
                rooms: BTreeMap::new(),
                last: 0,
                bus_away: Some("not connected yet".to_owned()),
            }),
        };
        (chat, ends.events)
    }

    /// Takes a socket in, and tells it about the bus.
    pub(super) fn connect(&self, outbox: Outbox) -> SocketId {
        let mut state = self.lock();
        state.last += 1;
        let id = state.last;
        outbox.push(self.bus_state(state.bus_away.as_deref()));
        state.sockets.insert(id, Socket { outbox, room: None });
        id
    }

    /// Forgets a socket.
    pub(super) fn disconnect(&self, id: SocketId) {
        let mut state = self.lock();
        self.leave(&mut state, id);
        state.sockets.remove(&id);
    }

    /// Moves a socket into `room`.
    pub(super) fn join(&self, id: SocketId, room: &str) {
        let mut state = self.lock();
        if state
            .sockets
            .get(&id)
            .is_some_and(|socket| socket.room.as_deref() == Some(room))
        {
            return;
        }
        self.leave(&mut state, id);
        let Some(socket) = state.sockets.get_mut(&id) else {
            return;
        };
        socket.room = Some(room.to_owned());
        let outbox = socket.outbox.clone();
        let entry = state.rooms.entry(room.to_owned()).or_default();
        entry.members.insert(id, outbox);
        // What the bus said last, or at least those who are here.
        entry.people = entry.people.max(entry.here());
        entry.tell_presence(room);
        self.count(&state, room);
    }

    /// Fetches the history of `room` from the bus and hands it to those in it: to one socket, or
    /// to all. While the bus is away nothing happens; all are served when it is back.
    pub(super) async fn send_history(&self, room: &str, only: Option<SocketId>) {
        let (answer, answered) = oneshot::channel();
        let request = Request::History {
            room: room.to_owned(),
            answer,
        };
        if self.requests.try_send(request).is_err() {
            return;
        }
        let Ok(Ok(lines)) = timeout(HISTORY_WITHIN, answered).await else {
            return;
        };
        let lines = &lines;
        let text = ToPage::History { room, lines }.encode();
        let state = self.lock();
        let Some(entry) = state.rooms.get(room) else {
            return;
        };
        match only {
            Some(id) => entry
                .members
                .get(&id)
                .iter()
                .for_each(|member| member.push(text.clone())),
            None => entry.tell(&text),
        }
    }

    /// Hands a line to the bus.
    ///
    /// # Errors
    /// [`Refusal::NoBus`] when it is away, or full.
    pub(super) fn say(&self, room: String, line: Line) -> Result<(), Refusal> {
        if self.lock().bus_away.is_some() {
            return Err(Refusal::NoBus);
        }
        let request = Request::Say { room, line };
        self.requests
            .try_send(request)
            .map_err(|_full| Refusal::NoBus)
    }

    /// Hands on what the bus says, for as long as there is a bus. Histories are fetched by tasks
    /// of `tasks`, since this one must go on listening for their answers.
    pub(super) async fn listen(
        self: std::sync::Arc<Self>,
        mut events: mpsc::Receiver<Event>,
        tasks: TaskTracker,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Up => {
                    for room in self.bus_changed(None) {
                        let chat = std::sync::Arc::clone(&self);
                        tasks.spawn(async move { chat.send_history(&room, None).await });
                    }
                }
                Event::Down(why) => drop(self.bus_changed(Some(why))),
                Event::Line { room, line } => {
                    let state = self.lock();
                    let Some(entry) = state.rooms.get(&room) else {
                        continue;
                    };
                    let (room, line) = (&*room, &line);
                    entry.tell(&ToPage::Line { room, line }.encode());
                }
                Event::People { room, people } => {
                    if let Some(entry) = self.lock().rooms.get_mut(&room) {
                        entry.people = people;
                        entry.tell_presence(&room);
                    }
                }
            }
        }
    }

    /// How many sockets there are.
    pub(super) fn sockets(&self) -> usize {
        self.lock().sockets.len()
    }

    /// Tells everyone, and gives the rooms that have somebody in them.
    fn bus_changed(&self, away: Option<String>) -> Vec<String> {
        let mut state = self.lock();
        if state.bus_away != away {
            state.bus_away = away;
            let text = self.bus_state(state.bus_away.as_deref());
            for socket in state.sockets.values() {
                socket.outbox.push(text.clone());
            }
        }
        state.rooms.keys().cloned().collect()
    }

    fn bus_state(&self, away: Option<&str>) -> Utf8Bytes {
        ToPage::Bus {
            name: self.bus_name,
            up: away.is_none(),
            why: away.unwrap_or_default(),
        }
        .encode()
    }

    fn leave(&self, state: &mut State, id: SocketId) {
        let Some(socket) = state.sockets.get_mut(&id) else {
            return;
        };
        let Some(room) = socket.room.take() else {
            return;
        };
        if let Some(entry) = state.rooms.get_mut(&room) {
            entry.members.remove(&id);
            if entry.members.is_empty() {
                state.rooms.remove(&room);
            }
        }
        self.count(state, &room);
    }

    /// Tells the bus how many are in `room` here.
    fn count(&self, state: &State, room: &str) {
        let here = state.rooms.get(room).map_or(0, Room::here);
        self.people.send_modify(|people| {
            if here == 0 {
                people.remove(room);
            } else {
                people.insert(room.to_owned(), here);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step leaves the state half done, whatever panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn here(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    fn tell(&self, text: &Utf8Bytes) {
        self.members
            .values()
            .for_each(|member| member.push(text.clone()));
    }

    fn tell_presence(&self, room: &str) {
        let presence = ToPage::Presence {
            room,
            people: self.people,
            here: self.here(),
        };
        self.tell(&presence.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::bus::Bus;

    fn outbox(capacity: usize) -> (Outbox, mpsc::Receiver<Utf8Bytes>) {
        let (queue, sent) = mpsc::channel(capacity);
        let evicted = CancellationToken::new();
        (Outbox { queue, evicted }, sent)
    }

    #[tokio::test]
    async fn a_slow_reader_is_evicted_and_the_room_goes_on() {
        let (ends, _bus) = Bus::hub("/nowhere".into()).ends();
        let (chat, _events) = Chat::new(ends);
        let (slow, _unread) = outbox(4);
        let (quick, mut read) = outbox(64);
        for outbox in [&slow, &quick] {
            let id = chat.connect(outbox.clone());
            chat.join(id, "lobby");
        }
        for _ in 0..8 {
            chat.lock().rooms["lobby"].tell_presence("lobby");
        }
        assert!(slow.evicted.is_cancelled());
        assert!(!quick.evicted.is_cancelled());
        let told = std::iter::from_fn(|| read.try_recv().ok()).count();
        assert_eq!(told, 10, "the state of the bus, one join, and eight more");
    }

    #[tokio::test]
    async fn people_are_counted_when_they_come_go_and_change_rooms() {
        let (ends, _bus) = Bus::hub("/nowhere".into()).ends();
        let people = ends.people.subscribe();
        let (chat, _events) = Chat::new(ends);
        let (out, _read) = outbox(64);
        let (ada, bob) = (chat.connect(out.clone()), chat.connect(out));
        chat.join(ada, "lobby");
        chat.join(bob, "lobby");
        assert_eq!(people.borrow().get("lobby"), Some(&2));
        chat.join(bob, "attic");
        chat.join(bob, "attic");
        let expected = People::from([("attic".to_owned(), 1), ("lobby".to_owned(), 1)]);
        assert_eq!(*people.borrow(), expected);
        chat.disconnect(ada);
        chat.disconnect(bob);
        assert_eq!(*people.borrow(), People::new());
        assert_eq!(chat.sockets(), 0);
    }
}
