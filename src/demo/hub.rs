//! The embedded bus: it remembers the last lines of every room and passes each line on to every
//! worker. It runs in the demo's parent, so it outlives the workers.
//!
//! Everything is bounded: rooms (the one that was silent for longest is forgotten), lines a room,
//! length of a line, workers, and what waits for a worker that does not read (it is disconnected,
//! and learns what it missed when it is back). Only the owner of the socket may connect.

use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
};
use tokio_util::{codec::FramedRead, sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    hub_wire::{FromHub, ToHub, encode, to_hub_codec},
    message::{HISTORY, Line, People},
    unix_socket,
};

const ROOMS_AT_MOST: usize = 256;
const WORKERS_AT_MOST: usize = 256;
const WAITING_AT_MOST: usize = 1024;
const WRITE_WITHIN: Duration = Duration::from_secs(5);
const AFTER_A_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// A bound hub, which does nothing until it is [run](Self::run).
#[derive(Debug)]
pub struct Hub {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    board: Arc<Mutex<Board>>,
}

impl Hub {
    /// Listens on the Unix socket `path` (mode 0600); a socket that a dead hub left is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another hub answers there; else what the system says.
    pub fn bind(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        Ok(Self {
            listener: unix_socket::bind(&path)?,
            path,
            board: Arc::default(),
        })
    }

    /// Where workers find it: the value of [`HUB_VAR`](super::HUB_VAR).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves workers until `shutdown`, then closes their connections and removes the socket.
    ///
    /// # Errors
    /// When the runtime has no I/O driver for the socket; connections that fail end nothing.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener)?;
        info!(path = %self.path.display(), "the chat's hub listens");
        let tasks = TaskTracker::new();
        let end = CancellationToken::new();
        tokio::select! {
            () = shutdown => {}
            () = accept(&listener, &self.board, &tasks, &end) => {}
        }
        drop(listener);
        end.cancel();
        tasks.close();
        tasks.wait().await;
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(%error, "the hub's socket was gone already");
        }
        Ok(())
    }
}

async fn accept(
    listener: &UnixListener,
    board: &Arc<Mutex<Board>>,
    tasks: &TaskTracker,
    end: &CancellationToken,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if tasks.len() < WORKERS_AT_MOST => {
                let gone = end.child_token();
                tasks.spawn(serve(stream, Arc::clone(board), gone));
            }
            Ok(_) => warn!("the hub has {WORKERS_AT_MOST} connections; another one is refused"),
            Err(error) => {
                warn!(%error, "the hub could not accept a connection");
                tokio::time::sleep(AFTER_A_FAILED_ACCEPT).await;
            }
        }
    }
}

