//! The instructions of the parts that every connection, request and frame goes through, counted by
//! callgrind and compared with committed figures: a guard that no noise of a machine can fool.
//!
//! `bench/counts [--write]` builds and runs it. Each part is run twice under valgrind, the second time with
//! so many units more; what is counted more, divided by those, is what a unit costs.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::Path,
    process::{Command, ExitCode},
};

use homescar::{
    affinity::{AffinityKey, Masks, Secrets, SlotId, Table, Token},
    cluster::{Asker, Snapshot},
    config::{self, Address, ProxyVersion, Source, StaticBackend},
    proxy::{
        counts,
        proxy_protocol::{MAX_WRITTEN, parse, write},
    },
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The committed figures.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/counts.json");
/// What a unit may cost more than committed: compilers differ a little, and so do neighbours in a binary.
const TOLERANCE: f64 = 0.05;
/// And by so many instructions at any rate, where 5 % are next to none.
const SLACK: f64 = 10.0;

const WARM: u32 = 50;
const UNITS: u32 = 400;

const REQUEST: &[u8] = b"GET /cart/items?page=2 HTTP/1.1\r\nHost: shop.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\nCookie: theme=dark; session=0123456789abcdef\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\
    Cache-Control: no-store\r\nDate: Thu, 26 Nov 2026 19:00:00 GMT\r\nContent-Length: 5120\r\n\
    ETag: W/\"1400-5kR\"\r\nVary: Accept-Encoding\r\n\r\n";

/// A part: its name, and what makes it ready and returns its unit.
type Part = (&'static str, fn() -> Box<dyn FnMut(u32)>);

const PARTS: [Part; 13] = [
    ("key of an address", key),
    ("home of 8 slots", || home(8)),
    ("home of 64 slots", || home(64)),
    ("home of 1,000 slots", || home(1000)),
    ("table of 64 slots", build),
    ("route, 8 slots", || route(8)),
    ("route, 64 slots", || route(64)),
    ("PROXY header v1, read", || proxy_header(ProxyVersion::V1)),
    ("PROXY header v2, read", || proxy_header(ProxyVersion::V2)),
    ("cookie, checked", cookie),
    ("request head, read and written on", request),
    ("request and response head", response),
    ("100 WebSocket frames", frames),
];

fn main() -> Outcome<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &*words {
        [part, units] => {
            let found = PARTS.iter().find(|(name, _)| name == part);
            let (_, make_ready) = found.ok_or("no such part")?;
            let mut unit = make_ready();
            for number in 0..units.parse()? {
                unit(black_box(number));
            }
            Ok(ExitCode::SUCCESS)
        }
        [] => compare(false),
        [word] if word == "--write" => compare(true),
        _ => Err("usage: counts [--write]".into()),
    }
}

#[expect(clippy::print_stdout, reason = "the table is its output")]
fn compare(writes: bool) -> Outcome<ExitCode> {
    let committed: BTreeMap<String, f64> = match fs::read_to_string(FIGURES) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) if writes => BTreeMap::new(),
        Err(error) => return Err(format!("{FIGURES}: {error}").into()),
    };
    let mut counted = BTreeMap::new();
    let mut failed = 0;
    for (part, _) in PARTS {
        let more = instructions(part, WARM + UNITS)? - instructions(part, WARM)?;
        let each = (more / f64::from(UNITS)).round();
        counted.insert(part.to_owned(), each);
        let verdict = match committed.get(part) {
            None => "not committed".to_owned(),
            Some(&was) if each > was * (1.0 + TOLERANCE) + SLACK => {
                failed += 1;
                format!("was {was}: MORE")
            }
            Some(&was) if each < was * (1.0 - TOLERANCE) - SLACK => format!("was {was}: fewer"),
            Some(was) => format!("was {was}"),
        };
        println!("{part:<36} {each:>8} instructions, {verdict}");
    }
    if writes {
        fs::write(FIGURES, serde_json::to_string_pretty(&counted)? + "\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if failed > 0 {
        println!(
            "{failed} parts cost more than bench/counts.json says. If that is meant, say why and \
             commit what `bench/counts --write` writes."
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// All that a run of a part executes.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no supervisor to spawn with"
)]
fn instructions(part: &str, units: u32) -> Outcome<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([part, &units.to_string()])
        // Neither the environment nor the log's colours are part of it.
        .env_clear()
        .env("PATH", std::env::var("PATH")?)
        .output()
        .map_err(|error| format!("cannot run valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match count {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!(
            "{} of {part} failed: {said}",
            Path::new("valgrind").display()
        )
        .into()),
    }
}

