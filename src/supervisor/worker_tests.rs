use super::*;
use crate::supervisor::restart::Say;

const LIMITS: Limits = Limits {
    ready: Duration::from_secs(60),
    stop: Duration::from_secs(30),
    watchdog: Some(Duration::from_secs(2)),
};

/// A worker and a clock that only the test moves.
struct Bench {
    worker: Worker,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            worker: Worker::new(now),
            now,
        }
    }

    fn starting() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.on(Event::Tick), [Action::Spawn]);
        assert_eq!(bench.on(Event::Spawned(LIMITS)), []);
        bench
    }

    fn ready() -> Self {
        let mut bench = Self::starting();
        bench.wait(138);
        let booted = Action::Booted(Duration::from_millis(138));
        assert_eq!(bench.on(Event::BecameReady), [booted]);
        bench
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        let (worker, actions) = self.worker.clone().step(event, self.now, 0.0);
        self.worker = worker;
        actions
    }

    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Jumps to the next deadline and gives what happens there.
    fn tick(&mut self) -> (Duration, Vec<Action>) {
        let before = self.now;
        self.now = self.worker.deadline().expect("a deadline");
        (self.now - before, self.on(Event::Tick))
    }
}

fn end(why: Why, secs: u64) -> Action {
    let grace = Duration::from_secs(secs);
    Action::End { why, grace }
}

fn vacate(delay_ms: u64) -> Action {
    Action::Vacate(Verdict {
        delay: Duration::from_millis(delay_ms),
        looping: false,
        say: Say::Line,
    })
}

#[test]
fn an_early_exit_is_followed_by_a_growing_delay() {
    let mut bench = Bench::starting();
    assert_eq!(bench.on(Event::Exited), [vacate(100)]);
    assert_eq!(
        bench.tick(),
        (Duration::from_millis(100), vec![Action::Spawn])
    );
    assert_eq!(bench.on(Event::SpawnFailed), [vacate(200)]);
    assert_eq!(
        bench.tick(),
        (Duration::from_millis(200), vec![Action::Spawn])
    );
}

#[test]
fn a_stable_run_forgives_what_came_before() {
    let mut bench = Bench::starting();
    bench.on(Event::Exited);
    bench.tick();
    bench.on(Event::Spawned(Limits {
        watchdog: None,
        ..LIMITS
    }));
    bench.on(Event::BecameReady);
    assert_eq!(bench.tick(), (STABLE_AFTER, vec![]));
    assert_eq!(bench.worker.deadline(), None);
    bench.wait(5_000);
    assert_eq!(bench.on(Event::Exited), [vacate(100)]);
}

#[test]
fn ready_for_less_than_the_stable_time_counts_as_a_failure() {
    let mut bench = Bench::ready();
    bench.on(Event::Exited);
    bench.tick();
    bench.on(Event::Spawned(LIMITS));
    bench.on(Event::BecameReady);
    assert_eq!(bench.on(Event::Exited), [vacate(200)]);
}

#[test]
fn five_early_exits_are_a_crash_loop_until_one_runs_stably() {
    let mut bench = Bench::starting();
    for _ in 0..4 {
        assert!(matches!(bench.on(Event::Exited)[..], [Action::Vacate(v)] if !v.looping));
        bench.tick();
        bench.on(Event::Spawned(LIMITS));
    }
    assert!(matches!(bench.on(Event::Exited)[..], [Action::Vacate(v)] if v.looping));
    bench.tick();
    bench.on(Event::Spawned(Limits {
        watchdog: None,
        ..LIMITS
    }));
    bench.on(Event::BecameReady);
    assert_eq!(bench.tick(), (STABLE_AFTER, vec![Action::Recovered(5)]));
}

#[test]
fn never_ready_is_ended_and_then_killed() {
    let mut bench = Bench::starting();
    assert_eq!(bench.tick(), (LIMITS.ready, vec![end(Why::NotReady, 30)]));
    assert_eq!(bench.tick(), (LIMITS.stop, vec![Action::Kill]));
    assert_eq!(bench.tick(), (KILL_AGAIN, vec![Action::Kill]));
    assert_eq!(bench.on(Event::Exited), [vacate(100)]);
}

