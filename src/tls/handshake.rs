//! A handshake with a client.

use std::{
    io::{self, ErrorKind, Read, Write},
    time::Duration,
};

use rustls::{
    Error, PeerIncompatible,
    server::{Accepted, Acceptor},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Why a handshake did not end well.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took longer than it may.
    #[error("the handshake took too long")]
    Timeout,
    /// More at one time than homescar does.
    #[error("too many handshakes at one time")]
    Overload,
    /// What the client sent is no TLS.
    #[error("the client speaks something else than TLS")]
    NotTls,
    /// The client ended or reset the connection.
    #[error("the client went away")]
    Gone,
    /// One side refused the other.
    #[error(transparent)]
    Refused(#[from] Error),
}

impl HandshakeError {
    /// The stable name that shows in logs.
    #[must_use]
    pub const fn as_label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::NotTls => "not_tls",
            Self::Gone => "gone",
            Self::Refused(error) => match error {
                Error::PeerIncompatible(
                    PeerIncompatible::SupportedVersionsExtensionRequired
                    // All clients of TLS 1.2 send it, and none of an older version.
                    | PeerIncompatible::SignatureAlgorithmsExtensionRequired
                    | PeerIncompatible::Tls12NotOffered
                    | PeerIncompatible::Tls12NotOfferedOrEnabled,
                ) => "no_common_version",
                Error::PeerIncompatible(_) => "no_common_parameters",
                Error::NoApplicationProtocol => "no_common_protocol",
                Error::NoCertificatesPresented => "no_certificate",
                Error::InvalidCertificate(_) => "bad_certificate",
                Error::AlertReceived(_) => "refused_by_client",
                _ => "bad_message",
            },
        }
    }
}

/// An error of a stream that is in its handshake.
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(refused) => Self::Refused(refused),
            Err(_) => Self::Gone,
        }
    }
}

/// Reads the first message of a client; `early` is what was read of it before. Until it is there
/// the client has cost no more than a buffer, and has no place among the handshakes: who is slow
/// keeps nobody out.
pub(super) async fn hello(
    stream: &mut TcpStream,
    early: &[u8],
) -> Result<Accepted, HandshakeError> {
    let mut start = [0; 8];
    let known = match early.len().min(start.len()) {
        0 => stream.peek(&mut start).await.map_err(gone)?,
        known => {
            start[..known].copy_from_slice(&early[..known]);
            known
        }
    };
    match &start[..known] {
        [] => return Err(HandshakeError::Gone),
        // A record of the handshake (RFC 8446 §5.1); all begins with one.
        [22, ..] => {}
        start => {
            if is_http(start) {
                answer_http(stream).await;
            }
            return Err(HandshakeError::NotTls);
        }
    }
    let mut early = early;
    let mut acceptor = Acceptor::default();
    loop {
        let read = match early.is_empty() {
            false => acceptor.read_tls(&mut early),
            true => {
                stream.readable().await.map_err(gone)?;
                acceptor.read_tls(&mut NonBlocking(stream))
            }
        };
        match read {
            Ok(0) => return Err(HandshakeError::Gone),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(gone(error)),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                // It fits into the socket, of which nothing is used yet.
                let _gone = alert.write_all(&mut NonBlocking(stream));
                return Err(error.into());
            }
        }
    }
}

fn gone(_: io::Error) -> HandshakeError {
    HandshakeError::Gone
}

/// For a client to take the answer and close.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether a client speaks HTTP by its first bytes, up to eight of them.
fn is_http(start: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"TRACE ",
    ];
    METHODS.iter().any(|method| start.starts_with(method))
}

/// Tells a person at a browser or curl what is wrong; nobody else is harmed by it.
async fn answer_http(stream: &mut TcpStream) {
    const BODY: &str = "This port speaks TLS: ask for it with https://\n";
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let farewell = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // To close with unread bytes would be a reset, which can overtake the answer.
        let mut rest = [0; 1024];
        let mut turns = 0;
        while turns < 64 && stream.read(&mut rest).await? > 0 {
            turns += 1;
        }
        Ok::<_, io::Error>(())
    };
    let _gone = timeout(FAREWELL, farewell).await;
}

/// A stream for code that does not wait.
struct NonBlocking<'a>(&'a TcpStream);

impl Read for NonBlocking<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}

impl Write for NonBlocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
