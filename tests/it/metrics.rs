//! The page of metrics: what scripted events make of it, to the count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, sleep},
};
use tokio_tungstenite::{
    accept_async, client_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::{
    http::soon,
    support::{
        client::Client,
        homescar::{Homescar, SOON, WORKER, message},
        kill_9,
    },
    upgrade::Replaceable,
};

/// A page, sample by sample.
pub(crate) struct Page(BTreeMap<String, f64>, String);

impl Page {
    pub(crate) async fn of(homescar: &Homescar) -> Self {
        let text = get(homescar, "").await;
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect(), body.to_owned())
    }

    /// The sum of the samples of this name that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &str| {
            let (its, rest) = sample.split_once('{').unwrap_or((sample, ""));
            let has = |(key, value): &(&str, &str)| rest.contains(&format!("{key}=\"{value}\""));
            its == name && labels.iter().all(has)
        };
        let found = self.0.iter().filter(|(sample, _)| fits(sample));
        found.map(|(_, value)| value).sum()
    }

    /// The metrics that are named on it.
    fn names(&self) -> BTreeSet<String> {
        let types = self
            .1
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    }
}

pub(crate) async fn get(homescar: &Homescar, accept: &str) -> String {
    let mut stream = UnixStream::connect(homescar.admin_socket()).await.unwrap();
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("the page", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

/// The first page on which a sum is what it should be.
pub(crate) async fn until(
    homescar: &Homescar,
    name: &str,
    labels: &[(&str, &str)],
    expected: f64,
) -> Page {
    let deadline = Instant::now() + SOON;
    loop {
        let page = Page::of(homescar).await;
        if page.sum(name, labels) == expected {
            return page;
        }
        assert!(
            Instant::now() < deadline,
            "{name}{labels:?} is not {expected}\n{}",
            page.1
        );
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn workers(more: &str) -> String {
    format!(
        r#"
        threads = 2
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        workers = {{ command = ["{WORKER}"], count = 2 }}
        {more}
        "#
    )
}

/// promtool of Debian's package, where tests/run puts it.
fn promtool() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/promtool/promtool");
    match own.exists() {
        true => own,
        false => "promtool".into(),
    }
}

#[tokio::test]
async fn promtool_has_nothing_to_say_and_the_readme_names_all() {
    let homescar = Homescar::serve(&workers(""));
    homescar.all_ready("app", 2).await;
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.whoami().await.unwrap();
    let page = Page::of(&homescar).await;
    let mut check = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: run tests/run");
    check
        .stdin
        .take()
        .unwrap()
        .write_all(page.1.as_bytes())
        .unwrap();
    let said = check.wait_with_output().unwrap();
    let said = [said.stdout, said.stderr].concat();
    assert_eq!(String::from_utf8(said).unwrap(), "", "\n{}", page.1);

    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let named = rows.filter_map(|row| row.split_once('`').map(|(name, _)| name.to_owned()));
    let is_metric = |name: &String| name.starts_with("homescar_") || name.starts_with("process_");
    let named: BTreeSet<String> = named.filter(is_metric).collect();
    assert_eq!(named, page.names());

    let open = get(&homescar, "application/openmetrics-text;version=1.0.0").await;
    assert!(
        open.contains("content-type: application/openmetrics-text"),
        "{open}"
    );
    assert!(open.ends_with("# EOF\n"));
}

#[tokio::test]
async fn connections_and_where_they_went_are_counted() {
    let homescar = Homescar::serve(&workers(""));
    let pids = homescar.all_ready("app", 2).await;
    let to = homescar.address("web").await;
    let mut client = Client::connect(to).await.unwrap();
    let who = client.whoami().await.unwrap();
    let own = &*who.slot;
    let page = Page::of(&homescar).await;
    let of = |name: &str, labels: &[(&str, &str)]| page.sum(name, labels);
    assert_eq!(of("homescar_slot_up", &[]), 2.0);
    assert_eq!(
        of(
            "homescar_listener_connections_active",
            &[("listener", "web")]
        ),
        1.0
    );
    assert_eq!(
        of("homescar_slot_connections_active", &[("slot", own)]),
        1.0
    );
    assert_eq!(
        of(
            "homescar_affinity_total",
            &[("result", "kept"), ("slot", own)]
        ),
        1.0
    );
    assert_eq!(of("homescar_affinity_total", &[]), 1.0);
    assert_eq!(
        of("homescar_worker_starts_total", &[("reason", "first")]),
        2.0
    );
    assert_eq!(of("homescar_worker_ready_seconds_count", &[]), 2.0);
    let pid = pids[0].to_string();
    assert_eq!(
        of("homescar_slot_info", &[("slot", "app/0"), ("pid", &pid)]),
        1.0
    );
    assert!(
        of(
            "homescar_worker_resident_memory_bytes",
            &[("slot", "app/0")]
        ) > 1e5
    );
    assert!(
        of(
            "homescar_event_loop_lag_seconds_count",
            &[("thread", "data-1")]
        ) >= 1.0
    );
    assert!(of("homescar_health_checks_total", &[("result", "passed")]) >= 2.0);

    client.shutdown().await.unwrap();
    drop(client);
    let closed = [("by", "client"), ("reason", "closed")];
    let page = until(&homescar, "homescar_closes_total", &closed, 1.0).await;
    assert_eq!(page.sum("homescar_listener_connections_total", &[]), 1.0);
    assert_eq!(
        page.sum("homescar_connection_duration_seconds_count", &[]),
        1.0
    );
}

#[tokio::test]
async fn workers_that_die_and_come_back_are_counted() {
    let homescar = Homescar::serve(&workers(""));
    let pids = homescar.all_ready("app", 2).await;
    let (own, other) = ("app/1", "app/0");
    let mark = homescar.mark();
    kill_9(pids[1]);
    homescar.ready_after(mark, own).await;
    let page = until(
        &homescar,
        "homescar_worker_starts_total",
        &[("reason", "restart")],
        1.0,
    )
    .await;
    let exits = "homescar_worker_exits_total";
    assert_eq!(
        page.sum(exits, &[("slot", own), ("kind", "signal")]),
        1.0,
        "{}",
        page.1
    );
    assert_eq!(page.sum(exits, &[("slot", other)]), 0.0);
    let changes = "homescar_slot_transitions_total";
    assert_eq!(
        page.sum(changes, &[("slot", own), ("to", "restarting")]),
        1.0
    );
    assert_eq!(page.sum(changes, &[("slot", other), ("to", "ready")]), 1.0);
}

#[tokio::test]
async fn reloads_are_counted_by_how_they_went() {
    let homescar = Homescar::serve(&workers(""));
    homescar.all_ready("app", 2).await;
    let success = "homescar_config_last_reload_success";
    assert_eq!(Page::of(&homescar).await.sum(success, &[]), 1.0);
    homescar.reload(&workers("on_down = \"next\"")).await;
    fs::write(homescar.config_file(), "nonsense").unwrap();
    homescar.signal(nix::sys::signal::Signal::SIGHUP);
    let reloads = "homescar_config_reloads_total";
    let page = until(&homescar, reloads, &[("result", "failed")], 1.0).await;
    assert_eq!(page.sum(reloads, &[("result", "ok")]), 1.0);
    assert_eq!(page.sum(success, &[]), 0.0);
}

/// What was counted is counted on from by the next program.
#[tokio::test]
async fn counters_go_on_over_an_upgrade() {
    let with = |on_down: &str| {
        let http = "[listener.pages]\nbind = \"127.0.0.1:0\"\nmode = \"http\"\ncluster = \"app\"";
        workers(&format!("on_down = \"{on_down}\"\n{http}"))
    };
    let one = Replaceable::serve(&with("hold 2s"));
    let homescar = &one.homescar;
    let pids = homescar.all_ready("app", 2).await;
    let mut client = Client::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.whoami().await.unwrap();
    drop(client);
    let asked = ask(homescar.address("pages").await, "/").await;
    assert!(asked.starts_with("HTTP/1.1 200 "), "{asked}");
    homescar.reload(&with("next")).await;
    let mark = homescar.mark();
    kill_9(pids[1]);
    homescar.ready_after(mark, "app/1").await;
    until(homescar, "homescar_closes_total", &[], 2.0).await;
    until(homescar, "homescar_slot_up", &[], 2.0).await;
    for _ in 0..2 {
        let before = Page::of(homescar).await;
        one.must_upgrade().await;
        let after = Page::of(homescar).await;
        let is_count = |sample: &str| {
            let name = sample.split('{').next().unwrap();
            let ends = ["_total", "_count", "_sum", "_bucket"];
            // Time goes on, and so do checks.
            let moves = [
                "homescar_event_loop_lag",
                "homescar_health_check",
                "homescar_worker_cpu",
                "process_",
            ];
            ends.iter().any(|end| name.ends_with(end))
                && !moves.iter().any(|moving| name.starts_with(moving))
        };
        let mut compared = 0;
        for (sample, value) in before.0.iter().filter(|(sample, _)| is_count(sample)) {
            assert_eq!(after.0.get(sample), Some(value), "{sample}");
            compared += usize::from(*value > 0.0);
        }
        assert!(compared > 30, "{compared}");
        let since = "process_start_time_seconds";
        assert_eq!(before.sum(since, &[]), after.sum(since, &[]));
    }
}

#[tokio::test]
async fn a_slot_that_left_is_not_shown_and_who_is_passed_over_is_counted() {
    // Nobody listens at one of the two.
    let (up, down) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let [up_at, down_at] = [&up, &down].map(|socket| socket.local_addr().unwrap());
    drop(down);
    let config = |backends: &str| {
        format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            cluster = "app"
            [cluster.app]
            on_down = "next"
            passive = "off"
            backends = [{backends}]
            "#
        )
    };
    let both = format!("\"{up_at}\", {{ name = \"gone\", address = \"{down_at}\" }}");
    let homescar = Homescar::serve(&config(&both));
    let to = homescar.address("web").await;
    let mut clients = Vec::new();
    for index in 0..16 {
        let from = crate::support::client::address_of_client(index);
        clients.push(Client::connect_from(from, to).await.unwrap());
        clients.push(Client {
            stream: tokio::io::BufReader::new(up.accept().await.unwrap().0),
        });
    }
    let page = Page::of(&homescar).await;
    let affinity = "homescar_affinity_total";
    let moved = [("result", "moved"), ("reason", "connect_failed")];
    let (kept, moved) = (
        page.sum(affinity, &[("result", "kept")]),
        page.sum(affinity, &moved),
    );
    assert_eq!(kept + moved, 16.0, "{}", page.1);
    assert!(moved > 0.0);
    assert_eq!(
        page.sum("homescar_slot_connect_failures_total", &[("slot", "gone")]),
        moved
    );
    homescar.reload(&config(&format!("\"{up_at}\""))).await;
    let page = Page::of(&homescar).await;
    assert!(!page.1.contains("slot=\"gone\""), "{}", page.1);
}

/// A front in http mode whose one backend is the test itself.
async fn front(more: &str) -> (Homescar, SocketAddr, TcpListener) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        backends = ["{}"]
        {more}
        "#,
        backend.local_addr().unwrap()
    ));
    let address = homescar.address("web").await;
    (homescar, address, backend)
}