/// One worker's connection, until it ends, `gone` is cancelled, or the worker does not read.
async fn serve(stream: UnixStream, board: Arc<Mutex<Board>>, gone: CancellationToken) {
    let (read, write) = stream.into_split();
    let (outbox, waiting) = mpsc::channel(WAITING_AT_MOST);
    let worker = lock(&board).connect(outbox, gone.clone());
    let mut lines = FramedRead::new(read, to_hub_codec());
    let reading = async {
        while let Some(line) = lines.next().await {
            let message = line.map_err(|error| error.to_string()).and_then(|line| {
                serde_json::from_str::<ToHub>(&line).map_err(|error| error.to_string())
            });
            match message {
                Ok(message) => lock(&board).handle(worker, message),
                Err(error) => {
                    warn!(worker, %error, "a worker sent what the hub does not understand");
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = gone.cancelled() => {}
        () = reading => {}
        () = write_all(write, waiting) => {}
    }
    lock(&board).disconnect(worker);
}

async fn write_all(mut write: OwnedWriteHalf, mut waiting: mpsc::Receiver<Arc<str>>) {
    while let Some(line) = waiting.recv().await {
        let written = tokio::time::timeout(WRITE_WITHIN, write.write_all(line.as_bytes())).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    // No step of the board leaves it half done, whatever panics.
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that the hub knows.
#[derive(Debug, Default)]
struct Board {
    rooms: HashMap<String, Room>,
    workers: HashMap<u64, Worker>,
    /// Counts lines, to know which room was silent for longest.
    spoken: u64,
    connected: u64,
}

#[derive(Debug, Default)]
struct Room {
    lines: VecDeque<Line>,
    spoken: u64,
}

#[derive(Debug)]
struct Worker {
    outbox: mpsc::Sender<Arc<str>>,
    gone: CancellationToken,
    people: People,
}

impl Worker {
    fn send(&self, line: &Arc<str>) {
        if self.outbox.try_send(Arc::clone(line)).is_err() && !self.gone.is_cancelled() {
            warn!("a worker does not read what the hub sends; it is disconnected");
            self.gone.cancel();
        }
    }
}

impl Board {
    fn connect(&mut self, outbox: mpsc::Sender<Arc<str>>, gone: CancellationToken) -> u64 {
        self.connected += 1;
        let worker = Worker {
            outbox,
            gone,
            people: People::new(),
        };
        self.workers.insert(self.connected, worker);
        self.connected
    }

    fn disconnect(&mut self, worker: u64) {
        if let Some(left) = self.workers.remove(&worker) {
            self.announce(left.people.keys());
        }
    }

    fn handle(&mut self, worker: u64, message: ToHub) {
        match message {
            ToHub::Say { room, line } => self.say(room, line),
            ToHub::History { room, ticket } => {
                let lines = self.rooms.get(&room).map(|room| room.lines.iter().cloned());
                let lines = lines.into_iter().flatten().collect();
                self.send_to(worker, &FromHub::History { ticket, lines });
            }
            ToHub::People { rooms } => {
                let Some(entry) = self.workers.get_mut(&worker) else {
                    return;
                };
                let mut changed = std::mem::replace(&mut entry.people, rooms.clone());
                changed.extend(rooms);
                self.announce(changed.keys());
            }
        }
    }

    fn say(&mut self, name: String, line: Line) {
        self.spoken += 1;
        if !self.rooms.contains_key(&name) && self.rooms.len() == ROOMS_AT_MOST {
            let silent = self.rooms.iter().min_by_key(|(_, room)| room.spoken);
            let silent = silent.map(|(name, _)| name.clone());
            silent.and_then(|name| self.rooms.remove(&name));
        }
        let room = self.rooms.entry(name.clone()).or_default();
        room.spoken = self.spoken;
        // Sent again after a reconnect: the first one arrived.
        if room.lines.iter().any(|known| known.id == line.id) {
            return;
        }
        if room.lines.len() == HISTORY {
            room.lines.pop_front();
        }
        room.lines.push_back(line.clone());
        self.send_to_all(&FromHub::Line { room: name, line });
    }

    fn announce<'a>(&self, rooms: impl Iterator<Item = &'a String>) {
        for room in rooms {
            let here = self
                .workers
                .values()
                .filter_map(|worker| worker.people.get(room));
            self.send_to_all(&FromHub::People {
                room: room.clone(),
                people: here.sum(),
            });
        }
    }

    fn send_to(&self, worker: u64, message: &FromHub) {
        if let Some(worker) = self.workers.get(&worker) {
            worker.send(&encode(message).into());
        }
    }

    fn send_to_all(&self, message: &FromHub) {
        let line = encode(message).into();
        self.workers.values().for_each(|worker| worker.send(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: usize) -> Line {
        Line {
            id: id.to_string(),
            name: "Ada".into(),
            text: format!("line {id}"),
            at: id as u64,
            slot: "chat/0".into(),
        }
    }

    fn say(room: &str, id: usize) -> ToHub {
        ToHub::Say {
            room: room.into(),
            line: line(id),
        }
    }

    /// A board with one worker, and what it is sent.
    fn board() -> (Board, u64, mpsc::Receiver<Arc<str>>, CancellationToken) {
        let mut board = Board::default();
        let (outbox, waiting) = mpsc::channel(WAITING_AT_MOST);
        let gone = CancellationToken::new();
        let worker = board.connect(outbox, gone.clone());
        (board, worker, waiting, gone)
    }

    fn next(waiting: &mut mpsc::Receiver<Arc<str>>) -> FromHub {
        serde_json::from_str(&waiting.try_recv().unwrap()).unwrap()
    }

    #[test]
    fn remembers_the_last_fifty_and_drops_what_is_sent_twice() {
        let (mut board, worker, mut waiting, _gone) = board();
        for id in 0..60 {
            board.handle(worker, say("lobby", id));
            assert!(
                matches!(next(&mut waiting), FromHub::Line { line, .. } if line.at == id as u64)
            );
        }
        board.handle(worker, say("lobby", 59));
        assert!(waiting.try_recv().is_err(), "told once");
        board.handle(
            worker,
            ToHub::History {
                room: "lobby".into(),
                ticket: 4,
            },
        );
        let expected = FromHub::History {
            ticket: 4,
            lines: (10..60).map(line).collect(),
        };
        assert_eq!(next(&mut waiting), expected);
    }

    #[test]
    fn forgets_the_room_that_was_silent_for_longest() {
        let (mut board, worker, mut waiting, _gone) = board();
        for id in 0..ROOMS_AT_MOST {
            board.handle(worker, say(&format!("room {id}"), id));
        }
        board.handle(worker, say("room 0", 1000));
        board.handle(worker, say("one more", 1001));
        assert_eq!(board.rooms.len(), ROOMS_AT_MOST);
        assert!(board.rooms.contains_key("room 0"));
        assert!(!board.rooms.contains_key("room 1"));
        while waiting.try_recv().is_ok() {}
    }

    #[test]
    fn counts_people_over_workers_and_forgets_those_of_a_dead_one() {
        let (mut board, first, mut waiting, _gone) = board();
        let (outbox, mut other) = mpsc::channel(WAITING_AT_MOST);
        let second = board.connect(outbox, CancellationToken::new());
        let people = |count| ToHub::People {
            rooms: People::from([("lobby".to_owned(), count)]),
        };
        let told = |people| FromHub::People {
            room: "lobby".into(),
            people,
        };
        board.handle(first, people(2));
        board.handle(second, people(3));
        assert_eq!(next(&mut waiting), told(2));
        assert_eq!(next(&mut waiting), told(5));
        board.disconnect(second);
        assert_eq!(next(&mut waiting), told(2));
        assert_eq!((next(&mut other), next(&mut other)), (told(2), told(5)));
        let empty = ToHub::People {
            rooms: People::new(),
        };
        board.handle(first, empty);
        assert_eq!(next(&mut waiting), told(0));
    }

    #[test]
    fn a_worker_that_does_not_read_is_disconnected() {
        let (mut board, worker, _waiting, gone) = board();
        for id in 0..WAITING_AT_MOST {
            board.handle(worker, say("lobby", id));
        }
        assert!(!gone.is_cancelled());
        board.handle(worker, say("lobby", WAITING_AT_MOST));
        assert!(gone.is_cancelled());
    }
}
