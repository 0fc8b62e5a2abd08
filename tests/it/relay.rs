//! What is carried, and how it ends: half-close, resets, back-pressure, timeouts, failover.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener},
    time::{Instant, timeout},
};

use crate::support::{
    client::{Client, address_of_client, is_turned_away},
    homescar::{Homescar, SOON, descriptors, eventually, resident_kib},
};

/// A front with one static backend: the listener of the test itself.
async fn front(options: &str) -> (Homescar, SocketAddr, TcpListener) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        {options}
        [cluster.app]
        backends = ["{}"]
        "#,
        backend.local_addr().unwrap()
    ));
    let address = homescar.address("web").await;
    (homescar, address, backend)
}

async fn accept(backend: &TcpListener) -> TcpStream {
    timeout(SOON, backend.accept())
        .await
        .expect("a connection within the deadline")
        .unwrap()
        .0
}

async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .expect("an end within the deadline")?;
    Ok(bytes)
}

fn is_reset(result: &io::Result<Vec<u8>>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_client_that_has_said_all_still_hears_the_answer() {
    let (homescar, address, backend) = front("").await;
    let mut client = Client::connect(address).await.unwrap();
    client.send("question").await.unwrap();
    client.shutdown().await.unwrap();

    let mut server = accept(&backend).await;
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"question");
    server.write_all(b"answer after the end").await.unwrap();
    drop(server);

    assert_eq!(client.rest().await.unwrap(), b"answer after the end");
    let record = homescar.record_of(client.local_addr()).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"client".into(), &"closed".into())
    );
    assert_eq!((&record["up"], &record["down"]), (&8.into(), &20.into()));
}

#[tokio::test]
async fn a_backend_that_has_said_all_still_hears_the_client() {
    let (homescar, address, backend) = front("").await;
    let mut client = Client::connect(address).await.unwrap();
    let mut server = accept(&backend).await;
    server.write_all(b"bye").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(client.rest().await.unwrap(), b"bye");

    client.send("last words").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await.unwrap(), b"last words");
    let record = homescar.record_of(client.local_addr()).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"backend".into(), &"closed".into())
    );
}

#[tokio::test]
async fn a_reset_of_the_client_resets_the_backend() {
    let (homescar, address, backend) = front("").await;
    let mut client = Client::connect(address).await.unwrap();
    client.send("x").await.unwrap();
    let mut server = accept(&backend).await;
    server.read_exact(&mut [0; 1]).await.unwrap();
    let from = client.local_addr();
    client.reset();
    assert!(is_reset(&read_to_end(&mut server).await));
    let record = homescar.record_of(from).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"client".into(), &"reset".into())
    );
}

#[tokio::test]
async fn a_reset_of_the_backend_resets_the_client() {
    let (homescar, address, backend) = front("").await;
    let mut client = Client::connect(address).await.unwrap();
    client.send("x").await.unwrap();
    let mut server = accept(&backend).await;
    server.read_exact(&mut [0; 1]).await.unwrap();
    socket2::SockRef::from(&server)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(server);
    assert!(is_reset(&client.rest().await));
    let record = homescar.record_of(client.local_addr()).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"backend".into(), &"reset".into())
    );
}

/// While the backend takes nothing, its client is not read from; it must be seen to go all the same.
#[tokio::test]
async fn a_reset_behind_a_blocked_direction_is_noticed() {
    let (homescar, address, backend) = front("").await;
    let mut client = Client::connect(address).await.unwrap();
    let server = accept(&backend).await;
    let chunk = vec![0; 1 << 20];
    // Until every buffer on the way is full.
    while timeout(
        Duration::from_millis(300),
        client.stream.get_mut().write_all(&chunk),
    )
    .await
    .is_ok()
    {}
    let from = client.local_addr();
    client.reset();
    let record = homescar.record_of(from).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&"client".into(), &"reset".into())
    );
    drop(server);
}

