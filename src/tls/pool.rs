//! Threads for what is costly of a handshake.
//!
//! With an RSA key a full handshake costs up to half a millisecond of CPU, where relaying a message costs
//! some microseconds. On a data-plane thread a storm of them would stand between established connections
//! and their bytes, so they run here, on threads that yield to the data plane. To go there and back
//! costs about as much as a whole handshake with a key on P-256, so such ones stay. A stream stays
//! registered with the thread that accepted it, and goes back there for all that is cheap.

use std::{io, num::NonZeroUsize, sync::Arc, thread};

use rustix::process::setpriority_process;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

/// Handshakes at one time. A core does some 2,000 a second with RSA keys of 2,048 bits, the slowest
/// in common use: who is let in is served in about two seconds even by a single thread, well within
/// the default `timeouts.header`, and who would not be is told at once.
const MAX_IN_FLIGHT: usize = 4096;

/// How much the threads yield to those of the data plane, which are at 0; 19 would be the most.
const NICE: i32 = 10;

/// The threads, and how many handshakes are on their way.
#[derive(Debug)]
pub struct Pool {
    /// Always there until it is dropped.
    runtime: Option<Runtime>,
    room: Arc<Semaphore>,
}

impl Pool {
    /// Starts threads for half of the cores, at least one.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start() -> io::Result<Arc<Self>> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads((cores / 2).max(1))
            .thread_name("tls")
            .on_thread_start(yield_to_others)
            .build()?;
        Ok(Arc::new(Self {
            runtime: Some(runtime),
            room: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        }))
    }

    /// Room for one more handshake, or `None`.
    pub(super) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Runs a handshake until it ends or the result is no longer waited for; `None` when the
    /// threads have ended.
    pub(super) async fn run<F>(&self, handshake: F) -> Option<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let task = self.runtime.as_ref()?.spawn(handshake);
        AbortOnDropHandle::new(task).await.ok()
    }
}

/// May happen on any thread, also one of a runtime, which must not wait.
impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// On Linux a priority is a thread's (setpriority(2), notes).
fn yield_to_others() {
    if let Err(error) = setpriority_process(None, NICE) {
        warn!(%error, "handshakes run at the priority of connections");
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn the_threads_yield_to_all_others() {
        let pool = Pool::start().unwrap();
        let there = pool.run(async { getpriority_process(None).unwrap() }).await;
        assert_eq!(there, Some(NICE));
        assert!(getpriority_process(None).unwrap() < NICE);
    }

    #[test]
    fn there_is_room_for_so_many_and_again_when_they_are_done() {
        let pool = Pool::start().unwrap();
        let permits: Vec<_> = std::iter::from_fn(|| pool.enter()).collect();
        assert_eq!(permits.len(), MAX_IN_FLIGHT);
        drop(permits);
        assert!(pool.enter().is_some());
    }
}
