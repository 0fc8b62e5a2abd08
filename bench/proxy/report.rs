//! What was measured, as a table in Markdown.

use std::time::Duration;

use super::{
    machine::Usage,
    peer::{Kind, Peer},
};

/// From this share of its CPU on, a side could not have done more.
const SATURATED: f64 = 0.95;

/// What happened while the proxy was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Units of work that were done.
    pub(crate) units: u64,
    /// What the proxy used.
    pub(crate) proxy: Usage,
    /// What the clients and backends used.
    pub(crate) load: Usage,
    /// How long it took.
    pub(crate) wall: Duration,
}

impl Load {
    /// The proxy's CPU for so many units, in so many parts of a second.
    pub(crate) fn sample(
        self,
        row: &str,
        unit: &'static str,
        units: f64,
        parts_of_second: f64,
    ) -> Sample {
        let done = self.units as f64 / units;
        let cost = self.proxy.cpu.as_secs_f64() * parts_of_second / done;
        Sample {
            load: Some((done, self)),
            ..Sample::new(row.to_owned(), unit, cost)
        }
    }
}

/// One figure of one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    row: String,
    unit: &'static str,
    cost: f64,
    load: Option<(f64, Load)>,
    note: Option<String>,
}

impl Sample {
    pub(crate) const fn new(row: String, unit: &'static str, cost: f64) -> Self {
        Self {
            row,
            unit,
            cost,
            load: None,
            note: None,
        }
    }

    /// With something to say below the table.
    pub(crate) fn with_note(self, note: String) -> Self {
        Self {
            note: Some(note),
            ..self
        }
    }
}

/// All figures of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<(Kind, Sample)>);

impl Report {
    pub(crate) fn add(&mut self, peer: Kind, samples: Vec<Sample>) {
        self.0
            .extend(samples.into_iter().map(|sample| (peer, sample)));
    }

    #[expect(clippy::print_stdout, reason = "the table is what this program is for")]
    pub(crate) fn print(&self, facts: &str, peers: &[Peer]) {
        println!("{facts}\n");
        for peer in peers {
            println!("- {}: {}", peer.kind.name(), peer.version);
        }
        println!(
            "\n| row | unit | peer | median (min–max) | ÷ haproxy (min–max) | a second | proxy's CPU | load's CPU | kept waiting | full |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for (row, unit) in self.rows() {
            for peer in peers {
                let samples = self.of(row, peer.kind);
                if !samples.is_empty() {
                    println!(
                        "| {row} | {unit} | {} |{}",
                        peer.kind.name(),
                        self.line(&samples)
                    );
                }
            }
        }
        for (row, _) in self.rows() {
            for peer in peers {
                if let Some(note) = self
                    .of(row, peer.kind)
                    .last()
                    .and_then(|it| it.note.as_ref())
                {
                    println!("\n{row}, {}: {note}", peer.kind.name());
                }
            }
        }
    }

    /// Rows in the order in which they were measured.
    fn rows(&self) -> Vec<(&str, &str)> {
        let mut rows = Vec::new();
        for (_, sample) in &self.0 {
            let row = (sample.row.as_str(), sample.unit);
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows
    }

    /// The samples of a row with a peer, a round each.
    fn of(&self, row: &str, peer: Kind) -> Vec<&Sample> {
        let of_both = |(kind, sample): &&(Kind, Sample)| *kind == peer && sample.row == row;
        self.0
            .iter()
            .filter(of_both)
            .map(|(_, sample)| sample)
            .collect()
    }

    /// The cells of a peer's line, behind its name.
    fn line(&self, samples: &[&Sample]) -> String {
        let costs = Spread::of(samples.iter().map(|sample| sample.cost));
        // A round's ratio is to haproxy in the same round.
        let haproxy = self.of(&samples[0].row, Kind::Haproxy);
        let ratios = samples
            .iter()
            .zip(&haproxy)
            .map(|(ours, theirs)| ours.cost / theirs.cost);
        let ratio = if haproxy.is_empty() {
            "–".to_owned()
        } else {
            Spread::of(ratios).show(|ratio| format!("{ratio:.2}"))
        };
        let cost = costs.show(significant);
        let loads: Vec<(f64, Load)> = samples.iter().filter_map(|sample| sample.load).collect();
        if loads.is_empty() {
            return format!(" {cost} | {ratio} | | | | | |");
        }
        let median = |of: &dyn Fn(&(f64, Load)) -> f64| Spread::of(loads.iter().map(of)).median;
        let rate = median(&|(done, load)| done / load.wall.as_secs_f64());
        let proxy = median(&|(_, load)| load.proxy.busy(load.wall));
        let clients = median(&|(_, load)| load.load.busy(load.wall));
        let waiting = median(&|(_, load)| {
            load.proxy
                .kept_waiting(load.wall)
                .max(load.load.kept_waiting(load.wall))
        });
        let full = match (proxy >= SATURATED, clients >= SATURATED) {
            (true, true) => "both",
            (true, false) => "proxy",
            (false, true) => "load",
            (false, false) => "neither",
        };
        let [proxy, clients, waiting] = [proxy, clients, waiting].map(percent);
        let rate = significant(rate);
        format!(" {cost} | {ratio} | {rate} | {proxy} | {clients} | {waiting} | {full} |")
    }
}

/// The middle of some figures, and how far they go.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of at least one figure.
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (last, half) = (sorted.len() - 1, sorted.len() / 2);
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Self {
            median,
            min: sorted[0],
            max: sorted[last],
        }
    }

    fn show(self, figure: impl Fn(f64) -> String) -> String {
        format!(
            "{} ({}–{})",
            figure(self.median),
            figure(self.min),
            figure(self.max)
        )
    }
}

/// With about three digits that mean something.
fn significant(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