#[tokio::test]
async fn websockets_are_counted_by_who_closed_them_and_how() {
    let (homescar, to, backend) = front("").await;
    let frame = |code: u16| CloseFrame {
        code: CloseCode::from(code),
        reason: "".into(),
    };
    let closes = "homescar_websocket_closes_total";
    for (by, sent, shown) in [
        ("client", 1000, "1000"),
        ("backend", 1001, "1001"),
        ("backend", 1012, "1012"),
        ("client", 4321, "other"),
    ] {
        let stream = TcpStream::connect(to).await.unwrap();
        let client = client_async(format!("ws://{to}/chat"), stream);
        let accept = async {
            accept_async(backend.accept().await.unwrap().0)
                .await
                .unwrap()
        };
        let (client, server) = soon("a handshake", async { tokio::join!(client, accept) }).await;
        let (mut client, mut server) = (client.unwrap().0, server);
        until(&homescar, "homescar_websockets_active", &[], 1.0).await;
        let close = Message::Close(Some(frame(sent)));
        match by {
            "client" => client.send(close).await.unwrap(),
            _ => server.send(close).await.unwrap(),
        }
        let over = async {
            tokio::join!(
                async { while let Some(Ok(_)) = client.next().await {} },
                async { while let Some(Ok(_)) = server.next().await {} },
            )
        };
        soon("the end of both", over).await;
        drop((client, server));
        until(&homescar, closes, &[("by", by), ("code", shown)], 1.0).await;
    }
    let page = until(&homescar, "homescar_websockets_active", &[], 0.0).await;
    assert_eq!(page.sum(closes, &[]), 4.0, "{}", page.1);
    assert_eq!(page.sum("homescar_websockets_total", &[]), 4.0);
    assert_eq!(
        page.sum("homescar_requests_total", &[("code_class", "1xx")]),
        4.0
    );
    assert_eq!(
        page.sum("homescar_request_duration_seconds_count", &[]),
        0.0
    );
}

