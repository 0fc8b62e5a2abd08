//! What direct mode costs beside the workers: Node alone, four of them behind homescar in both
//! modes, and four behind haproxy, nginx and Envoy, measured in the same rounds. `bench/README.md` has
//! the method.
//!
//! `cargo bench --bench direct -- [ROW…] [--rounds N] [--json FILE]`

#[path = "direct/front.rs"]
mod front;
#[path = "proxy/machine.rs"]
#[expect(dead_code, reason = "the other benchmark needs more of it")]
mod machine;
#[path = "proxy/peer.rs"]
#[expect(dead_code, reason = "the other benchmark needs more of it")]
mod peer;
#[path = "direct/program.rs"]
mod program;

use std::{
    collections::BTreeMap,
    error::Error,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Parser;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    runtime::Builder,
    task::LocalSet,
    time::Instant,
};

use self::{
    front::{Front, Spent},
    machine::{Cpus, Usage},
    peer::Programs,
};

/// A benchmark fails with a sentence for the person who started it.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Clients that work at the same time, each from an address of its own.
const CLIENTS: u8 = 32;

/// Warm-up, in times of what is measured: until all four have compiled what they do, with one CPU for it.
/// Without it, a request costs a worker two to six times as much, and differs as much from round to round.
const WARM_UP: f64 = 4.0;

/// Measures what is between clients and workers.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; all when nothing is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Times that each row is measured with each front, the fronts taking turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each is measured, in seconds; four times as long is warm-up before.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where to write all figures.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
    /// Given by `cargo bench`, and not by `cargo test`, which must not measure.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Row {
    /// A run of the kernel's program.
    Program,
    /// A connection, a request, its answer, the end.
    DirectCrr,
    /// A request and its answer on a connection that stays.
    DirectHttpRr,
}

fn main() -> Outcome {
    let arguments = Arguments::parse();
    if !arguments.bench {
        return Ok(());
    }
    machine::raise_descriptor_limit()?;
    let cpus = Cpus::choose()?;
    cpus.take_load()?;
    let rows = match &*arguments.rows {
        [] => &[Row::Program, Row::DirectCrr, Row::DirectHttpRr],
        rows => rows,
    };
    print(&format!("{}\n", machine::facts()?));
    let mut figures = Vec::new();
    for &row in rows {
        match row {
            Row::Program => program::measure(cpus, arguments.rounds)?,
            Row::DirectCrr | Row::DirectHttpRr => {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                let measured =
                    LocalSet::new().block_on(&runtime, measure(row, &arguments, cpus))?;
                figures.extend(measured);
            }
        }
    }
    if let Some(file) = &arguments.json {
        let [plain, barred] = [front::Kind::Four, front::Kind::Direct].map(front::Kind::name);
        let figures = serde_json::json!({ "plain": plain, "barred": barred, "samples": figures });
        fs::write(file, serde_json::to_string_pretty(&figures)?)?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is its output")]
fn print(line: &str) {
    println!("{line}");
}

/// CPU for each unit of work, in microseconds, of one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    between: f64,
    workers: f64,
    clients: f64,
}

impl Sample {
    fn all(&self) -> f64 {
        self.between + self.workers + self.clients
    }
}

impl Row {
    const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::DirectCrr => "direct-crr",
            Self::DirectHttpRr => "direct-http-rr",
        }
    }
}

async fn measure(row: Row, arguments: &Arguments, cpus: Cpus) -> Outcome<Vec<serde_json::Value>> {
    let mut samples: BTreeMap<front::Kind, Vec<Sample>> = BTreeMap::new();
    let mut figures = Vec::new();
    for round in 1..=arguments.rounds {
        for kind in front::Kind::ALL {
            let front = Front::start(kind, &arguments.programs, cpus).await?;
            front.is_there().await?;
            // All have started when everybody was served.
            work(row, &front, 0.0).await?;
            work(row, &front, arguments.seconds * WARM_UP).await?;
            let (spent, clients) = (front.spent()?, Usage::of_this_thread()?);
            let units = work(row, &front, arguments.seconds).await?;
            let Spent { between, workers } = front.spent()?.since(spent);
            let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / units as f64;
            let sample = Sample {
                between: each(between),
                workers: each(workers),
                clients: each(Usage::of_this_thread()?.since(clients).cpu),
            };
            samples.entry(kind).or_default().push(sample);
            figures.push(serde_json::json!({
                "row": row.name(), "front": kind.name(), "round": round, "between": sample.between,
                "workers": sample.workers, "clients": sample.clients, "all": sample.all(),
            }));
        }
    }
    print_table(row, &samples);
    Ok(figures)
}

fn print_table(row: Row, samples: &BTreeMap<front::Kind, Vec<Sample>>) {
    let unit = match row {
        Row::DirectCrr => "a short connection",
        _ => "a request",
    };
    print(&format!(
        "| {unit}, CPU in µs | what is between | workers | clients | all |\n|---|---|---|---|---|"
    ));
    for (kind, of) in samples {
        let row = [
            |s: &Sample| s.between,
            |s: &Sample| s.workers,
            |s: &Sample| s.clients,
            Sample::all,
        ]
        .map(|part| spread(of.iter().map(part).collect()));
        print(&format!("| {} | {} |", kind.name(), row.join(" | ")));
    }
    print("");
}

/// Median, and least to greatest.
fn spread(mut of: Vec<f64>) -> String {
    of.sort_by(f64::total_cmp);
    let [least, .., greatest] = of[..] else {
        return of
            .first()
            .map_or_else(String::new, |one| format!("{one:.2}"));
    };
    format!("{:.2} ({least:.2}–{greatest:.2})", of[of.len() / 2])
}

/// Does so much of it in this time; each client does it once at least.
async fn work(row: Row, front: &Front, seconds: f64) -> Outcome<u64> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let from = Ipv4Addr::new(127, 1, 7, client + 1);
        let to = front.address(from);
        clients.push(tokio::task::spawn_local(async move {
            match row {
                Row::DirectCrr => connections(from, to, until).await,
                _ => requests(from, to, until).await,
            }
        }));
    }
    let mut units = 0;
    for client in clients {
        units += client.await??;
    }
    Ok(units)
}

async fn connections(from: Ipv4Addr, to: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut units = 0;
    loop {
        let mut stream = connect(from, to).await?;
        ask(&mut stream).await?;
        // No TIME_WAIT, of which there would soon be too many.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        units += 1;
        if Instant::now() >= until {
            return Ok(units);
        }
    }
}

async fn requests(from: Ipv4Addr, to: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = connect(from, to).await?;
    let mut units = 0;
    loop {
        ask(&mut stream).await?;
        units += 1;
        if Instant::now() >= until {
            return Ok(units);
        }
    }
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// A request, and its whole answer.
async fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
        .await?;
    let mut answer = [0; 1024];
    let mut read = 0;
    while !answer[..read].ends_with(b"hello\n") && !answer[..read].ends_with(b"0\r\n\r\n") {
        match stream.read(&mut answer[read..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
    }
    Ok(())
}
