//! Lines on their way to standard error. Whoever logs copies a line and never waits; a thread of its
//! own writes what has come together.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Bytes that may wait to be written; lines beyond them are dropped and counted.
const ROOM: usize = 4 * 1024 * 1024;

/// What a buffer may keep when it is empty.
const KEPT: usize = 256 * 1024;

/// Between two looks at the queue: a busy log wakes its writer once for many lines, as a wake-up
/// costs whoever logs more than the line does.
const NAP: Duration = Duration::from_millis(5);

/// What waits at the end of the program is written within this, or not at all.
const LAST: Duration = Duration::from_secs(1);

/// The queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// For the writer: there is something to do.
    more: Condvar,
    /// For who ends it: the writer has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that were taken so far, and those that were written.
    taken: u64,
    written: u64,
    dropped: u64,
    /// The writer has nothing to do.
    is_idle: bool,
    /// No more will come.
    is_over: bool,
    has_ended: bool,
}

/// Ends the queue when it is dropped, once what waits is written.
#[derive(Debug)]
pub(super) struct Writer(Queue);

impl Queue {
    /// Starts the writer of a new queue.
    pub(super) fn start(to: impl Write + Send + 'static) -> io::Result<(Self, Writer)> {
        let queue = Self::default();
        let its_own = queue.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || its_own.write(to))?;
        Ok((queue.clone(), Writer(queue)))
    }

    /// Hands over a line, or several.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.lines.len() + line.len() > ROOM {
            waiting.dropped += 1;
            return;
        }
        waiting.lines.extend_from_slice(line);
        waiting.taken += 1;
        let is_idle = mem::take(&mut waiting.is_idle);
        drop(waiting);
        if is_idle {
            self.0.more.notify_one();
        }
    }

    /// Lines that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// Lines that were taken so far, and those of them that were written.
    pub(super) fn progress(&self) -> (u64, u64) {
        let waiting = self.0.lock();
        (waiting.taken, waiting.written)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "there is no event to wait for, but for more lines to come"
    )]
    fn write(&self, mut to: impl Write) {
        let mut batch = Vec::new();
        while let Some(taken) = self.0.next(&mut batch) {
            // Nobody is left to be told.
            let _written = to.write_all(&batch);
            batch.clear();
            batch.shrink_to(KEPT);
            self.0.lock().written = taken;
            thread::sleep(NAP);
        }
        self.0.lock().has_ended = true;
        self.0.ended.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines, and exchanges them for the empty `batch`; how many were taken so far. Nothing
    /// once all is over.
    fn next(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let mut waiting = self.lock();
        while waiting.lines.is_empty() {
            if waiting.is_over {
                return None;
            }
            waiting.is_idle = true;
            waiting = self
                .more
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut waiting.lines, batch);
        Some(waiting.taken)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Shared { more, ended, .. } = &*self.0.0;
        let mut waiting = self.0.0.lock();
        waiting.is_over = true;
        more.notify_one();
        let _late = ended.wait_timeout_while(waiting, LAST, |waiting| !waiting.has_ended);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a batch when it is asked to.
    struct Slow(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _asked = self.1.recv();
            let _nobody = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_in_order_and_those_without_room_are_counted() {
        let (written, lines) = mpsc::channel();
        let (ask, asked) = mpsc::channel();
        let (queue, writer) = Queue::start(Slow(written, asked)).unwrap();
        queue.push(b"first\n");
        // The writer has it, or will have it with the next ones.
        let line = [b'x'; 1023];
        let lines_more = 3 * ROOM / line.len();
        for _ in 0..lines_more {
            queue.push(&line);
        }
        let (taken, _) = queue.progress();
        assert!(queue.dropped() > 0);
        assert_eq!(taken + queue.dropped(), 1 + lines_more as u64);
        drop(ask);
        drop(writer);
        let all: Vec<u8> = lines.try_iter().flatten().collect();
        assert!(all.starts_with(b"first\nxxx"));
        assert_eq!((all.len() - 6) / line.len() + 1, taken as usize);
        assert_eq!(queue.progress(), (taken, taken));
    }
}
