use std::{net::Ipv4Addr, num::NonZeroU32};

use proptest::prelude::*;

use super::*;
use crate::cluster::Health;

const WINDOW: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(200);

/// Slots, and what is thought of them.
struct Bench {
    settings: Passive,
    outliers: Outliers,
    samples: Vec<Sample>,
    now: Instant,
}

impl Bench {
    fn new(slots: usize) -> Self {
        let backend = Backend {
            address: Address::Tcp((Ipv4Addr::LOCALHOST, 1).into()),
            generation: 0,
            pid: None,
            backlog: None,
            said_ready: false,
            was_ready: true,
            health: Health::Unknown,
            ejected: None,
            leaving: None,
            load: Arc::default(),
        };
        let sample = |index| Sample {
            slot: format!("{index}").into(),
            backend: Arc::new(backend.clone()),
            skip: None,
            counters: Outcomes::default(),
        };
        let mut bench = Self {
            settings: Passive::default(),
            outliers: Outliers::default(),
            samples: (0..slots).map(sample).collect(),
            now: Instant::now(),
        };
        bench.look();
        bench
    }

    /// A look at the counters; what is decided becomes true.
    fn look(&mut self) -> Vec<Verdict> {
        let settings = Some(&self.settings);
        let verdicts = self.outliers.step(settings, &self.samples, self.now);
        for verdict in &verdicts {
            let sample = self.samples.iter_mut().find(|s| s.slot == verdict.slot);
            let sample = sample.unwrap();
            sample.skip = verdict.why.as_ref().map(|_| Skip::Ejected);
            sample.backend = Arc::new(Backend {
                ejected: verdict.why.clone(),
                ..Backend::clone(&sample.backend)
            });
        }
        verdicts
    }

    fn met(&mut self, slot: usize, tried: u64, failed: u64) {
        self.samples[slot].counters.tried += tried;
        self.samples[slot].counters.failed += failed;
    }

    fn fails(&mut self, slot: usize) {
        self.met(slot, 5, 5);
        self.look();
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = (self.now + TICK).min(until);
            self.look();
        }
    }

    fn out(&self) -> Vec<usize> {
        let samples = self.samples.iter().enumerate();
        let out = samples.filter(|(_, s)| s.skip == Some(Skip::Ejected));
        out.map(|(index, _)| index).collect()
    }

    /// How long the slot stays out from now on.
    fn time_out(&mut self, slot: usize) -> Duration {
        let began = self.now;
        while self.out().contains(&slot) {
            self.pass(TICK);
        }
        self.now - began
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn it_takes_several_failures_within_the_window() {
    let mut bench = Bench::new(4);
    bench.met(1, 4, 4);
    bench.pass(TICK);
    assert_eq!(bench.out(), [0; 0], "four are not five");
    bench.pass(WINDOW);
    bench.met(1, 4, 4);
    bench.pass(TICK);
    assert_eq!(bench.out(), [0; 0], "the first four are long ago");
    bench.met(1, 1, 1);
    let verdicts = bench.look();
    assert_eq!(bench.out(), [1]);
    let why = verdicts[0].why.as_deref();
    assert_eq!(why, Some("5 of 5 failed within 10s; for 10s"));
    assert_eq!(bench.look(), [], "only changes are told");
}

#[test]
fn a_few_failures_among_many_are_no_reason() {
    let mut bench = Bench::new(2);
    bench.met(0, 1000, 400);
    bench.pass(TICK);
    assert_eq!(bench.out(), [0; 0]);
    bench.met(0, 300, 300);
    bench.pass(TICK);
    assert_eq!(bench.out(), [0]);
}

#[test]
fn ejections_in_a_row_last_longer_and_a_good_stretch_makes_good() {
    let mut bench = Bench::new(3);
    for expected in [10, 20, 40, 80, 160, 300, 300] {
        bench.fails(0);
        assert_eq!(bench.time_out(0), seconds(expected));
        // What happened while it was out is no reason.
        bench.met(0, 3, 3);
        bench.look();
    }
    // Seven in a row. Good for as long as the last one lasted: six.
    bench.pass(seconds(300));
    bench.pass(seconds(300 + 160));
    bench.fails(0);
    assert_eq!(bench.time_out(0), seconds(160), "the fifth in a row");
    bench.pass(seconds(1000));
    bench.fails(0);
    assert_eq!(bench.time_out(0), seconds(10), "all is forgotten");
}

#[test]
fn only_a_share_of_the_slots_is_out_and_never_the_last() {
    for (slots, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (10, 5)] {
        let mut bench = Bench::new(slots);
        for slot in 0..slots {
            bench.met(slot, 5 + slot as u64, 5 + slot as u64);
        }
        bench.pass(TICK);
        // The worst of them.
        let expected: Vec<_> = (slots - most..slots).collect();
        assert_eq!(bench.out(), expected, "of {slots}");
    }
    let mut bench = Bench::new(3);
    bench.settings.max_share = 1.0;
    for slot in [0, 1] {
        bench.samples[slot].skip = Some(Skip::Unhealthy);
    }
    bench.fails(2);
    assert_eq!(bench.out(), [0; 0], "the others are down");
    bench.fails(2);
    for slot in [0, 1] {
        bench.samples[slot].skip = None;
    }
    bench.look();
    assert_eq!(
        bench.time_out(2),
        seconds(10),
        "nothing was held against it"
    );
}

#[test]
fn who_is_out_is_readmitted_when_the_others_go_down() {
    let mut bench = Bench::new(2);
    bench.fails(0);
    assert_eq!(bench.out(), [0]);
    bench.samples[1].skip = Some(Skip::Unhealthy);
    bench.look();
    assert_eq!(bench.out(), [0; 0]);
}

#[test]
fn the_next_generation_has_done_nothing_yet() {
    let mut bench = Bench::new(2);
    bench.fails(0);
    bench.samples[0].skip = None;
    bench.samples[0].backend = Arc::new(Backend {
        generation: 1,
        ejected: None,
        ..Backend::clone(&bench.samples[0].backend)
    });
    assert_eq!(bench.look(), []);
    bench.fails(0);
    assert_eq!(bench.time_out(0), seconds(10));
}

#[test]
fn without_settings_nobody_stays_out() {
    let mut bench = Bench::new(2);
    bench.fails(0);
    let verdicts = bench.outliers.step(None, &bench.samples, bench.now);
    assert_eq!(verdicts.len(), 1);
    assert_eq!((&*verdicts[0].slot, &verdicts[0].why), ("0", &None));
}

proptest! {
    /// Whatever happens: never more than the share, never the last, nobody for ever.
    #[test]
    fn ejections_are_bounded(
        slots in 1..8_usize,
        max_share in 0.0..=1.0_f64,
        failures in 1..6_u32,
        events in prop::collection::vec((0..8_usize, 0..20_u64, 0..20_u64, 0..30_000_u64), 0..60),
    ) {
        let mut bench = Bench::new(slots);
        bench.settings.max_share = max_share;
        bench.settings.failures = NonZeroU32::new(failures).unwrap();
        for (slot, tried, failed, millis) in events {
            bench.met(slot % slots, tried + failed, failed);
            bench.look();
            let most = ((max_share * slots as f64) as usize).max(1).min(slots - 1);
            prop_assert!(bench.out().len() <= most);
            prop_assert!(bench.out().len() < slots);
            bench.pass(Duration::from_millis(millis));
        }
        bench.pass(bench.settings.max_eject);
        prop_assert_eq!(bench.out().len(), 0);
    }
}
