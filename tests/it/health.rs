//! Backends are asked whether they are well, and what they answer decides.

use std::{fs, io, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use homescar::{
    cluster::{Cluster, Event, Health, Skip, Snapshot},
    config::{self, Check, Contract, Source},
    health::Checker,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_tungstenite::accept_async;

use crate::support::{
    DEADLINE, Log, Rig, ask, cluster_of, connect, is_alive, static_cluster, whoami, workers,
};

fn http(expect: u16) -> Check {
    Check::Http {
        path: "/health".to_owned(),
        expect,
    }
}

/// Fast checks.
fn checks(check: Check) -> Option<config::Health> {
    Some(config::Health {
        check,
        interval: Duration::from_millis(30),
        timeout: Duration::from_millis(100),
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
    })
}

fn is(skip: Option<Skip>) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.entries[0].skip == skip
}

/// A cluster of one static backend, and its checks.
struct Checked {
    cluster: Cluster,
    tasks: JoinSet<()>,
    shutdown: oneshot::Sender<()>,
}

impl Checked {
    fn start(addr: SocketAddr, health: Option<config::Health>) -> Self {
        let mut config = static_cluster(addr);
        config.health = health;
        let (cluster, controller) = Cluster::new(&config);
        let mut tasks = JoinSet::new();
        let (shutdown, asked) = oneshot::channel();
        let checker = Checker::new(cluster.clone());
        tasks.spawn(controller.run());
        tasks.spawn(checker.run(async {
            let _asked = asked.await;
        }));
        Self {
            cluster,
            tasks,
            shutdown,
        }
    }

    fn generation(&self) -> u32 {
        let snapshot = self.cluster.load();
        snapshot.entries[0].backend.as_ref().unwrap().generation
    }

    async fn until(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let found = self.cluster.wait_until(DEADLINE, condition).await;
        found.unwrap_or_else(|| panic!("never {what}: {:#?}", self.cluster.load().entries))
    }

    /// Waits for the backend to be found unhealthy, and gives the reason.
    async fn unhealthy(&self) -> (bool, String) {
        let unhealthy = |snapshot: &Snapshot| snapshot.entries[0].skip.is_some();
        let snapshot = self.until("unhealthy", unhealthy).await;
        match &snapshot.entries[0].backend.as_ref().unwrap().health {
            Health::Unhealthy { answers, why } => (*answers, why.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    // Without SO_REUSEADDR: no port that has old connections in TIME_WAIT.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Answers every connection with this, whatever it asks, and closes.
async fn answer_all(listener: TcpListener, answer: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let _request = stream.read(&mut [0; 1024]).await;
        let _rude_client = stream.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_backend_that_is_gone_is_known_to_be_and_comes_back() {
    let log = Log::capture();
    let (first, addr) = listener();
    let checked = Checked::start(addr, checks(Check::Tcp));
    let healthy = |snapshot: &Snapshot| {
        snapshot.entries[0].backend.as_ref().unwrap().health == Health::Healthy
    };
    checked.until("healthy", healthy).await;
    drop(first);
    let (answers, why) = checked.unhealthy().await;
    assert_eq!((answers, &*why), (false, "connection refused"));
    assert_eq!(
        checked.cluster.load().entries[0].skip,
        Some(Skip::Unresponsive)
    );
    let _second = TcpListener::bind(addr).await.unwrap();
    checked.until("healthy again", healthy).await;
    // Only changes are told: well, gone, well.
    assert_eq!(checked.cluster.load().number, 4);
    let line = log.wait_for("takes no clients: unresponsive").await;
    assert!(line.contains("why=connection refused"), "{line}");
}

#[tokio::test]
async fn answers_are_judged_by_their_status_and_form() {
    for (answer, expected) in [
        (
            "HTTP/1.1 503 Sorry\r\ncontent-length: 0\r\n\r\n",
            "GET /health answered 503, expected 200",
        ),
        (
            "220 mail.example ESMTP\r\n",
            "GET /health was answered, but not with HTTP",
        ),
    ] {
        let (server, addr) = listener();
        let mut checked = Checked::start(addr, checks(http(200)));
        checked.tasks.spawn(answer_all(server, answer));
        assert_eq!(checked.unhealthy().await, (true, expected.to_owned()));
        assert_eq!(
            checked.cluster.load().entries[0].skip,
            Some(Skip::Unhealthy)
        );
    }
}

#[tokio::test]
async fn any_expected_status_is_well() {
    let (server, addr) = listener();
    let mut checked = Checked::start(addr, checks(http(404)));
    let answer = "HTTP/1.0 404 As told\r\n\r\nnothing here";
    checked.tasks.spawn(answer_all(server, answer));
    let healthy = |snapshot: &Snapshot| {
        snapshot.entries[0].backend.as_ref().unwrap().health == Health::Healthy
    };
    checked.until("healthy", healthy).await;
}

/// A WebSocket is opened, and a ping is answered: or not.
#[tokio::test]
async fn a_websocket_is_well_when_it_answers_a_ping() {
    let chat = || {
        checks(Check::Ws {
            path: "/chat".to_owned(),
        })
    };
    let is_healthy = |snapshot: &Snapshot| {
        snapshot.entries[0].backend.as_ref().unwrap().health == Health::Healthy
    };
    for answers_pings in [true, false] {
        let (server, addr) = listener();
        let mut checked = Checked::start(addr, chat());
        checked.tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = server.accept().await {
                open.spawn(async move {
                    let Ok(mut socket) = accept_async(stream).await else {
                        return;
                    };
                    if answers_pings {
                        // The library answers while it reads.
                        while let Some(Ok(_)) = socket.next().await {}
                    } else {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        if answers_pings {
            checked.until("healthy", is_healthy).await;
        } else {
            let expected = (false, "no answer within 100ms".to_owned());
            assert_eq!(checked.unhealthy().await, expected);
        }
    }
    let (server, addr) = listener();
    let mut checked = Checked::start(addr, chat());
    let refusal = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
    checked.tasks.spawn(answer_all(server, refusal));
    let expected = "WebSocket /chat answered 404, expected 101";
    assert_eq!(checked.unhealthy().await, (true, expected.to_owned()));
}

#[tokio::test]
async fn no_answer_is_told_from_a_wrong_one() {
    let (mute, addr) = listener();
    let checked = Checked::start(addr, checks(http(200)));
    let (answers, why) = checked.unhealthy().await;
    assert_eq!((answers, &*why), (false, "no answer within 100ms"));
    drop(mute);

    let (closing, addr) = listener();
    let mut checked = Checked::start(addr, checks(http(200)));
    checked.tasks.spawn(answer_all(closing, ""));
    let (answers, why) = checked.unhealthy().await;
    assert!(!answers);
    assert_eq!(why, "GET /health got no answer: the connection was closed");
}

#[tokio::test]
async fn a_static_backend_is_checked_only_when_asked_and_only_until_the_end() {
    let (left_alone, addr) = listener();
    let _unchecked = Checked::start(addr, None);
    let (asked, addr) = listener();
    let mut checked = Checked::start(addr, checks(Check::Tcp));
    for _ in 0..5 {
        timeout(DEADLINE, asked.accept()).await.unwrap().unwrap();
    }
    let none = timeout(Duration::from_millis(1), left_alone.accept()).await;
    assert!(none.is_err(), "nobody asked for this");

    checked.shutdown.send(()).unwrap();
    let ended = timeout(DEADLINE, checked.tasks.join_next()).await.unwrap();
    ended.unwrap().unwrap();
    while timeout(Duration::from_millis(1), asked.accept())
        .await
        .is_ok()
    {}
    let none = timeout(Duration::from_millis(200), asked.accept()).await;
    assert!(none.is_err(), "checks have ended");
}

/// Whoever reads a line and acts on it at once finds what the line says.
#[tokio::test]
async fn what_the_log_says_of_a_slot_is_true_by_then() {
    let (_server, addr) = listener();
    // Checked, so that what is said of it counts, and too rarely to say anything itself.
    let rarely = checks(Check::Tcp).map(|health| config::Health {
        interval: Duration::from_secs(24 * 60 * 60),
        ..health
    });
    let checked = Checked::start(addr, rarely);
    let (lines, mut seen) = mpsc::unbounded_channel();
    let cluster = checked.cluster.clone();
    let _watching = Log::watch(move |line| {
        if line.contains("takes") {
            let says = !line.contains("takes no clients");
            let takes = cluster.load().entries[0].skip.is_none();
            lines.send((says, takes)).unwrap();
        }
    });
    let why = "as told".into();
    let answers = true;
    for (health, takes) in [
        (Health::Unhealthy { answers, why }, false),
        (Health::Healthy, true),
    ] {
        let (slot, generation) = ("b".into(), checked.generation());
        let event = Event::Checked {
            slot,
            generation,
            health,
        };
        checked.cluster.report(event).await;
        let line = timeout(DEADLINE, seen.recv()).await.unwrap();
        assert_eq!(line, Some((takes, takes)));
    }
}

#[tokio::test]
async fn another_configuration_is_followed_at_once() {
    let (server, addr) = listener();
    let mut checked = Checked::start(addr, None);
    checked
        .tasks
        .spawn(answer_all(server, "HTTP/1.1 503 Sorry\r\n\r\n"));
    let configure = |health| {
        let mut config = static_cluster(addr);
        config.health = health;
        checked.cluster.report(Event::Configure(Arc::new(config)))
    };
    configure(checks(http(200))).await;
    checked.until("unhealthy", is(Some(Skip::Unhealthy))).await;
    configure(checks(http(503))).await;
    checked.until("healthy", is(None)).await;
}

#[tokio::test]
async fn checks_leave_nothing_in_time_wait() {
    let (tcp, tcp_addr) = listener();
    let _by_tcp = Checked::start(tcp_addr, checks(Check::Tcp));
    let mut config = workers(&[]);
    config.count = 1.try_into().unwrap();
    let mut config = cluster_of(config);
    config.health = checks(http(200));
    let rig = Rig::start(&config);
    let entry = rig.ready("app/0", 1).await;
    for _ in 0..20 {
        timeout(DEADLINE, tcp.accept()).await.unwrap().unwrap();
    }
    let config::Address::Tcp(http_addr) = entry.backend.as_ref().unwrap().address else {
        panic!("a port");
    };
    let none: [String; 0] = [];
    assert_eq!(time_wait(tcp_addr), none);
    assert_eq!(time_wait(http_addr), none);
    // So that the counting is known to count.
    let mut stream = TcpStream::connect(http_addr).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(time_wait(http_addr).len(), 1);
    rig.stop().await;
}

/// Connections with this address at either end that wait in TIME_WAIT.
fn time_wait(addr: SocketAddr) -> Vec<String> {
    // 127.0.0.1, as the kernel prints it on little-endian machines and on others.
    let [little, big] = ["0100007F", "7F000001"].map(|ip| format!("{ip}:{:04X}", addr.port()));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let is_ours = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ends = [fields[1], fields[2]];
        fields[3] == "06" && (ends.contains(&&*little) || ends.contains(&&*big))
    };
    table.lines().filter(is_ours).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_worker_that_answers_wrongly_gets_no_clients_and_is_not_killed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("status");
    fs::write(&file, "200").unwrap();
    let mut config = cluster_of(workers(&["--health-file", file.to_str().unwrap()]));
    config.health = checks(http(200));
    let rig = Rig::start(&config);
    let entry = rig.ready("app/0", 1).await;
    fs::write(&file, "503").unwrap();
    rig.until("unhealthy", is(Some(Skip::Unhealthy))).await;
    fs::write(&file, "200").unwrap();
    let again = rig.ready("app/0", 1).await;
    assert_eq!(
        whoami(&again).await["pid"],
        entry.backend.unwrap().pid.unwrap()
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_that_does_not_answer_is_replaced() {
    let log = Log::capture();
    for contract in [Contract::Port, Contract::Unix] {
        let mut config = workers(&["--ignore-term"]);
        config.contract = contract;
        config.stop_timeout = Duration::from_millis(100);
        hangs_and_is_replaced(config, checks(http(200))).await;
    }
    log.wait_for("app/0 does not answer: TERM now, KILL in 100 ms")
        .await;
}

#[tokio::test]
async fn under_contract_fd_a_plain_check_sees_whether_the_worker_accepts() {
    let log = Log::capture();
    let mut config = workers(&[]);
    config.contract = Contract::Fd;
    hangs_and_is_replaced(config, checks(Check::Tcp)).await;
    let line = log.wait_for("takes no clients: unresponsive").await;
    assert!(line.contains("why=no answer within 100ms"), "{line}");
}

async fn hangs_and_is_replaced(config: config::Workers, health: Option<config::Health>) {
    let mut config = cluster_of(config);
    config.health = health;
    let rig = Rig::start(&config);
    let first = rig.ready("app/0", 1).await;
    let mut stream = connect(&first).await;
    ask(&mut stream, "whoami").await;
    stream.write_all(b"hang\n").await.unwrap();
    rig.until("unresponsive", is(Some(Skip::Unresponsive)))
        .await;
    let second = rig.ready("app/0", 2).await;
    assert_eq!(whoami(&second).await["generation"], 2);
    assert!(!is_alive(first.backend.unwrap().pid.unwrap()));
    rig.stop().await;
}

#[tokio::test]
async fn a_worker_under_contract_fd_is_not_ready_before_it_accepts() {
    let mut config = workers(&["--ready-after", "500"]);
    config.contract = Contract::Fd;
    config.ready_timeout = Duration::from_secs(20);
    let rig = Rig::start(&cluster_of(config));
    let started = |snapshot: &Snapshot| snapshot.entries[0].backend.is_some();
    let snapshot = rig.until("started", started).await;
    let began = tokio::time::Instant::now();
    let backend = Arc::clone(snapshot.entries[0].backend.as_ref().unwrap());
    rig.ready("app/0", 1).await;
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    let waiting = backend.backlog.as_ref().unwrap().waiting();
    assert!(matches!(waiting, io::Result::Ok(0..=1)), "{waiting:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_hung_worker_is_not_buried_under_checks() {
    let mut config = workers(&["--never-listen"]);
    config.contract = Contract::Fd;
    let config = cluster_of(config);
    assert!(matches!(config.source, Source::Workers(_)));
    let rig = Rig::start(&config);
    let started = |snapshot: &Snapshot| snapshot.entries[0].backend.is_some();
    let snapshot = rig.until("started", started).await;
    let backend = snapshot.entries[0].backend.as_ref().unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(backend.backlog.as_ref().unwrap().waiting().unwrap(), 1);
    rig.stop().await;
}