/// 64 MiB each way, through readers that are slow to begin: the bytes are the same, and what
/// homescar keeps is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_no_memory() {
    const TOTAL: u64 = 64 << 20;
    let (homescar, address, backend) = front("").await;
    // Warm, so that what the first connection needs is not counted.
    drop(Client::connect(address).await.unwrap());
    drop(accept(&backend).await);

    let client = Client::connect(address).await.unwrap().stream.into_inner();
    let server = accept(&backend).await;
    let before = resident_kib(homescar.pid());
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let writers = [
        tokio::spawn(write_pattern(client_write, TOTAL, 1)),
        tokio::spawn(write_pattern(server_write, TOTAL, 2)),
    ];
    // Nobody reads until nothing moves any more: every buffer is full.
    let mut seen = u64::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = socket_queues(address);
        if now == seen {
            break;
        }
        seen = now;
    }
    let while_blocked = resident_kib(homescar.pid());
    let readers = [
        tokio::spawn(read_pattern(server_read, TOTAL, 1)),
        tokio::spawn(read_pattern(client_read, TOTAL, 2)),
    ];
    for writer in writers {
        timeout(Duration::from_secs(60), writer)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    for reader in readers {
        timeout(Duration::from_secs(60), reader)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    let after = resident_kib(homescar.pid());
    let grown = while_blocked.max(after).saturating_sub(before);
    assert!(grown < 8 * 1024, "memory grew by {grown} KiB");
}

/// The length of all queues of sockets with this local port, from /proc/net/tcp.
fn socket_queues(address: SocketAddr) -> u64 {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of_port = table.lines().filter(|line| line.contains(&port));
    let queues = of_port.filter_map(|line| line.split_whitespace().nth(4)?.split_once(':'));
    queues
        .map(|(tx, rx)| u64::from_str_radix(tx, 16).unwrap() + u64::from_str_radix(rx, 16).unwrap())
        .sum()
}

fn pattern(at: u64, stream: u64) -> u8 {
    ((at * 31 + at / 65_521 + stream * 7) % 251) as u8
}

async fn write_pattern(
    mut to: impl tokio::io::AsyncWrite + Unpin,
    total: u64,
    stream: u64,
) -> io::Result<()> {
    let mut at = 0;
    while at < total {
        let chunk: Vec<u8> = (at..(at + 65_536).min(total))
            .map(|at| pattern(at, stream))
            .collect();
        to.write_all(&chunk).await?;
        at += chunk.len() as u64;
    }
    to.shutdown().await
}

async fn read_pattern(
    mut from: impl tokio::io::AsyncRead + Unpin,
    total: u64,
    stream: u64,
) -> io::Result<()> {
    let (mut at, mut buffer) = (0, vec![0; 65_536]);
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            assert_eq!(at, total, "the end came early");
            return Ok(());
        }
        for byte in &buffer[..n] {
            assert_eq!(*byte, pattern(at, stream), "byte {at} of stream {stream}");
            at += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_connections_leave_no_descriptor_behind() {
    let (homescar, address, backend) = front("").await;
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = backend.accept().await.unwrap();
            tokio::spawn(async move {
                let _gone = stream.write_all(b"hello").await;
                let _gone = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let open_and_close = async |index: usize| {
        let from = address_of_client(index % 500);
        let mut client = Client::connect_from(from, address).await.unwrap();
        let mut hello = [0; 5];
        timeout(SOON, client.stream.read_exact(&mut hello))
            .await
            .unwrap()
            .unwrap();
        if index.is_multiple_of(2) {
            client.reset();
        }
    };
    open_and_close(0).await;
    eventually("the first is gone", SOON, || homescar.records().len() == 1).await;
    let before = descriptors(homescar.pid());
    for index in 0..5000 {
        open_and_close(index).await;
    }
    eventually("all are recorded", SOON, || {
        homescar.records().len() == 5001
    })
    .await;
    eventually("no descriptor is left", SOON, || {
        descriptors(homescar.pid()) <= before
    })
    .await;
    server.abort();
}

#[tokio::test]
async fn an_idle_connection_is_ended_and_a_busy_one_is_not() {
    let (homescar, address, backend) = front("timeouts = { idle = \"600ms\" }").await;
    let mut busy = Client::connect(address).await.unwrap();
    let mut busy_server = accept(&backend).await;
    let mut idle = Client::connect(address).await.unwrap();
    let _idle_server = accept(&backend).await;
    let began = Instant::now();
    let ended = tokio::spawn(async move {
        let rest = idle.rest().await;
        (rest, idle.local_addr(), began.elapsed())
    });
    while !ended.is_finished() {
        busy.send("x").await.unwrap();
        busy_server.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (rest, from, after) = ended.await.unwrap();
    assert_eq!(rest.unwrap(), b"");
    assert!(after >= Duration::from_millis(600), "ended after {after:?}");
    assert_eq!(homescar.record_of(from).await["reason"], "idle_timeout");
    busy.send("still here").await.unwrap();
    busy_server.read_exact(&mut [0; 10]).await.unwrap();
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over_before_a_byte_is_sent() {
    // Bound and not listened on: nobody else can take the port meanwhile.
    let dead = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    dead.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let dead_address = dead.local_addr().unwrap().as_socket().unwrap();
    let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        passive = "off"
        backends = [{{ name = "dead", address = "{dead_address}" }}, {{ name = "alive", address = "{}" }}]
        "#,
        alive.local_addr().unwrap()
    ));
    let address = homescar.address("web").await;
    let mut passed_over = 0;
    for index in 0..40 {
        let mut client = Client::connect_from(address_of_client(index), address)
            .await
            .unwrap();
        let mut server = accept(&alive).await;
        client.send("hello").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut server).await.unwrap(), b"hello");
        drop(server);
        assert_eq!(client.rest().await.unwrap(), b"");
        let record = homescar.record_of(client.local_addr()).await;
        assert_eq!(record["slot"], "alive");
        if record["passed"] == "dead" {
            assert_eq!(record["because"], "connect_failed");
            passed_over += 1;
        }
    }
    assert!(
        (8..=32).contains(&passed_over),
        "{passed_over} of 40 clients have the dead slot as home"
    );
}

#[tokio::test]
async fn nobody_there_is_a_reset_and_a_record() {
    let (homescar, address, backend) = front("").await;
    drop(backend);
    is_turned_away(address_of_client(1), address).await;
    let failed = |line: &serde_json::Value| line["reason"] == "connect_failed";
    let record = homescar.line("the failure", failed).await;
    assert_eq!(
        (&record["by"], &record["up"]),
        (&"backend".into(), &0.into())
    );
}

#[tokio::test]
async fn a_unix_socket_is_a_backend_like_any_other() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("app.sock");
    let backend = UnixListener::bind(&path).unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["unix:{}"]
        "#,
        path.display()
    ));
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.send("to a path").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = timeout(SOON, backend.accept()).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    server.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"to a path");
    server.write_all(b"and back").await.unwrap();
    drop(server);
    assert_eq!(client.rest().await.unwrap(), b"and back");
}

