//! What workers say on their `NOTIFY_SOCKET`: the protocol of `sd_notify(3)`.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tracing::debug;

use crate::handover::{Incoming, Number, Outgoing};

/// The longest datagram that is read; systemd's own limit.
const LONGEST: usize = 4096;
/// Datagrams that are read in a row.
const AT_ONCE: usize = 64;

/// One statement of a worker about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// `READY=1`: it serves.
    Ready,
    /// `STOPPING=1`: it is about to end.
    Stopping,
    /// `STATUS=…`: for people.
    Status(String),
    /// `WATCHDOG=1`: it lives.
    Watchdog,
    /// `WATCHDOG=trigger`: it has found itself to be broken.
    WatchdogTrigger,
    /// `EXTEND_TIMEOUT_USEC=…`: starting or stopping takes at least this much longer from now.
    ExtendTimeout(Duration),
}

/// The receiving end of one generation's `NOTIFY_SOCKET`; its file goes with it.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    /// Datagrams that made no sense.
    malformed: u64,
}

/// A [`NotifySocket`] for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SavedNotifySocket {
    socket: Number,
    path: PathBuf,
}

impl SavedNotifySocket {
    /// The same again. Needs a runtime.
    pub(super) fn resumed(self, incoming: &mut Incoming) -> io::Result<NotifySocket> {
        let socket = std::os::unix::net::UnixDatagram::from(incoming.take(self.socket)?);
        Ok(NotifySocket {
            socket: UnixDatagram::from_std(socket)?,
            path: self.path,
            malformed: 0,
        })
    }
}

impl NotifySocket {
    /// What the next image has to know of it.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedNotifySocket> {
        Ok(SavedNotifySocket {
            socket: outgoing.add(&self.socket)?,
            path: self.path.clone(),
        })
    }

    /// Binds it at `path`. The directory around it says who may write.
    ///
    /// # Errors
    /// What binding or `chmod(2)` gives.
    pub(super) fn bind(path: PathBuf) -> io::Result<Self> {
        remove_stale(&path)?;
        let socket = UnixDatagram::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(Self {
            socket,
            path,
            malformed: 0,
        })
    }

    /// Where it is bound.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The statements of the next datagram that makes sense.
    ///
    /// # Errors
    /// What receiving gives.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Message>> {
        // One byte more, to tell a datagram that was cut off.
        let mut buffer = [0; LONGEST + 1];
        loop {
            let len = self.socket.recv(&mut buffer).await?;
            match parse(&buffer[..len]) {
                Some(messages) => return Ok(messages),
                None => {
                    self.malformed += 1;
                    debug!(count = self.malformed, "malformed notification ignored");
                }
            }
        }
    }
}

impl NotifySocket {
    /// What has come already, without waiting.
    pub(super) fn waiting(&mut self) -> Vec<Message> {
        let mut buffer = [0; LONGEST + 1];
        let mut messages = Vec::new();
        // The kernel lets ten wait, or however many; who sends faster than we read is not asked.
        for _ in 0..AT_ONCE {
            let Ok(len) = self.socket.try_recv(&mut buffer) else {
                break;
            };
            match parse(&buffer[..len]) {
                Some(some) => messages.extend(some),
                None => self.malformed += 1,
            }
        }
        messages
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Removes a socket file that an earlier generation has left.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The statements in a datagram that we know; `None` when it is not one of the protocol.
fn parse(datagram: &[u8]) -> Option<Vec<Message>> {
    if datagram.len() > LONGEST {
        return None;
    }
    let text = std::str::from_utf8(datagram).ok()?;
    let lines = text.lines().filter(|line| !line.is_empty());
    let mut messages = Vec::new();
    for line in lines {
        let (name, value) = line.split_once('=')?;
        messages.extend(match (name, value) {
            ("READY", "1") => Some(Message::Ready),
            ("STOPPING", "1") => Some(Message::Stopping),
            ("STATUS", status) => Some(Message::Status(status.to_owned())),
            ("WATCHDOG", "1") => Some(Message::Watchdog),
            ("WATCHDOG", "trigger") => Some(Message::WatchdogTrigger),
            ("EXTEND_TIMEOUT_USEC", micros) => {
                let micros = micros.parse().ok()?;
                Some(Message::ExtendTimeout(Duration::from_micros(micros)))
            }
            _ => None,
        });
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_we_know() {
        let all = b"READY=1\nSTATUS=two = 2\nMAINPID=7\nWATCHDOG=1\n\nWATCHDOG=trigger\n\
            EXTEND_TIMEOUT_USEC=1500000\nSTOPPING=1";
        let expected = vec![
            Message::Ready,
            Message::Status("two = 2".into()),
            Message::Watchdog,
            Message::WatchdogTrigger,
            Message::ExtendTimeout(Duration::from_millis(1500)),
            Message::Stopping,
        ];
        assert_eq!(parse(all), Some(expected));
    }

    #[test]
    fn unknown_ones_are_ignored_and_nonsense_is_malformed() {
        assert_eq!(parse(b"X_OWN=1\nREADY=2\nWATCHDOG=maybe"), Some(vec![]));
        assert_eq!(parse(b""), Some(vec![]));
        assert_eq!(parse(b"READY"), None);
        assert_eq!(parse(b"READY=1\n\xff=1"), None);
        assert_eq!(parse(b"EXTEND_TIMEOUT_USEC=-1"), None);
        assert_eq!(parse(&vec![b'='; LONGEST + 1]), None);
        assert_eq!(parse(&vec![b'='; LONGEST]), Some(vec![]));
    }

    #[tokio::test]
    async fn a_flood_of_nonsense_hides_nothing_and_the_file_goes_with_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify.sock");
        let mut notify = NotifySocket::bind(path.clone()).unwrap();
        let worker = std::os::unix::net::UnixDatagram::unbound().unwrap();
        worker.send_to(&[b'x'; 9000], &path).unwrap();
        worker.send_to(b"nonsense", &path).unwrap();
        worker.send_to(b"READY=1", &path).unwrap();
        assert_eq!(notify.next().await.unwrap(), [Message::Ready]);
        assert_eq!(notify.malformed, 2);
        drop(notify);
        assert!(!path.exists());
    }
}