#[test]
fn a_missed_watchdog_ends_it_with_a_short_grace() {
    let mut bench = Bench::ready();
    bench.wait(1_900);
    assert_eq!(bench.on(Event::Notified(Message::Watchdog)), []);
    let (waited, actions) = bench.tick();
    assert_eq!(waited, Duration::from_secs(2));
    assert_eq!(actions, [end(Why::Watchdog, 5)]);
    let forever = Message::ExtendTimeout(Duration::from_secs(900));
    assert_eq!(bench.on(Event::Notified(forever)), []);
    assert_eq!(
        bench.tick(),
        (Duration::from_secs(5), vec![Action::Kill]),
        "a hung worker gets no more time"
    );
}

#[test]
fn a_pulled_watchdog_and_unanswered_checks_are_hangs_too() {
    let mut bench = Bench::ready();
    let pulled = Event::Notified(Message::WatchdogTrigger);
    assert_eq!(bench.on(pulled), [end(Why::Watchdog, 5)]);
    assert_eq!(bench.on(Event::Unresponsive), [], "its end has begun");
    let mut bench = Bench::ready();
    assert_eq!(bench.on(Event::Unresponsive), [end(Why::Unresponsive, 5)]);
}

#[test]
fn a_worker_that_says_ready_is_reported_and_waits_for_the_clusters_word() {
    let mut bench = Bench::starting();
    assert_eq!(
        bench.on(Event::Notified(Message::Ready)),
        [Action::SayReady]
    );
    assert_eq!(
        bench.worker.deadline(),
        Some(bench.now + LIMITS.ready),
        "not ready yet"
    );
}

#[test]
fn a_start_may_be_extended_but_not_shortened() {
    let mut bench = Bench::starting();
    bench.on(Event::Notified(Message::ExtendTimeout(
        Duration::from_secs(1),
    )));
    assert_eq!(bench.worker.deadline(), Some(bench.now + LIMITS.ready));
    bench.on(Event::Notified(Message::ExtendTimeout(
        Duration::from_secs(90),
    )));
    let longer = bench.now + Duration::from_secs(90);
    assert_eq!(bench.worker.deadline(), Some(longer));
    bench.on(Event::Notified(Message::ExtendTimeout(Duration::MAX)));
    let longest = bench.now + LONGEST_EXTENSION;
    assert_eq!(bench.worker.deadline(), Some(longest));
}

#[test]
fn stop_is_term_then_kill_then_the_end() {
    let mut bench = Bench::ready();
    assert_eq!(bench.on(Event::Stop), [end(Why::Asked, 30)]);
    assert_eq!(bench.on(Event::Stop), [], "once");
    assert_eq!(bench.tick(), (LIMITS.stop, vec![Action::Kill]));
    assert_eq!(bench.on(Event::Exited), [Action::Finish]);
    assert_eq!(bench.worker.deadline(), None);
}

#[test]
fn other_limits_hold_for_what_has_not_begun() {
    let shorter = Limits {
        ready: Duration::from_secs(1),
        stop: Duration::from_secs(2),
        watchdog: None,
    };
    let mut bench = Bench::starting();
    assert_eq!(bench.on(Event::Limited(shorter)), []);
    assert_eq!(bench.tick(), (LIMITS.ready, vec![end(Why::NotReady, 2)]));
    assert_eq!(bench.on(Event::Limited(LIMITS)), []);
    assert_eq!(bench.tick(), (shorter.stop, vec![Action::Kill]));
}

#[test]
fn stop_ends_a_waiting_worker_at_once_and_one_that_is_leaving_gets_no_next() {
    let mut bench = Bench::starting();
    bench.on(Event::Exited);
    assert_eq!(bench.on(Event::Stop), [Action::Finish]);
    let mut bench = Bench::ready();
    let leaving = Event::Notified(Message::Stopping);
    assert_eq!(bench.on(leaving), [end(Why::Itself, 30)]);
    assert_eq!(bench.on(Event::Stop), [Action::Term]);
    assert_eq!(bench.on(Event::Exited), [Action::Finish]);
}

#[test]
fn kill_skips_the_grace() {
    let mut bench = Bench::ready();
    bench.on(Event::Stop);
    assert_eq!(bench.on(Event::Kill), [Action::Kill]);
    let mut bench = Bench::starting();
    assert_eq!(bench.on(Event::Kill), [end(Why::Asked, 30), Action::Kill]);
}
