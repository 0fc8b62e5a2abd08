//! What a table costs: to build, to look up, to fail over. See `README.md` beside this file.

use std::{hint::black_box, num::NonZeroU32, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use homescar::affinity::{AffinityKey, Table};

const SLOTS: [usize; 4] = [8, 64, 1_000, 10_000];

fn table(names: &[String], weight: NonZeroU32) -> Table {
    Table::new(0, names.iter().map(|name| (&**name, weight)))
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("affinity");
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group.sample_size(30);
    for slots in SLOTS {
        let names: Vec<_> = (0..slots).map(|index| format!("app/{index}")).collect();
        let table = table(&names, NonZeroU32::MIN);
        let mut next = 0_u32;
        let mut key = || {
            next = next.wrapping_add(1);
            AffinityKey::from_bits(black_box(next))
        };
        group.bench_function(BenchmarkId::new("build", slots), |b| {
            b.iter(|| self::table(black_box(&names), NonZeroU32::MIN));
        });
        group.bench_function(BenchmarkId::new("home", slots), |b| {
            b.iter(|| table.home(key()));
        });
        group.bench_function(BenchmarkId::new("second_choice", slots), |b| {
            b.iter(|| table.candidates(key()).nth(1));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
