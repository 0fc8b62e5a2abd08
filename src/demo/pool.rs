//! A bounded pool of threads for CPU-bound work, so that the event loop keeps breathing.
//!
//! The starting point is Node's rule "pool the workers, cap them at the cores, queue with a limit":
//! what does not fit is refused at once, and the caller can say so (429) while it is still cheap.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroUsize,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde::Serialize;
use tokio::sync::oneshot;

/// The threads and their queue. When the last handle is dropped the threads end, each after the
/// job it is at.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

/// Every thread is busy and the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every thread is busy and {queued} jobs wait already")]
pub(super) struct Busy {
    /// How many wait, which is the limit.
    pub(super) queued: usize,
}

/// The job panicked, or the pool ended before it was its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job did not end")]
pub(super) struct Lost;

/// What the pool is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct State {
    /// Threads.
    pub(super) threads: usize,
    /// Jobs that may wait.
    pub(super) queue_limit: usize,
    /// Jobs that run.
    pub(super) running: usize,
    /// Jobs that wait.
    pub(super) queued: usize,
    /// Jobs that ended since the start.
    pub(super) done: u64,
    /// Jobs that were refused since the start.
    pub(super) refused: u64,
}

impl Pool {
    /// Starts `threads` threads, before which `queue_limit` jobs may wait.
    ///
    /// # Errors
    /// What the system says when it gives no thread.
    pub(super) fn start(threads: NonZeroUsize, queue_limit: usize) -> io::Result<Self> {
        let pool = Self {
            shared: Arc::new(Shared {
                work: Mutex::new(Work {
                    jobs: VecDeque::with_capacity(queue_limit + threads.get()),
                    closed: false,
                    state: State {
                        threads: threads.get(),
                        queue_limit,
                        running: 0,
                        queued: 0,
                        done: 0,
                        refused: 0,
                    },
                }),
                arrived: Condvar::new(),
            }),
        };
        for index in 0..threads.get() {
            let shared = Arc::clone(&pool.shared);
            thread::Builder::new()
                .name(format!("pool-{index}"))
                .spawn(move || shared.serve())?;
        }
        Ok(pool)
    }

    /// Queues `job` and gives the future of its result. A job whose future is dropped before its
    /// turn is not run.
    ///
    /// # Errors
    /// [`Busy`] when as many jobs as threads and queue places are in the pool.
    pub(super) fn submit<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        job: F,
    ) -> Result<impl Future<Output = Result<T, Lost>> + Send + use<T, F>, Busy> {
        let (answer, result) = oneshot::channel();
        let mut work = self.shared.lock();
        // Counted against threads and queue together: a job that waits only because its thread has
        // not woken up yet takes no place in the queue.
        if work.state.running + work.jobs.len() >= work.state.threads + work.state.queue_limit {
            work.state.refused += 1;
            return Err(Busy {
                queued: work.state.queue_limit,
            });
        }
        work.jobs.push_back(Box::new(move || {
            let is_wanted = !answer.is_closed();
            let value = is_wanted.then(|| panic::catch_unwind(AssertUnwindSafe(job)));
            Box::new(move || {
                if let Some(Ok(value)) = value {
                    // The asker may have left meanwhile; then nobody misses the value.
                    drop(answer.send(value));
                }
            })
        }));
        drop(work);
        self.shared.arrived.notify_one();
        Ok(async move { result.await.map_err(|_closed| Lost) })
    }

    /// What the pool is at now.
    pub(super) fn state(&self) -> State {
        let work = self.shared.lock();
        let waiting_for_a_thread = work.state.threads - work.state.running;
        State {
            queued: work.jobs.len().saturating_sub(waiting_for_a_thread),
            ..work.state
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut work = self.shared.lock();
        work.closed = true;
        work.jobs.clear();
        drop(work);
        self.shared.arrived.notify_all();
    }
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    arrived: Condvar,
}

/// Does the work, and gives what is to be called to hand over its result.
type Job = Box<dyn FnOnce() -> Box<dyn FnOnce()> + Send>;

struct Work {
    jobs: VecDeque<Job>,
    closed: bool,
    state: State,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state.fmt(f)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        // Jobs run outside the lock and their panics are caught, so the state is sound.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut work = self.lock();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                work.state.running += 1;
                drop(work);
                let hand_over = job();
                work = self.lock();
                work.state.running -= 1;
                work.state.done += 1;
                drop(work);
                // After the count, so that who has the result sees a pool with a place for more.
                hand_over();
                work = self.lock();
            } else if work.closed {
                return;
            } else {
                work = self
                    .arrived
                    .wait(work)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::Duration,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn pool(threads: usize, queue_limit: usize) -> Pool {
        Pool::start(NonZeroUsize::new(threads).unwrap(), queue_limit).unwrap()
    }

    #[tokio::test]
    async fn takes_as_many_as_threads_and_places_and_refuses_the_rest() {
        let pool = pool(2, 16);
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let results: Vec<_> = (0..40)
            .map(|number| {
                let gate = Arc::clone(&gate);
                pool.submit(move || {
                    // Ends when the sender goes.
                    let _ended = gate.lock().unwrap().recv();
                    number
                })
            })
            .collect();
        let refused = results.iter().filter(|result| result.is_err()).count();
        assert_eq!(refused, 22);
        assert!(
            results[..18].iter().all(Result::is_ok),
            "first come, first served"
        );
        assert_eq!(results[18].as_ref().err(), Some(&Busy { queued: 16 }));
        assert_eq!((pool.state().queued, pool.state().refused), (16, 22));

        drop(open);
        for (number, result) in results.into_iter().take(18).enumerate() {
            let value = tokio::time::timeout(PATIENCE, result.unwrap()).await;
            assert_eq!(value.unwrap(), Ok(number));
        }
        pool.submit(|| ()).unwrap().await.unwrap();
    }

    #[tokio::test]
    async fn a_job_that_panics_is_lost_and_its_thread_is_not() {
        let pool = pool(1, 1);
        let lost = pool.submit(|| panic!("on purpose")).unwrap();
        assert_eq!(lost.await, Err::<(), _>(Lost));
        assert_eq!(pool.submit(|| 7).unwrap().await, Ok(7));
    }

    #[tokio::test]
    async fn a_job_that_nobody_waits_for_is_not_run() {
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let pool = pool(1, 4);
        let (open, gate) = mpsc::channel::<()>();
        let first = pool.submit(move || gate.recv()).unwrap();
        let count = || RAN.fetch_add(1, Ordering::SeqCst);
        drop(pool.submit(count).unwrap());
        let wanted = pool.submit(count).unwrap();
        drop(open);
        first.await.unwrap().unwrap_err();
        wanted.await.unwrap();
        assert_eq!(RAN.load(Ordering::SeqCst), 1);
    }
}