#[tokio::test]
async fn limits_refuse_what_is_too_much_and_nothing_else() {
    let (homescar, address, backend) = front("limits = { connections = 3, per_client = 2 }").await;
    let [a, b, c] = [
        address_of_client(1),
        address_of_client(2),
        address_of_client(3),
    ];
    let connect = async |from| {
        let mut client = Client::connect_from(from, address).await.unwrap();
        client.send("x").await.unwrap();
        client
    };
    let first = connect(a).await;
    let server = accept(&backend).await;
    let _second = connect(a).await;
    let _server = accept(&backend).await;
    is_turned_away(a, address).await;
    homescar
        .line("the refusal", |line| line["reason"] == "limit_client")
        .await;

    let _other = connect(b).await;
    let _server_of_other = accept(&backend).await;
    is_turned_away(c, address).await;
    homescar
        .line("the refusal", |line| line["reason"] == "limit_listener")
        .await;

    // One goes, one may come.
    let from = first.local_addr();
    drop((first, server));
    homescar.record_of(from).await;
    let _next = connect(a).await;
    let _server_of_next = accept(&backend).await;
}

#[tokio::test]
async fn the_global_limit_holds_over_listeners() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        limits = {{ connections = 2 }}
        [listener.one]
        bind = "127.0.0.1:0"
        cluster = "app"
        [listener.two]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["{}"]
        "#,
        backend.local_addr().unwrap()
    ));
    let [one, two] = [homescar.address("one").await, homescar.address("two").await];
    let _first = Client::connect(one).await.unwrap();
    let _first_server = accept(&backend).await;
    let _second = Client::connect(two).await.unwrap();
    let _second_server = accept(&backend).await;
    is_turned_away(address_of_client(1), one).await;
    homescar
        .line("the refusal", |line| line["reason"] == "limit_global")
        .await;
}

#[tokio::test]
async fn a_unix_backend_whose_queue_is_full_is_waited_for() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("app.sock");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    socket.set_nonblocking(true).unwrap();
    let backend = UnixListener::from_std(socket.into()).unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["unix:{}"]
        timeouts = {{ connect = "20s" }}
        "#,
        path.display()
    ));
    let web = homescar.address("web").await;
    let mut in_queue = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut client = Client::connect(web).await.unwrap();
    client.send("hello").await.unwrap();
    // It is not refused while the queue is full …
    let refused = timeout(Duration::from_millis(300), client.rest()).await;
    assert!(refused.is_err(), "{refused:?}");
    // … and served afterwards.
    let (first, _) = timeout(SOON, backend.accept()).await.unwrap().unwrap();
    drop(first);
    let _ended = in_queue.read(&mut [0]).await;
    let (mut second, _) = timeout(SOON, backend.accept()).await.unwrap().unwrap();
    let mut bytes = [0; 5];
    second.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
}

/// Who goes while a backend is being connected to is let go at once, and takes no descriptor along.
#[tokio::test]
async fn a_client_that_goes_while_it_waits_is_let_go() {
    // A backend that completes no handshake: its queue is full, and nobody accepts.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    full.listen(0).unwrap();
    let full_address = full.local_addr().unwrap().as_socket().unwrap();
    let _in_the_queue = TcpStream::connect(full_address).await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        backends = ["{full_address}"]
        timeouts = {{ connect = "1m" }}
        "#
    ));
    let address = homescar.address("web").await;
    let before = descriptors(homescar.pid());
    let mut gone = Vec::new();
    for index in 0..50 {
        let client = Client::connect_from(address_of_client(index), address)
            .await
            .unwrap();
        gone.push(client.local_addr());
        client.reset();
    }
    for from in gone {
        let record = homescar.record_of(from).await;
        assert_eq!(
            (&record["by"], &record["reason"]),
            (&"client".into(), &"reset".into())
        );
    }
    eventually("nothing is left", SOON, || {
        descriptors(homescar.pid()) <= before
    })
    .await;
}
