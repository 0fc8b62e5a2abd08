//! The PROXY protocol, in and out, over real sockets.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};

use crate::support::{
    client::{Client, address_of_client, is_turned_away},
    homescar::{Homescar, SOON, message},
};

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 4321 443\r\n";

async fn front(listener: &str, cluster: &str) -> (Homescar, SocketAddr, TcpListener) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        {listener}
        [cluster.app]
        backends = ["{}"]
        {cluster}
        "#,
        backend.local_addr().unwrap()
    ));
    let address = homescar.address("web").await;
    (homescar, address, backend)
}

const REQUIRED: &str = r#"accept_proxy = true
        trusted = ["127.0.0.1"]"#;

async fn received(backend: &TcpListener) -> Vec<u8> {
    let (mut server, _) = timeout(SOON, backend.accept()).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    timeout(SOON, server.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    bytes
}

fn v2(source: [u8; 4], port: u16, extra: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend(u16::try_from(12 + extra.len()).unwrap().to_be_bytes());
    header.extend(source);
    header.extend([198, 51, 100, 1]);
    header.extend(port.to_be_bytes());
    header.extend(443_u16.to_be_bytes());
    header.extend(extra);
    header
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    let (homescar, address, backend) = front(REQUIRED, "").await;
    for (header, client) in [
        (V1.to_vec(), "203.0.113.7:4321"),
        (v2([203, 0, 113, 9], 77, &[]), "203.0.113.9:77"),
    ] {
        let mut connection = Client::connect(address).await.unwrap();
        connection
            .send([&header[..], b"and the first bytes"].concat())
            .await
            .unwrap();
        connection.shutdown().await.unwrap();
        assert_eq!(received(&backend).await, b"and the first bytes");
        let record = homescar.record_of(client.parse().unwrap()).await;
        assert_eq!(record["peer"], connection.local_addr().to_string());
        assert_eq!(record["up"], 19);
    }
}

#[tokio::test]
async fn a_header_may_come_byte_by_byte() {
    let (homescar, address, backend) = front(REQUIRED, "").await;
    let mut connection = Client::connect(address).await.unwrap();
    connection.stream.get_ref().set_nodelay(true).unwrap();
    for byte in V1.iter().chain(b"hi") {
        connection.send([*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    connection.shutdown().await.unwrap();
    assert_eq!(received(&backend).await, b"hi");
    homescar
        .record_of("203.0.113.7:4321".parse().unwrap())
        .await;
}

#[tokio::test]
async fn bad_headers_are_closed_counted_and_named() {
    let (homescar, address, _backend) = front(REQUIRED, "").await;
    let wrong_crc = v2([203, 0, 113, 9], 77, &[3, 0, 4, 1, 2, 3, 4]);
    let cases: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 99999 443\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 0 443\r\n",
        b"PROXY TCP4 203.0.113.777 198.51.100.1 1 443\r\n",
        b"PROXY TCP6 203.0.113.7 198.51.100.1 1 443\r\n",
        b"PROXY TCP4  203.0.113.7 198.51.100.1 1 443\r\n",
        &[b'P'; 200],
        &wrong_crc,
        b"PROXY TCP4 203",
    ];
    let mut labels = Vec::new();
    for bytes in cases {
        let mut connection = Client::connect(address).await.unwrap();
        connection.send(bytes).await.unwrap();
        connection.shutdown().await.unwrap();
        let rest = connection.rest().await;
        assert!(
            rest.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
            "{bytes:?}"
        );
        let record = homescar.record_of(connection.local_addr()).await;
        assert_eq!(record["by"], "client", "{record}");
        assert_eq!(
            (&record["up"], &record["reason"]),
            (&0.into(), &"header_bad".into())
        );
        labels.push(record["detail"].as_str().unwrap().to_owned());
    }
    let expected = [
        "not_proxy",
        "v1_port",
        "impossible_port",
        "v1_address",
        "v1_address",
        "v1_fields",
        "not_proxy",
        "v2_crc",
        "truncated",
    ];
    assert_eq!(labels, expected);
    // And one line for a person, however many there are.
    let told = |line: &serde_json::Value| message(line).contains("bad PROXY header");
    let line = homescar.line("a complaint", told).await;
    assert!(
        message(&line).contains("its sender must send one (HAProxy: send-proxy)"),
        "{line}"
    );
    assert!(homescar.log().iter().filter(|line| told(line)).count() < 5);
}

#[tokio::test]
async fn a_header_that_does_not_come_is_waited_for_so_long() {
    let listener = format!("{REQUIRED}\n        timeouts = {{ header = \"300ms\" }}");
    let (homescar, address, _backend) = front(&listener, "").await;
    let mut connection = Client::connect(address).await.unwrap();
    connection.send(&V1[..10]).await.unwrap();
    assert!(connection.rest().await.is_err());
    assert_eq!(
        homescar.record_of(connection.local_addr()).await["reason"],
        "header_timeout"
    );
}

#[tokio::test]
async fn a_header_from_a_stranger_is_not_believed() {
    let (homescar, address, _backend) = front(REQUIRED, "").await;
    is_turned_away(address_of_client(7), address).await;
    homescar
        .line("the refusal", |line| line["reason"] == "header_untrusted")
        .await;
}

#[tokio::test]
async fn backends_are_told_who_the_client_is() {
    for (version, expected) in [("v1", "PROXY TCP4 "), ("v2", "\r\n\r\n\0\r\nQUIT\n")] {
        let (homescar, address, backend) = front("", &format!("send_proxy = \"{version}\"")).await;
        let mut connection = Client::connect_from(address_of_client(3), address)
            .await
            .unwrap();
        connection.send("payload").await.unwrap();
        connection.shutdown().await.unwrap();
        let bytes = received(&backend).await;
        assert!(bytes.starts_with(expected.as_bytes()), "{bytes:?}");
        let header = homescar::proxy::proxy_protocol::parse(&bytes);
        let Ok(homescar::proxy::proxy_protocol::Parse::Complete { header, len }) = header else {
            panic!("not a header: {header:?} {bytes:?}")
        };
        assert_eq!(header.source, Some(connection.local_addr()));
        assert_eq!(header.destination, Some(address));
        assert_eq!(&bytes[len..], b"payload");
        // The header is not the client's: it does not count.
        assert_eq!(homescar.record_of(connection.local_addr()).await["up"], 7);
    }
}

#[tokio::test]
async fn a_header_goes_through_two_homescars() {
    let (inner, inner_address, backend) = front(REQUIRED, "").await;
    let outer = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "inner"
        [cluster.inner]
        backends = ["{inner_address}"]
        send_proxy = "v2"
        "#
    ));
    let address = outer.address("web").await;
    let mut connection = Client::connect_from(address_of_client(9), address)
        .await
        .unwrap();
    connection
        .stream
        .get_mut()
        .write_all(b"through")
        .await
        .unwrap();
    connection.shutdown().await.unwrap();
    assert_eq!(received(&backend).await, b"through");
    inner.record_of(connection.local_addr()).await;
}