async fn ask(to: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test]
async fn of_records_a_share_is_written_and_all_that_failed() {
    let (homescar, to, backend) = front("[log]\nrecords = 0.000001").await;
    let serve = async {
        for _ in 0..8 {
            let (mut stream, _) = backend.accept().await.unwrap();
            let mut head = [0; 1024];
            let _read = stream.read(&mut head).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    };
    let asked = async {
        for _ in 0..8 {
            assert!(ask(to, "/").await.starts_with("HTTP/1.1 200 "));
        }
    };
    tokio::join!(serve, asked);
    drop(backend);
    assert!(ask(to, "/failed").await.starts_with("HTTP/1.1 502 "));
    homescar
        .line("a record", |line| {
            message(line) == "request" && line["status"] == 502
        })
        .await;
    let page = until(&homescar, "homescar_records_left_out_total", &[], 8.0).await;
    let requests = "homescar_requests_total";
    assert_eq!(
        page.sum(requests, &[("code_class", "2xx"), ("version", "1.1")]),
        8.0
    );
    assert_eq!(page.sum(requests, &[("code_class", "5xx")]), 1.0);
    let ends = "homescar_request_ends_total";
    assert_eq!(
        page.sum(ends, &[("by", "backend"), ("reason", "done")]),
        8.0
    );
    assert_eq!(
        page.sum(ends, &[("by", "backend"), ("reason", "connect_failed")]),
        1.0
    );
    assert_eq!(
        page.sum("homescar_request_duration_seconds_count", &[]),
        9.0
    );
    let is_record = |line: &&serde_json::Value| message(line) == "request";
    assert_eq!(homescar.log().iter().filter(is_record).count(), 1);
    // It changes with a reload.
    let config = fs::read_to_string(homescar.config_file()).unwrap();
    homescar
        .reload(&config.replace("0.000001", "\"off\""))
        .await;
    assert!(ask(to, "/").await.starts_with("HTTP/1.1 502 "));
    until(&homescar, "homescar_records_left_out_total", &[], 9.0).await;
}

/// The fields of a kind of record, as the README lists them.
fn listed(kind: &str) -> BTreeSet<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let (_, list) = readme.split_once(&format!("- {kind}: `listener`")).unwrap();
    let list = list.split("\n- ").next().unwrap();
    let list = list.split("\n\n").next().unwrap();
    let fields = list.split('`').skip(1).step_by(2).map(str::to_owned);
    fields.chain(["listener".to_owned()]).collect()
}

