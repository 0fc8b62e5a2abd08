//! Bulk, which goes through pipes: whatever the sizes and pauses, the bytes are the same, and ends,
//! resets and upgrades are what they are for any other stream.

use std::{fs, io, net::SocketAddr, path::Path, time::Duration};

use fastrand::Rng;
use socket2::SockRef;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{support::client::address_of_client, upgrade::Replaceable};

/// For streams of many megabytes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

const MIB: usize = 1 << 20;

/// A front with backends by TCP or by a Unix socket, which are the test itself.
struct Front {
    one: Replaceable,
    web: SocketAddr,
    backend: Backend,
    _folder: TempDir,
}

enum Backend {
    Tcp(TcpListener),
    Unix(UnixListener),
}

type Streams = (
    Box<dyn AsyncRead + Unpin + Send>,
    Box<dyn AsyncWrite + Unpin + Send>,
);

impl Backend {
    async fn accept(&self) -> Streams {
        match self {
            Self::Tcp(listener) => {
                let (read, write) = listener.accept().await.unwrap().0.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Unix(listener) => {
                let (read, write) = listener.accept().await.unwrap().0.into_split();
                (Box::new(read), Box::new(write))
            }
        }
    }
}

impl Front {
    async fn start(is_unix: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("app.sock");
        let (backend, address) = if is_unix {
            let backend = Backend::Unix(UnixListener::bind(&path).unwrap());
            (backend, format!("unix:{}", path.display()))
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            (Backend::Tcp(listener), address)
        };
        let one = Replaceable::serve(&format!(
            r#"
            threads = 2
            [listener.web]
            bind = "127.0.0.1:0"
            cluster = "app"
            [cluster.app]
            backends = ["{address}"]
            "#
        ));
        let web = one.homescar.address("web").await;
        Self {
            one,
            web,
            backend,
            _folder: folder,
        }
    }

    /// A connection: the client's end, and the backend's.
    async fn connect(&self, index: usize) -> (TcpStream, Streams) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address_of_client(index), 0).into()).unwrap();
        let client = socket.connect(self.web).await.unwrap();
        (client, self.backend.accept().await)
    }

    fn pipes(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.one.homescar.pid());
        let links = fs::read_dir(folder).unwrap().flatten();
        let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
        let is_pipe = |target: &Path| target.to_string_lossy().starts_with("pipe:");
        targets.filter(|target| is_pipe(target)).count()
    }
}

/// The byte at a place of a stream: its period is no multiple of anybody's buffer.
fn byte(at: usize, stream: u64) -> u8 {
    (at % 1_048_573 * 31 % 65_521 % 251) as u8 ^ stream as u8
}

fn chunk(at: usize, len: usize, stream: u64) -> Vec<u8> {
    (at..at + len).map(|at| byte(at, stream)).collect()
}

/// Small, middling and large, in runs, so that a stream is bulk and again is not.
fn some_size(rng: &mut Rng, kind: u8) -> usize {
    match kind {
        0 => rng.usize(1..200),
        1 => rng.usize(1..70_000),
        _ => rng.usize(300_000..2 * MIB),
    }
}

