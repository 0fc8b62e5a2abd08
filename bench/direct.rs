//! What direct mode costs beside the workers: Node alone, four of them behind homescar in both
//! modes, and four behind haproxy, measured in the same rounds. `bench/README.md` has the method.
//!
//! `cargo bench --bench direct -- [ROW…] [--rounds N]`

#[path = "direct/front.rs"]
mod front;
#[path = "proxy/machine.rs"]
#[expect(dead_code, reason = "the other benchmark needs more of it")]
mod machine;
#[path = "direct/program.rs"]
mod program;

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
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
};

/// A benchmark fails with a sentence for the person who started it.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Clients that work at the same time, each from an address of its own.
const CLIENTS: u8 = 32;

/// Measures what is between clients and workers.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; all when nothing is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Times that each row is measured with each front, the fronts taking turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each is measured, in seconds; half of it is warm-up before.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Given by `cargo bench`, and not by `cargo test`, which must not measure.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Row {
    /// A run of the kernel's program.
    Program,
    /// A connection, a request, its answer, the end.
    Crr,
    /// A request and its answer on a connection that stays.
    Rr,
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
        [] => &[Row::Program, Row::Crr, Row::Rr],
        rows => rows,
    };
    print(&format!("{}\n", machine::facts()?));
    for &row in rows {
        match row {
            Row::Program => program::measure(cpus, arguments.rounds)?,
            Row::Crr | Row::Rr => {
                let runtime = Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, measure(row, &arguments, cpus))?;
            }
        }
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

async fn measure(row: Row, arguments: &Arguments, cpus: Cpus) -> Outcome {
    let mut samples: BTreeMap<front::Kind, Vec<Sample>> = BTreeMap::new();
    for _ in 0..arguments.rounds {
        for kind in front::Kind::ALL {
            let front = Front::start(kind, cpus)?;
            front.is_there().await?;
            work(row, &front, arguments.seconds / 2.0).await?;
            let (spent, clients) = (front.spent()?, Usage::of_this_thread()?);
            let units = work(row, &front, arguments.seconds).await?;
            let Spent { between, workers } = front.spent()?.since(spent);
            let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / units as f64;
            samples.entry(kind).or_default().push(Sample {
                between: each(between),
                workers: each(workers),
                clients: each(Usage::of_this_thread()?.since(clients).cpu),
            });
        }
    }
    let unit = match row {
        Row::Crr => "a short connection",
        _ => "a request",
    };
    print(&format!(
        "| {unit}, CPU in µs | what is between | workers | clients | all |\n|---|---|---|---|---|"
    ));
    for (kind, of) in &samples {
        let row = [
            |s: &Sample| s.between,
            |s: &Sample| s.workers,
            |s: &Sample| s.clients,
            |s: &Sample| s.between + s.workers + s.clients,
        ]
        .map(|part| spread(of.iter().map(part).collect()));
        print(&format!("| {} | {} |", kind.name(), row.join(" | ")));
    }
    print("");
    Ok(())
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

/// Does so much of it in this time.
async fn work(row: Row, front: &Front, seconds: f64) -> Outcome<u64> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let (from, to) = (Ipv4Addr::new(127, 1, 7, client + 1), front.address(client));
        clients.push(tokio::task::spawn_local(async move {
            match row {
                Row::Crr => connections(from, to, until).await,
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
    while Instant::now() < until {
        let mut stream = connect(from, to).await?;
        ask(&mut stream).await?;
        // No TIME_WAIT, of which there would soon be too many.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        units += 1;
    }
    Ok(units)
}

async fn requests(from: Ipv4Addr, to: SocketAddr, until: Instant) -> io::Result<u64> {
    let mut stream = connect(from, to).await?;
    let mut units = 0;
    while Instant::now() < until {
        ask(&mut stream).await?;
        units += 1;
    }
    Ok(units)
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
