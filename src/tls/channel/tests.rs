//! Two channels that speak to each other.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::{
    AlertDescription, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::UnbufferedClientConnection,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::UnbufferedServerConnection,
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::{super::provider, *};

type Client = Channel<DuplexStream, UnbufferedClientConnection>;
type Server = Channel<DuplexStream, UnbufferedServerConnection>;

/// Both ends of a pipe that holds so many bytes, before they have shaken hands.
fn ends(held: usize, version: &'static SupportedProtocolVersion) -> (Client, Server) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    // Nobody reads tickets before something else comes.
    server.send_tls13_tickets = if held < 1000 { 0 } else { 2 };
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("a.test").unwrap();
    let client = UnbufferedClientConnection::new(Arc::new(client), name).unwrap();
    let server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let (here, there) = duplex(held);
    (
        Channel::new(here, client, Vec::new()),
        Channel::new(there, server, Vec::new()),
    )
}

async fn shaken(held: usize, version: &'static SupportedProtocolVersion) -> (Client, Server) {
    let (mut client, mut server) = ends(held, version);
    let (shown, seen) = tokio::join!(
        client.shake(async || {}, |_| false),
        server.shake(async || {}, |_| false)
    );
    shown.unwrap();
    seen.unwrap();
    (client, server)
}

/// Carries so many bytes, and holds nothing afterwards.
async fn carry<T: Session + Unpin, U: Session + Unpin>(
    from: &mut Channel<DuplexStream, T>,
    to: &mut Channel<DuplexStream, U>,
    len: usize,
) {
    let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let write = async {
        from.write_all(&sent).await.unwrap();
        from.flush().await.unwrap();
    };
    let mut came = vec![0; len];
    let (_, read) = tokio::join!(write, to.read_exact(&mut came));
    read.unwrap();
    assert!(came == sent, "{len} bytes");
    for rest in [&from.outgoing, &to.incoming, &to.plain] {
        assert_eq!(rest.capacity(), 0, "after {len} bytes");
    }
}

#[tokio::test]
async fn bytes_come_through_pipes_of_any_width() {
    for version in [&TLS12, &TLS13] {
        for (held, longest) in [
            (1, 100),
            (1000, 50_000),
            (20_000, 200_000),
            (1 << 20, 200_000),
        ] {
            let (mut client, mut server) = shaken(held, version).await;
            for len in [1, 100, 16 * 1024, 16 * 1024 + 1, longest] {
                if len > longest {
                    continue;
                }
                carry(&mut client, &mut server, len).await;
                carry(&mut server, &mut client, len).await;
            }
        }
    }
}

#[tokio::test]
async fn what_the_reader_has_no_room_for_is_kept() {
    let (mut client, mut server) = shaken(1 << 20, &TLS13).await;
    let parts = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
    assert_eq!(client.write_vectored(&parts).await.unwrap(), 5);
    for byte in b"abcde" {
        assert_eq!(server.read_u8().await.unwrap(), *byte);
    }
    carry(&mut client, &mut server, 1).await;
}

#[tokio::test]
async fn keys_may_change() {
    let (mut client, mut server) = shaken(1000, &TLS13).await;
    for _ in 0..3 {
        client
            .seal(|writer| {
                writer.refresh_traffic_keys().unwrap();
                Ok(0)
            })
            .unwrap();
        let nothing = &mut ReadBuf::new(&mut []);
        client.decrypt(&mut [], nothing).unwrap();
        carry(&mut client, &mut server, 50_000).await;
        carry(&mut server, &mut client, 50_000).await;
    }
}

#[tokio::test]
async fn an_end_is_half_of_the_end() {
    for version in [&TLS12, &TLS13] {
        let (mut client, mut server) = shaken(1000, version).await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 10]).await.unwrap(), 0);
        carry(&mut server, &mut client, 100).await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 10]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn what_is_forged_is_refused_and_told_of() {
    let (mut client, mut server) = shaken(1000, &TLS13).await;
    let forged = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    client.io.write_all(&forged).await.unwrap();
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.downcast::<Error>().unwrap(), Error::DecryptError);
    let told = client.read(&mut [0; 10]).await.unwrap_err();
    let told = told.downcast::<Error>().unwrap();
    assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
}

#[tokio::test]
async fn what_may_wait_goes_with_the_first_bytes() {
    let (mut client, mut server) = ends(1 << 20, &TLS13);
    let (shown, seen) = tokio::join!(
        client.shake(async || {}, |_| false),
        server.shake(async || {}, |state| !state.is_handshaking())
    );
    shown.unwrap();
    seen.unwrap();
    assert!(server.is_sending(), "tickets wait");
    assert_eq!(server.write(b"x").await.unwrap(), 1);
    assert!(!server.is_sending());
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    assert_eq!(client.session.tls13_tickets_received(), 2);
}