/// The fields of all events of a target that the source can make: those of the macro's call.
fn written(file: &str, target: &str) -> BTreeSet<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let source = fs::read_to_string(source).unwrap();
    let (_, call) = source
        .split_once(&format!("target: \"{target}\",\n"))
        .unwrap();
    let (lines, _) = call.split_once("        );\n").unwrap();
    // A field begins a line of the call, as rustfmt has it; what it is made of stands deeper.
    let fields = lines.lines().filter_map(|line| {
        let field = line
            .strip_prefix("            ")
            .filter(|rest| !rest.starts_with([' ', '"', '}']))?;
        Some(field.split([' ', ',']).next().unwrap().to_owned())
    });
    // What is said in words is none.
    fields.filter(|field| field != "message").collect()
}

#[test]
fn records_have_the_fields_that_the_readme_lists() {
    for (kind, file) in [
        ("connection", "src/proxy/record.rs"),
        ("request", "src/proxy/http/record.rs"),
    ] {
        let written = written(file, &format!("homescar::{kind}"));
        assert_eq!(written, listed(kind), "{kind}");
        assert!(written.len() > 10);
    }
}

#[tokio::test]
async fn handshakes_are_counted_and_certificates_shown() {
    let folder = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["shown.test".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        tls = {{ cert = {cert:?}, key = {key:?} }}
        [cluster.app]
        backends = ["127.0.0.1:1"]
        "#
    ));
    let mut client = TcpStream::connect(homescar.address("web").await)
        .await
        .unwrap();
    client.write_all(b"this is no TLS").await.unwrap();
    let handshakes = "homescar_tls_handshakes_total";
    let page = until(&homescar, handshakes, &[("result", "not_tls")], 1.0).await;
    assert_eq!(page.sum(handshakes, &[]), 1.0);
    assert_eq!(
        page.sum("homescar_closes_total", &[("reason", "tls_handshake")]),
        1.0
    );
    let ends = [("listener", "web"), ("name", "shown.test")];
    let ends = page.sum("homescar_tls_certificate_not_after_seconds", &ends);
    assert!(ends > 1e9, "{}", page.1);
}

#[tokio::test]
async fn who_finds_no_slot_is_counted() {
    let homescar = Homescar::serve(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "app"
        [cluster.app]
        workers = { command = ["/bin/false"], count = 1 }
        on_down = "reject"
        "#,
    );
    let to = homescar.address("web").await;
    assert!(ask(to, "/").await.starts_with("HTTP/1.1 503 "));
    let down = [("by", "proxy"), ("reason", "slot_down")];
    let page = until(&homescar, "homescar_request_ends_total", &down, 1.0).await;
    assert_eq!(
        page.sum("homescar_requests_total", &[("code_class", "5xx")]),
        1.0
    );
    assert_eq!(page.sum("homescar_slot_up", &[]), 0.0);
    assert_eq!(page.sum("homescar_ready", &[]), 0.0);
    let failures = [("kind", "failure")];
    let deadline = Instant::now() + SOON;
    while Page::of(&homescar)
        .await
        .sum("homescar_worker_exits_total", &failures)
        < 2.0
    {
        assert!(Instant::now() < deadline);
        sleep(std::time::Duration::from_millis(20)).await;
    }
}
