//! HTTP mode and the clients that people use: curl, nghttp2's, Python's websockets; and what a
//! scanner of TLS thinks of it.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time::timeout};

use crate::support::homescar::Homescar;

/// Node workers that echo, behind listeners in clear and over TLS.
struct Site {
    _homescar: Homescar,
    plain: String,
    tls: String,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
        assert!(
            tests.join("node_modules/ws").is_dir(),
            "the npm packages are not installed: run tests/run, or npm ci --prefix tests/node"
        );
        let command = json!(["node", tests.join("echoes.mjs")]);
        let homescar = Homescar::serve(&format!(
            r#"
            threads = 2
            [listener.plain]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            [listener.tls]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            tls = {{ cert = "{}", key = "{}" }}
            [cluster.app]
            workers = {{ command = {command}, count = 2, contract = "port" }}
            affinity = {{ key = "cookie" }}
            "#,
            path("cert.pem"),
            path("key.pem")
        ));
        let plain = homescar.address("plain").await.port();
        let tls = homescar.address("tls").await.port();
        homescar.all_ready("app", 2).await;
        Self {
            _homescar: homescar,
            plain: format!("http://localhost:{plain}"),
            tls: format!("https://localhost:{tls}"),
            folder,
        }
    }

    fn ca(&self) -> String {
        self.folder.path().join("cert.pem").display().to_string()
    }
}

/// Runs a program of a Debian package, with this input; what it prints.
async fn run(package: &str, program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .unwrap_or_else(|why| panic!("{program}: {why}: install {package}, or run tests/run"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = timeout(Duration::from_secs(180), child.wait_with_output());
    let output = output.await.expect("an end in time").unwrap();
    let _broken_pipe = feed.await.unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[tokio::test]
async fn curl_speaks_every_version_and_gets_every_byte() {
    let site = Site::start().await;
    let ca = site.ca();
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (version, base, expected) in [
        ("--http1.1", &site.plain, "1.1"),
        ("--http1.0", &site.plain, "1.1"),
        ("--http2-prior-knowledge", &site.plain, "2"),
        ("--http1.1", &site.tls, "1.1"),
        ("--http2", &site.tls, "2"),
    ] {
        let curl = async |path: &str, more: &[&str], input: &[u8]| {
            let url = format!("{base}{path}");
            let mut arguments = vec!["-sS", "--fail", "--cacert", &ca, version];
            arguments.extend(more);
            arguments.push(&url);
            run("curl", "curl", &arguments, input).await
        };
        let echoed = curl("/echo", &["--data-binary", "@-"], &body).await;
        assert!(echoed == body, "{version}: {} bytes", echoed.len());
        if version != "--http1.0" {
            let streamed = curl("/echo", &["-X", "POST", "-T", "-"], &body).await;
            assert!(streamed == body, "{version}: {} bytes", streamed.len());
        }
        assert_eq!(
            curl("/bytes?count=5000000", &[], b"").await.len(),
            5_000_000
        );
        let used = curl("/", &["-I", "-w", "%{http_version}"], b"").await;
        let used = String::from_utf8(used).unwrap();
        assert!(used.ends_with(expected), "{version}: {used}");
        let trailing = curl("/trailers", &["-i"], b"").await;
        let trailing = String::from_utf8(trailing).unwrap();
        assert!(trailing.contains("body"), "{version}: {trailing}");
        let who = curl("/", &[], b"").await;
        let who: Value = serde_json::from_slice(&who).unwrap();
        let proto = if base.starts_with("https") {
            "https"
        } else {
            "http"
        };
        assert_eq!(who["headers"]["x-forwarded-proto"], proto, "{who}");
    }
}

#[tokio::test]
async fn nghttp2_finds_no_fault() {
    let site = Site::start().await;
    for (base, more) in [
        (&site.plain, &["-m", "20"][..]),
        (&site.tls, &["-m", "20"]),
        (&site.plain, &["--h1"]),
        (&site.tls, &["--h1"]),
    ] {
        let mut arguments = vec!["-n", "20000", "-c", "10"];
        arguments.extend(more);
        arguments.push(base);
        let said = run("nghttp2-client", "h2load", &arguments, b"").await;
        let said = String::from_utf8(said).unwrap();
        assert!(
            said.contains("20000 succeeded, 0 failed, 0 errored"),
            "{said}"
        );
    }
    let url = format!("{}/trailers", site.plain);
    let said = run("nghttp2-client", "nghttp", &["-v", &url], b"").await;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains(":status: 200") && said.contains("x-sum: 7"),
        "{said}"
    );
}

#[tokio::test]
async fn pythons_websockets_is_understood() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python-venv/bin/python3");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/websocket_client.py");
    let site = Site::start().await;
    for base in [&site.plain, &site.tls] {
        let url = base.replacen("http", "ws", 1);
        let said = run(
            "target/python-venv",
            &python.display().to_string(),
            &[&script.display().to_string(), &url, &site.ca()],
            b"",
        )
        .await;
        let seen: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(seen, json!({ "text": "in three fragments", "code": 4001 }));
    }
}

/// Debian's testssl.sh: no finding of medium severity or worse, but that nobody has signed the
/// certificate of this test.
#[tokio::test]
async fn a_scanner_of_tls_finds_nothing() {
    let site = Site::start().await;
    let report = site.folder.path().join("report.json");
    let report_path = report.display().to_string();
    let address = site.tls.replacen("https://", "", 1);
    // Protocols, orders, forward secrecy, standard ciphers, certificate, known holes.
    let arguments = [
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--fast",
        "--jsonfile",
        &report_path,
        "-p",
        "-P",
        "-f",
        "-s",
        "-S",
        "-U",
        &address,
    ];
    // Its status is the number of what it could not tell.
    let mut command = tokio::process::Command::new("testssl");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let status = timeout(Duration::from_secs(240), command.status()).await;
    status
        .expect("an end in time")
        .unwrap_or_else(|why| panic!("testssl: {why}: install testssl.sh, or run tests/run"));
    let report = std::fs::read_to_string(report).unwrap();
    let findings: Vec<Value> = serde_json::from_str(&report).unwrap();
    assert!(findings.len() > 40, "{findings:?}");
    let of_certificate = ["cert_", "OCSP", "DNS_CAA", "certificate_"];
    let bad: Vec<&Value> = findings
        .iter()
        .filter(|finding| {
            let severity = finding["severity"].as_str().unwrap_or_default();
            let id = finding["id"].as_str().unwrap_or_default();
            matches!(severity, "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL")
                && !of_certificate.iter().any(|prefix| id.starts_with(prefix))
        })
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let tls13 = findings.iter().find(|finding| finding["id"] == "TLS1_3");
    assert_eq!(tls13.unwrap()["severity"], "OK");
}
