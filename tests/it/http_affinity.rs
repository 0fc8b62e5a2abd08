//! Who goes where in HTTP mode: by cookie, header, parameter or the believed address.

use std::{collections::BTreeSet, net::SocketAddr};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    http::{Front, Peer},
    support::{
        client::address_of_client,
        homescar::{Homescar, SOON, eventually},
    },
};

/// A front with backends that answer every request with their name, and the head that they got.
struct Site {
    homescar: Homescar,
    address: SocketAddr,
    _backends: JoinSet<()>,
}

/// The name of a backend, and the heads of both ways.
struct Answer {
    head: String,
    name: String,
    request: String,
}

impl Answer {
    /// The cookie that was set.
    fn cookie(&self) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|line| line.starts_with("Set-Cookie: "))?;
        line["Set-Cookie: ".len()..].split(';').next()
    }

    /// The lines of the request of this name, as the backend got them.
    fn got(&self, name: &str) -> Vec<&str> {
        let lines = self
            .request
            .lines()
            .filter_map(|line| line.split_once(": "));
        let named = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value).collect()
    }
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

impl Site {
    async fn start(listener: &str, cluster: &str) -> Self {
        let mut backends = JoinSet::new();
        let mut addresses = Vec::new();
        for name in NAMES {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            addresses.push(format!("{{ name = \"{name}\", address = \"{address}\" }}"));
            backends.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = socket.accept().await.unwrap();
                    connections.spawn(answer_all(stream, name));
                }
            });
        }
        let homescar = Homescar::serve(&format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            {listener}
            [cluster.app]
            backends = [{}]
            on_down = "next"
            {cluster}
            "#,
            addresses.join(", ")
        ));
        let address = homescar.address("web").await;
        Self {
            homescar,
            address,
            _backends: backends,
        }
    }

    async fn get(&self, target: &str, fields: &str) -> Answer {
        self.get_as(0, target, fields).await
    }

    /// As the client of this index, which has an address of its own.
    async fn get_as(&self, client: usize, target: &str, fields: &str) -> Answer {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address_of_client(client), 0).into()).unwrap();
        let mut peer = Peer(socket.connect(self.address).await.unwrap());
        peer.say(format!(
            "GET {target} HTTP/1.1\r\nHost: site\r\n{fields}Connection: close\r\n\r\n"
        ))
        .await;
        let all = peer.rest().await;
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        let (name, request) = body.split_once('\n').expect("a name");
        Answer {
            head: head.to_owned(),
            name: name.to_owned(),
            request: request.to_owned(),
        }
    }
}