async fn now_and_then(rng: &mut Rng, one_of: u32) {
    if rng.u32(..one_of) == 0 {
        sleep(Duration::from_millis(rng.u64(1..30))).await;
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    total: usize,
    stream: u64,
    mut rng: Rng,
) -> io::Result<()> {
    let (mut at, mut kind, mut run) = (0, 2, 0);
    while at < total {
        if run == 0 {
            (kind, run) = (rng.u8(..3), rng.u32(1..12));
        }
        run -= 1;
        let len = some_size(&mut rng, kind).min(total - at);
        to.write_all(&chunk(at, len, stream)).await?;
        at += len;
        now_and_then(&mut rng, 6).await;
    }
    to.shutdown().await
}

/// Reads to the end; how much came, and how it ended.
async fn read(
    mut from: impl AsyncRead + Unpin,
    stream: u64,
    mut rng: Rng,
) -> (usize, io::Result<()>) {
    let (mut at, mut buffer) = (0, vec![0; 2 * MIB]);
    loop {
        let kind = rng.u8(1..3);
        let room = some_size(&mut rng, kind);
        let len = match from.read(&mut buffer[..room]).await {
            Ok(0) => return (at, Ok(())),
            Ok(len) => len,
            Err(error) => return (at, Err(error)),
        };
        let good = buffer[..len] == chunk(at, len, stream);
        assert!(good, "other bytes between {at} and {}", at + len);
        at += len;
        now_and_then(&mut rng, 40).await;
    }
}

/// Both ways at once, on many connections, through upgrades where they are asked for.
#[expect(clippy::print_stdout, reason = "it is shown when the test fails")]
async fn all_arrives(is_unix: bool, upgrades: usize) {
    let front = Front::start(is_unix).await;
    let before = front.pipes();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut tasks = JoinSet::new();
    for index in 0..6_u64 {
        let (client, (from_client, to_client)) = front.connect(index as usize).await;
        let (from_backend, to_backend) = client.into_split();
        let (up, down) = (rng.usize(MIB..16 * MIB), rng.usize(MIB..16 * MIB));
        let mut seeds = [(); 4].map(|()| rng.fork()).into_iter();
        let mut next = || seeds.next().unwrap();
        let writers = (
            write(to_backend, up, 2 * index, next()),
            write(to_client, down, 2 * index + 1, next()),
        );
        let readers = (
            read(from_client, 2 * index, next()),
            read(from_backend, 2 * index + 1, next()),
        );
        tasks.spawn(async move {
            let (wrote_up, wrote_down, (came_up, end_up), (came_down, end_down)) =
                tokio::join!(writers.0, writers.1, readers.0, readers.1);
            wrote_up.and(wrote_down).unwrap();
            end_up.and(end_down).unwrap();
            assert_eq!((came_up, came_down), (up, down), "the end came early");
        });
    }
    for _ in 0..upgrades {
        sleep(Duration::from_millis(150)).await;
        front.one.must_upgrade().await;
    }
    let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    timeout(LONG, all).await.expect("all arrives in time");
    assert!(front.pipes() > before, "nothing went through a pipe");
    assert!(front.pipes() <= before + 2 * 2 * 2, "pipes are left open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_over_tcp_arrives_whole() {
    all_arrives(false, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_over_a_unix_socket_arrives_whole() {
    all_arrives(true, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_whole_through_upgrades() {
    all_arrives(false, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_to_a_unix_socket_arrives_whole_through_upgrades() {
    all_arrives(true, 3).await;
}

/// Nobody takes the end of a stream that was cut for the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_in_the_middle_of_bulk_is_a_reset() {
    let front = Front::start(false).await;
    for index in 0..12 {
        let (client, (from_client, mut to_client)) = front.connect(index).await;
        let from = client.local_addr().unwrap();
        let mut rng = Rng::new();
        let some = rng.usize(4 * MIB..12 * MIB);
        let reader = tokio::spawn(read(from_client, 1, rng.fork()));
        // Down, too, until nobody takes any more. Then nothing is written there: of a reset the kernel
        // tells only once, be it who reads or who writes.
        let pause = Duration::from_millis(200);
        while timeout(pause, to_client.write(&[7; 65_536])).await.is_ok() {}
        let (mut back, mut client) = client.into_split();
        timeout(LONG, back.read_exact(&mut vec![0; some / 8]))
            .await
            .unwrap()
            .unwrap();
        timeout(LONG, client.write_all(&chunk(0, some, 1)))
            .await
            .unwrap()
            .unwrap();
        let client = back.reunite(client).unwrap();
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        let (came, end) = timeout(LONG, reader).await.unwrap().unwrap();
        let error = end.expect_err("it is no orderly end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(came <= some);
        let record = front.one.homescar.record_of(from).await;
        assert_eq!(
            (&record["by"], &record["reason"]),
            (&"client".into(), &"reset".into())
        );
        assert!(record["up"].as_u64().unwrap() >= came as u64);
        assert!(record["down"].as_u64().unwrap() >= (some / 8) as u64);
    }
}

/// Whoever finds no pipe is carried as everybody else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_at_once_than_there_are_pipes_is_copied() {
    let front = Front::start(false).await;
    let mut tasks = JoinSet::new();
    let total = 6 * MIB;
    let mut clients = Vec::new();
    for index in 0..80 {
        let (client, (from_client, to_client)) = front.connect(index).await;
        tasks.spawn(async move {
            write(to_client, total, index as u64, Rng::with_seed(index as u64))
                .await
                .unwrap();
        });
        clients.push((client, from_client));
    }
    // Nobody reads until nothing moves: each that has a pipe holds it.
    sleep(Duration::from_secs(1)).await;
    let held = front.pipes();
    for (index, (client, from)) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            let (came, end) = read(client, index as u64, Rng::new()).await;
            end.unwrap();
            assert_eq!(came, total);
            drop(from);
        });
    }
    let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
    timeout(LONG, all).await.expect("all arrives in time");
    assert!((20..=110).contains(&held), "{held} ends of pipes");
}
