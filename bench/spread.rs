//! How evenly hashes deal clients out, and whom they move: a simulation of a million clients, without
//! a socket, of the ways in which homescar and others choose. `bench/README.md` names them.
//!
//! `cargo bench --bench spread -- [--json FILE]`

#[path = "spread/hashes.rs"]
mod hashes;

use std::{error::Error, fs, net::Ipv4Addr, path::PathBuf};

use clap::Parser;
use serde::Serialize;

use self::hashes::{ALL, Hash};

const CLIENTS: u32 = 1_000_000;
const SLOTS: [usize; 3] = [4, 8, 64];

/// Simulates who is dealt out where.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to write all figures.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`, and not by `cargo test`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What came out for a hash and a number of slots; all are shares.
#[derive(Debug, Serialize)]
struct Sample {
    hash: &'static str,
    slots: usize,
    /// Of the mean.
    fullest: f64,
    emptiest: f64,
    /// Of the clients, on the mean over the slots that may leave; and the least that is possible.
    leaves: f64,
    ideal: f64,
    joins: f64,
    ideal_joins: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return Ok(());
    }
    let clients: Vec<Ipv4Addr> = clients();
    let mut samples = Vec::new();
    for slots in SLOTS {
        for hash in ALL {
            samples.push(simulate(hash, slots, &clients));
        }
    }
    print(&samples);
    if let Some(file) = arguments.json {
        let figures = serde_json::json!({ "clients": CLIENTS, "samples": samples });
        fs::write(file, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is its output")]
fn print(samples: &[Sample]) {
    for sample in samples {
        println!("{sample:?}");
    }
}

/// Addresses as they come: networks of which some bring many clients, most few.
fn clients() -> Vec<Ipv4Addr> {
    let mut random = fastrand::Rng::with_seed(1);
    let networks: Vec<u32> =
        std::iter::repeat_with(|| random.u32(0x0100_0000..0xdf00_0000) & !0xff)
            .take(100_000)
            .collect();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        // The square of a share favours the first.
        let share = random.f64() * random.f64();
        let network = networks[(share * networks.len() as f64) as usize];
        clients.push(Ipv4Addr::from_bits(network | random.u32(1..255)));
    }
    clients
}

fn simulate(hash: &Hash, slots: usize, clients: &[Ipv4Addr]) -> Sample {
    let names: Vec<String> = (0..slots).map(|slot| format!("app/{slot}")).collect();
    let all = (hash.build)(&names);
    let before: Vec<usize> = clients.iter().map(|client| all(*client)).collect();
    let mut counts = vec![0_u32; slots];
    for home in &before {
        counts[*home] += 1;
    }
    let mean = f64::from(CLIENTS) / slots as f64;
    let share = |count: Option<&u32>| count.copied().map_or(0.0, f64::from) / mean;
    // One of each quarter of the list leaves, in turn: some ways depend on which.
    let leaving = [0, slots / 4, slots / 2, slots - 1];
    let moved = leaving.map(|gone| moved_without(hash, &names, gone, clients, &before));
    let more: Vec<String> = (0..=slots).map(|slot| format!("app/{slot}")).collect();
    let with = (hash.build)(&more);
    let joined = clients.iter().zip(&before);
    let joined = joined
        .filter(|(client, home)| with(**client) != **home)
        .count();
    Sample {
        hash: hash.name,
        slots,
        fullest: share(counts.iter().max()),
        emptiest: share(counts.iter().min()),
        leaves: moved.iter().sum::<f64>() / moved.len() as f64,
        ideal: 1.0 / slots as f64,
        joins: joined as f64 / f64::from(CLIENTS),
        ideal_joins: 1.0 / (slots as f64 + 1.0),
    }
}

/// The share of clients that are elsewhere when one slot is gone.
fn moved_without(
    hash: &Hash,
    names: &[String],
    gone: usize,
    clients: &[Ipv4Addr],
    before: &[usize],
) -> f64 {
    let mut left = names.to_vec();
    left.remove(gone);
    let without = (hash.build)(&left);
    let moved = clients.iter().zip(before).filter(|(client, home)| {
        let now = without(**client);
        // Positions behind the one that is gone have moved up; slots have not.
        let now = now + usize::from(now >= gone);
        now != **home
    });
    moved.count() as f64 / clients.len() as f64
}