fn names(slots: usize) -> Vec<String> {
    (0..slots).map(|slot| format!("app/{slot}")).collect()
}

fn table(names: &[String]) -> Table {
    Table::new(0, names.iter().map(|name| (&**name, NonZeroU32::MIN)))
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | number).into()
}

fn key() -> Box<dyn FnMut(u32)> {
    let masks = Masks { v4: 32, v6: 64 };
    Box::new(move |number| {
        black_box(AffinityKey::from_address(
            black_box(address(number)),
            masks,
            0,
        ));
    })
}

fn home(slots: usize) -> Box<dyn FnMut(u32)> {
    let table = table(&names(slots));
    Box::new(move |number| {
        black_box(table.home(AffinityKey::from_bits(number)));
    })
}

fn build() -> Box<dyn FnMut(u32)> {
    let names = names(64);
    Box::new(move |_| {
        black_box(table(black_box(&names)));
    })
}

fn route(slots: usize) -> Box<dyn FnMut(u32)> {
    let backend = |slot: String| StaticBackend {
        name: slot.into(),
        address: Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))),
        weight: NonZeroU32::MIN,
    };
    let backends = names(slots).into_iter().map(backend).collect();
    let snapshot = Snapshot::configured(&config::Cluster::new("app", Source::Static(backends)));
    Box::new(move |number| {
        let asker = Asker::new(AffinityKey::from_bits(number));
        black_box(snapshot.route(&asker, &snapshot.live()));
    })
}

fn proxy_header(version: ProxyVersion) -> Box<dyn FnMut(u32)> {
    let [from, to] = [1, 2].map(|number| SocketAddr::from((address(number), 40_000)));
    let mut buffer = [0; MAX_WRITTEN];
    let header = write(version, &mut buffer, Some(from), Some(to)).to_vec();
    Box::new(move |_| {
        black_box(parse(black_box(&header))).expect("it is a header");
    })
}

fn cookie() -> Box<dyn FnMut(u32)> {
    let secrets = Secrets::random(&[7; 32], "app");
    let text = secrets.sign(Token {
        slot: SlotId::of("app/0"),
        generation: 1,
        expires: u64::MAX,
    });
    Box::new(move |_| {
        black_box(secrets.read(black_box(text.as_bytes()), 1)).expect("it is a token");
    })
}

fn request() -> Box<dyn FnMut(u32)> {
    let mut out = Vec::with_capacity(4096);
    Box::new(move |_| {
        assert_ne!(counts::request(black_box(REQUEST), &mut out), 0);
    })
}

fn response() -> Box<dyn FnMut(u32)> {
    let mut out = Vec::with_capacity(4096);
    Box::new(move |_| {
        let len = counts::response(black_box(REQUEST), black_box(RESPONSE), &mut out);
        assert_ne!(len, 0);
    })
}

fn frames() -> Box<dyn FnMut(u32)> {
    let frame = [&[0x82, 0x80 | 64, 1, 2, 3, 4], &[0x55; 64][..]].concat();
    let bytes = frame.repeat(100);
    Box::new(move |_| {
        assert_eq!(counts::frames(black_box(&bytes)), 100);
    })
}
