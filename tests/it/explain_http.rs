//! What is told of a client of HTTP is what happens to its request: with cookies of all kinds, headers,
//! parameters, and the addresses of those that a trusted proxy speaks for.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use homescar::admin::view::{Explanation, Outlook};
use serde_json::Value;
use tokio::time::sleep;

use crate::support::{
    client::{Client, Who},
    homescar::{Homescar, WORKER, message},
};

const WORKERS: usize = 4;
const CLIENTS: usize = 60;

/// A cluster of test workers for each way to go by, each behind a listener of its own.
fn config(clusters: &[(&str, &str)]) -> String {
    let each = clusters.iter().map(|(name, key)| {
        format!(
            r#"
            [listener.{name}]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "{name}"
            trusted = ["127.0.0.0/8"]
            [cluster.{name}]
            affinity = {{ {key} }}
            on_down = "next"
            drain = {{ timeout = "20s", spread = "1s" }}
            [cluster.{name}.workers]
            command = ["{WORKER}"]
            count = {WORKERS}
            stable = "200ms"
            "#
        )
    });
    each.collect()
}

fn any_address() -> IpAddr {
    match fastrand::bool() {
        true => Ipv4Addr::from_bits(fastrand::u32(..)).into(),
        false => Ipv6Addr::from_bits((0x2000 << 112) | (fastrand::u128(..) >> 3)).into(),
    }
}

fn any_value() -> String {
    (0..12).map(|_| fastrand::alphanumeric()).collect()
}

/// What answers a request of this client, and the cookie that comes with it.
async fn ask(to: SocketAddr, client: IpAddr, target: &str, field: &str) -> (Who, Option<String>) {
    let mut stream = Client::connect(to).await.unwrap();
    let head = format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n{field}Connection: \
         close\r\n\r\n"
    );
    stream.send(head).await.unwrap();
    let answer = String::from_utf8(stream.rest().await.unwrap()).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let set = head
        .lines()
        .find_map(|line| line.strip_prefix("Set-Cookie: homescar="));
    let set = set.map(|set| set.split(';').next().unwrap().to_owned());
    (serde_json::from_str(body).unwrap(), set)
}

async fn explain(homescar: &Homescar, cluster: &str, client: IpAddr, more: &[&str]) -> Explanation {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args([
        "explain",
        &client.to_string(),
        "--json",
        "--cluster",
        cluster,
    ]);
    command.args(more).arg("--socket");
    let output = command.arg(homescar.admin_socket()).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// It is told what happens. Gives what decided.
fn agrees(told: &Explanation, who: &Who) -> String {
    assert_eq!(told.outcome, Outlook::Goes, "{told:?}");
    assert_eq!(told.slot.as_deref(), Some(&*who.slot), "{told:?}");
    let backend = told.backend.as_ref().unwrap();
    assert_eq!(
        (backend.generation, backend.pid),
        (who.generation, Some(who.pid)),
        "{told:?}"
    );
    told.by.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_headers_and_parameters() {
    let homescar = Homescar::serve(&config(&[
        ("address", "key = \"address\", prefix_v4 = 24"),
        ("header", "key = \"header:x-user\""),
        ("query", "key = \"query:room\""),
    ]));
    for cluster in ["address", "header", "query"] {
        homescar.all_ready(cluster, WORKERS).await;
    }
    let [address, header, query] = [
        homescar.address("address").await,
        homescar.address("header").await,
        homescar.address("query").await,
    ];
    for index in 0..CLIENTS {
        let (client, value) = (any_address(), any_value());
        let (who, _) = ask(address, client, "/", "").await;
        let told = explain(&homescar, "address", client, &[]).await;
        assert_eq!(agrees(&told, &who), "address");

        let has_value = index % 4 > 0;
        let more: &[&str] = match has_value {
            true => &["--value", &value],
            false => &[],
        };
        let field = match has_value {
            true => format!("X-User: {value}\r\n"),
            false => "X-User:\r\n".to_owned(),
        };
        let (who, _) = ask(header, client, "/", &field).await;
        let told = explain(&homescar, "header", client, more).await;
        let by = agrees(&told, &who);
        assert_eq!(by == "header", has_value, "{by}");

        let target = match has_value {
            true => format!("/?x=y&room={value}"),
            false => "/?room=".to_owned(),
        };
        let (who, _) = ask(query, client, &target, "").await;
        let told = explain(&homescar, "query", client, more).await;
        let by = agrees(&told, &who);
        assert_eq!(by == "query", has_value, "{by}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_all_kinds() {
    let homescar = Homescar::serve(&config(&[
        ("cookie", "key = \"cookie\""),
        ("short", "key = \"cookie\", cookie = { ttl = \"2s\" }"),
    ]));
    homescar.all_ready("cookie", WORKERS).await;
    homescar.all_ready("short", WORKERS).await;
    let [cookie, short] = [
        homescar.address("cookie").await,
        homescar.address("short").await,
    ];
    let field = |text: &str| format!("Cookie: homescar={text}\r\n");
    let check = async |cluster: &str, to: SocketAddr, client: IpAddr, text: &str| {
        let (who, _) = ask(to, client, "/", &field(text)).await;
        let told = explain(&homescar, cluster, client, &["--cookie", text]).await;
        (agrees(&told, &who), who)
    };
    let mut given = Vec::new();
    for _ in 0..CLIENTS / 2 {
        let client = any_address();
        let (who, text) = ask(cookie, client, "/", "").await;
        let told = explain(&homescar, "cookie", client, &[]).await;
        assert_eq!(agrees(&told, &who), "address");
        // From elsewhere, with the cookie; with a forged one; with that of another cluster.
        let (text, elsewhere) = (text.unwrap(), any_address());
        let (by, again) = check("cookie", cookie, elsewhere, &text).await;
        assert_eq!((by.as_str(), &again.slot), ("cookie", &who.slot));
        let forged = match text.strip_prefix("AA") {
            Some(rest) => format!("AB{rest}"),
            None => format!("AA{}", &text[2..]),
        };
        assert_eq!(
            check("cookie", cookie, elsewhere, &forged).await.0,
            "address"
        );
        let (_, other) = ask(short, client, "/", "").await;
        let other = other.unwrap();
        assert_eq!(
            check("cookie", cookie, elsewhere, &other).await.0,
            "address"
        );
        given.push((elsewhere, who, text, other));
    }
    sleep(Duration::from_secs(3)).await;
    for (client, _, _, ended) in &given {
        assert_eq!(check("short", short, *client, ended).await.0, "address");
    }

    // Of a generation that drains: there; and when it has gone, where its slot is.
    let (client, who, text, _) = &given[0];
    let mark = homescar.mark();
    let mut restart = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    restart.args(["restart", "cookie", "--parallel", "4", "--socket"]);
    restart.arg(homescar.admin_socket());
    restart.stdout(std::process::Stdio::null());
    let mut restart = restart.spawn().unwrap();
    let over = format!("{}: generation 2 has taken over", who.slot);
    let is_over = |line: &Value| message(line).starts_with(&over);
    homescar.line_after(mark, &over, is_over).await;
    for _ in 0..5 {
        let (by, again) = check("cookie", cookie, *client, text).await;
        assert_eq!(
            (by.as_str(), again.pid),
            ("cookie", who.pid),
            "generation 1"
        );
    }
    assert!(restart.wait().await.unwrap().success());
    for (client, before, text, _) in &given {
        let (by, now) = check("cookie", cookie, *client, text).await;
        assert_eq!((by.as_str(), &now.slot), ("cookie", &before.slot));
        assert_eq!(now.generation, 2);
    }
}