async fn answer_all(stream: TcpStream, name: &'static str) {
    let mut peer = Peer(stream);
    while let Some(head) = peer.next_head().await {
        let body = format!("{name}\n{head}");
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        if peer.0.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_cookie_leads_home_from_every_address() {
    let site = Site::start("", "affinity = { key = \"cookie\" }").await;
    let first = site.get("/", "").await;
    let cookie = first.cookie().expect("a cookie").to_owned();
    assert!(
        first
            .head
            .contains("; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax")
    );
    for client in 1..20 {
        let again = site
            .get_as(client, "/", &format!("Cookie: x=y; {cookie}\r\n"))
            .await;
        assert_eq!(again.name, first.name);
        assert_eq!(again.cookie(), None, "it has one");
        assert_eq!(again.got("cookie"), [format!("x=y; {cookie}")]);
    }
    let key = |record: &serde_json::Value| record["key"] == "cookie";
    site.homescar.line("a record", key).await;
}

#[tokio::test]
async fn a_forged_cookie_leaves_it_to_the_address() {
    let site = Site::start("", "affinity = { key = \"cookie\" }").await;
    let home = site.get("/", "").await.name;
    for forged in [
        "",
        "homescar",
        "homescar=",
        "homescar=AAAA",
        "homescar=;;=;",
    ] {
        let answer = site.get("/", &format!("Cookie: {forged}\r\n")).await;
        assert!(answer.head.starts_with("HTTP/1.1 200 "), "{forged}");
        assert_eq!(answer.name, home, "{forged}");
        assert!(answer.cookie().is_some(), "{forged}");
    }
}

#[tokio::test]
async fn secrets_of_a_file_outlive_the_process_and_rotate() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secrets");
    let (old, new) = ("a".repeat(32), "b".repeat(32));
    std::fs::write(&file, &old).unwrap();
    let affinity = format!(
        "affinity = {{ key = \"cookie\", cookie = {{ secrets = \"{}\" }} }}",
        file.display()
    );
    let first = Site::start("", &affinity).await;
    let answer = first.get("/", "").await;
    let fields = format!("Cookie: {}\r\n", answer.cookie().unwrap());
    drop(first);

    let second = Site::start("", &affinity).await;
    let stays = |again: &Answer| again.name == answer.name && again.cookie().is_none();
    assert!(
        stays(&second.get_as(7, "/", &fields).await),
        "another process"
    );
    std::fs::write(&file, format!("{new}\n{old}\n")).unwrap();
    let config = std::fs::read_to_string(second.homescar.config_file()).unwrap();
    second.homescar.reload(&config).await;
    assert!(
        stays(&second.get_as(7, "/", &fields).await),
        "still believed"
    );

    std::fs::write(&file, "short").unwrap();
    let told = second.homescar.reload(&config).await;
    assert!(
        told["message"]
            .as_str()
            .unwrap()
            .contains("line 1 has 5 bytes"),
        "{told}"
    );
    assert!(
        stays(&second.get_as(7, "/", &fields).await),
        "nothing has changed"
    );

    std::fs::write(&file, &new).unwrap();
    second.homescar.reload(&config).await;
    let forgotten = second.get_as(7, "/", &fields).await;
    assert!(forgotten.cookie().is_some(), "not believed any more");
}

#[tokio::test]
async fn a_header_or_a_parameter_decides_where_it_is_there() {
    for (key, field, target) in [
        ("header:x-user", "X-User: NAME\r\n", "/"),
        ("query:sid", "", "/socket.io/?EIO=4&sid=NAME"),
    ] {
        let site = Site::start("", &format!("affinity = {{ key = \"{key}\" }}")).await;
        let mut homes = BTreeSet::new();
        for user in 0..20 {
            let user = format!("user{user}");
            let (field, target) = (field.replace("NAME", &user), target.replace("NAME", &user));
            let home = site.get_as(1, &target, &field).await.name;
            assert_eq!(
                site.get_as(2, &target, &field).await.name,
                home,
                "{key} {user}"
            );
            homes.insert(home);
        }
        assert!(homes.len() > 2, "{homes:?}");
        let by_address = site.get_as(1, "/", "").await.name;
        assert_eq!(site.get_as(1, "/", "").await.name, by_address);
    }
}

#[tokio::test]
async fn only_a_trusted_peer_says_who_the_client_is() {
    let site = Site::start("trusted = [\"127.0.0.1/32\"]", "").await;
    let ask = async |forwarded: &str| {
        let socket = TcpStream::connect(site.address).await.unwrap();
        let mut peer = Peer(socket);
        peer.say(format!(
            "GET / HTTP/1.1\r\nHost: site\r\n{forwarded}Connection: close\r\n\r\n"
        ))
        .await;
        let all = peer.rest().await;
        all.split_once("\r\n\r\n")
            .unwrap()
            .1
            .split('\n')
            .next()
            .unwrap()
            .to_owned()
    };
    let mut homes = BTreeSet::new();
    for last in 1..30 {
        let by_header = ask(&format!("X-Forwarded-For: 6.6.6.6, 192.0.2.{last}\r\n")).await;
        let by_other = ask(&format!("Forwarded: for=192.0.2.{last};proto=https\r\n")).await;
        assert_eq!(by_header, by_other);
        homes.insert(by_header);
    }
    assert!(homes.len() > 2, "{homes:?}");
    let liar = site.get_as(3, "/", "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert_eq!(liar.name, site.get_as(3, "/", "").await.name);
    let address = address_of_client(3).to_string();
    assert_eq!(liar.got("x-forwarded-for"), [&address]);
    assert_eq!(
        liar.got("forwarded"),
        [format!("for={address};proto=http;host=\"site\"")]
    );
}

#[tokio::test]
async fn the_backend_learns_where_a_request_comes_from() {
    let site = Site::start("trusted = [\"127.0.0.0/8\"]", "").await;
    let forged = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
                  X-Forwarded-Host: www.example.org\r\nForwarded: for=192.0.2.1\r\n\
                  X-Real-IP: 192.0.2.1\r\nVia: 1.1 cdn\r\nClient-Cert: :AA==:\r\n\
                  X_Forwarded_For: 9.9.9.9\r\nProxy: http://evil\r\n";
    let answer = site.get_as(4, "/", forged).await;
    let peer = address_of_client(4).to_string();
    assert_eq!(
        answer.got("x-forwarded-for"),
        [format!("192.0.2.1, {peer}")]
    );
    assert_eq!(answer.got("x-forwarded-proto"), ["https"]);
    assert_eq!(answer.got("x-forwarded-host"), ["www.example.org"]);
    assert_eq!(
        answer.got("forwarded"),
        [format!(
            "for=192.0.2.1, for={peer};proto=https;host=\"site\""
        )]
    );
    assert_eq!(answer.got("via"), ["1.1 cdn", "1.1 homescar"]);
    assert_eq!(answer.got("x-real-ip"), ["192.0.2.1"]);
    for gone in ["client-cert", "x_forwarded_for", "proxy"] {
        assert!(answer.got(gone).is_empty(), "{gone}");
    }
    assert_eq!(answer.got("x-request-id").len(), 1);
}

#[tokio::test]
async fn a_client_whose_home_is_down_keeps_its_cookie() {
    let site = Site::start(
        "",
        "affinity = { key = \"cookie\" }\nhealth = { tcp = true, interval = \"50ms\", fall = 1, rise = 1 }",
    )
    .await;
    let first = site.get("/", "").await;
    let fields = format!("Cookie: {}\r\n", first.cookie().unwrap());
    let config = std::fs::read_to_string(site.homescar.config_file()).unwrap();
    // The slot stays, and leads nowhere for a while.
    site.homescar
        .reload(&with_closed(&config, &first.name))
        .await;
    let meanwhile = site.get_as(9, "/", &fields).await;
    assert_ne!(meanwhile.name, first.name);
    assert_eq!(meanwhile.cookie(), None, "its home comes back");
    site.homescar.reload(&config).await;
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let back = site.get_as(9, "/", &fields).await;
        if back.name == first.name {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never came home");
    }
    eventually("records", SOON, || !site.homescar.log().is_empty()).await;
}

/// The configuration with a port where nobody listens for the backend of this name.
fn with_closed(config: &str, name: &str) -> String {
    let named = format!("name = \"{name}\", address = \"");
    let at = config.find(&named).unwrap() + named.len();
    let end = at + config[at..].find('"').unwrap();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = socket.local_addr().unwrap();
    format!("{}{closed}{}", &config[..at], &config[end..])
}

#[tokio::test]
async fn kept_connections_to_an_address_that_a_reload_changed_are_of_no_use() {
    let site = Site::start("", "affinity = { key = \"header:X-User\" }").await;
    let fields = "X-User: ann\r\n";
    let home = site.get("/", fields).await.name;
    // Every thread has one to spare.
    for _ in 0..32 {
        assert_eq!(site.get("/", fields).await.name, home);
    }
    let config = std::fs::read_to_string(site.homescar.config_file()).unwrap();
    site.homescar.reload(&with_closed(&config, &home)).await;
    for _ in 0..8 {
        assert_ne!(site.get("/", fields).await.name, home);
    }
}

#[tokio::test]
async fn requests_go_to_the_cluster_of_the_route_that_fits_best() {
    let mut backends = JoinSet::new();
    let mut clusters = String::new();
    for name in ["web", "api", "deep", "other"] {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        clusters += &format!("[cluster.{name}]\nbackends = [\"{address}\"]\n");
        backends.spawn(async move {
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                answer_all(stream, name).await;
            }
        });
    }
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "http"
        cluster = "web"
        [[listener.web.route]]
        path = "/api"
        cluster = "api"
        [[listener.web.route]]
        path = "/api/deep"
        cluster = "deep"
        [[listener.web.route]]
        host = "*.example.org"
        cluster = "other"
        {clusters}
        "#
    ));
    let address = homescar.address("web").await;
    for (host, target, expected) in [
        ("a", "/", "web"),
        ("a", "/apis", "web"),
        ("a", "/api", "api"),
        ("a:80", "/api/x?y", "api"),
        ("a", "/api/deep/er", "deep"),
        ("WWW.example.org:80", "/api", "other"),
        ("example.org", "/", "web"),
    ] {
        let mut peer = Peer(TcpStream::connect(address).await.unwrap());
        peer.say(format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await;
        let all = peer.rest().await;
        let body = all.split_once("\r\n\r\n").unwrap().1;
        assert!(
            body.starts_with(&format!("{expected}\n")),
            "{host}{target}: {body}"
        );
    }
}

