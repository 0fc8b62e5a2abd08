//! A handshake with a client.

use std::{io, time::Duration};

use rustls::{Error, PeerIncompatible};
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
pub(super) async fn hello(stream: &mut TcpStream, early: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let mut bytes = early.to_vec();
    loop {
        match bytes.first() {
            // A record of the handshake (RFC 8446 §5.1); all begins with one.
            None | Some(22) => {}
            Some(_) => {
                if is_http(&bytes) {
                    answer_http(stream).await;
                }
                return Err(HandshakeError::NotTls);
            }
        }
        if is_ripe(&bytes) {
            return Ok(bytes);
        }
        stream.readable().await.map_err(gone)?;
        bytes.reserve(HELLO);
        if stream.read_buf(&mut bytes).await.map_err(gone)? == 0 {
            return Err(HandshakeError::Gone);
        }
    }
}

/// Whether a first message is whole, or no good whatever else comes.
fn is_ripe(mut bytes: &[u8]) -> bool {
    let mut message = Vec::new();
    let mut len = 0;
    while let Some((&[kind, _, _, high, low], rest)) = bytes.split_first_chunk() {
        let record = usize::from(u16::from_be_bytes([high, low]));
        if kind != 22 || record == 0 || record > LONGEST_RECORD {
            return true;
        }
        let Some((fragment, rest)) = rest.split_at_checked(record) else {
            return false;
        };
        // Its length is behind its type (RFC 8446 §4).
        let missing = 4_usize.saturating_sub(message.len()).min(record);
        message.extend_from_slice(&fragment[..missing]);
        len += record;
        if let [_, a, b, c] = *message {
            let wanted = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if len >= wanted || wanted > LONGEST_HELLO {
                return true;
            }
        }
        bytes = rest;
    }
    false
}

fn gone(_: io::Error) -> HandshakeError {
    HandshakeError::Gone
}

/// Room for one read of a first message: most are smaller.
const HELLO: usize = 2 * 1024;
/// Longer ones are not waited for.
const LONGEST_HELLO: usize = 64 * 1024;
/// Of a record that is not encrypted (RFC 8446 §5.1).
const LONGEST_RECORD: usize = 16 * 1024;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// A message in records of so many bytes.
    fn records(message: &[u8], each: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let head = [22, 3, 1, 0, part.len() as u8];
            [&head, part].concat()
        };
        message.chunks(each).flat_map(record).collect()
    }

    #[test]
    fn a_message_is_ripe_when_its_last_byte_is_there() {
        let message = [&[1, 0, 0, 200][..], &[7; 200]].concat();
        for each in [1, 3, 4, 5, 100, 204] {
            let bytes = records(&message, each);
            assert!(is_ripe(&bytes));
            for len in 0..bytes.len() {
                assert!(!is_ripe(&bytes[..len]), "{len} of {each} each");
            }
        }
    }

    #[test]
    fn what_is_no_good_is_not_waited_for() {
        let alert = [21, 3, 1, 0, 2, 1, 0];
        assert!(is_ripe(&alert[..5]));
        assert!(is_ripe(&[22, 3, 1, 0, 0]), "an empty record");
        assert!(is_ripe(&[22, 3, 1, 255, 255]), "a record too long");
        assert!(is_ripe(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), "a message too long");
        assert!(!is_ripe(&[22, 3, 1, 0, 4, 1, 0, 255, 0]));
    }
}