/// `Set-Cookie` keeps no cache from storing a response, which would give all its clients one home.
#[tokio::test]
async fn a_response_with_a_cookie_is_for_its_client_alone() {
    let front = Front::start("", "affinity = { key = \"cookie\" }").await;
    let private = "Cache-Control: private\r\n";
    for (answer, is_made_private) in [
        ("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n", true),
        ("HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n", false),
        ("HTTP/1.1 200 OK\r\nCache-Control: no-store\r\n", false),
    ] {
        let backend = async {
            let mut backend = front.accept().await;
            let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
            backend.head().await;
            let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
            backend.say(format!("{early}{answer}{end}")).await;
            backend
        };
        let client = async |fields: &str| {
            let mut client = front.client().await;
            client
                .say(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
                .await;
            (client.head().await, client.head().await)
        };
        let ((early, head), _) = tokio::join!(client(""), backend);
        assert!(!early.contains("cookie"), "{early}");
        assert_eq!(head.contains(private), is_made_private, "{head}");
        let cookie = head
            .lines()
            .find_map(|line| line.strip_prefix("Set-Cookie: "));
        let cookie = cookie.unwrap().split(';').next().unwrap();

        // A client that has its cookie is given none, and nothing changes.
        let backend = async {
            let mut backend = front.accept().await;
            backend.head().await;
            let end = "Content-Length: 0\r\nConnection: close\r\n\r\n";
            backend
                .say(format!("HTTP/1.1 103 \r\n\r\n{answer}{end}"))
                .await;
            backend
        };
        let fields = format!("Cookie: {cookie}\r\n");
        let ((_, head), _) = tokio::join!(client(&fields), backend);
        assert!(
            !head.contains(private) && !head.contains("Set-Cookie"),
            "{head}"
        );
    }
}
