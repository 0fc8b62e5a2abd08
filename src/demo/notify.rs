//! What the worker tells its supervisor: the worker's half of `sd_notify(3)`.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use tracing::debug;

use super::DemoError;

/// A `NOTIFY_SOCKET`, or nobody who wants to know.
#[derive(Debug)]
pub(super) struct Notify {
    socket: Option<UnixDatagram>,
}

impl Notify {
    /// Connects to `name`: a path, or `@name` for the abstract namespace.
    ///
    /// # Errors
    /// [`DemoError::System`] when the socket is not there.
    pub(super) fn connect(name: Option<&str>) -> Result<Self, DemoError> {
        let socket = name
            .map(open)
            .transpose()
            .map_err(|source| DemoError::System {
                what: "the connection to NOTIFY_SOCKET",
                source,
            })?;
        Ok(Self { socket })
    }

    /// Sends `state`, one assignment a line. It never blocks: a message for which the supervisor
    /// has no room is lost, and the next one takes its place.
    pub(super) fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(state.as_bytes()) {
            debug!(%error, state, "the supervisor did not take a notification");
        }
    }

    /// Sends `WATCHDOG=1` for ever, twice in each `period`. Being a task of the event loop, it is
    /// silent when the loop is.
    pub(super) async fn watchdog(&self, period: Duration) {
        let mut ticks = tokio::time::interval(period / 2);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }
}

fn open(name: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.strip_prefix('@') {
        Some(hidden) => socket.connect_addr(&SocketAddr::from_abstract_name(hidden)?)?,
        None => socket.connect(name)?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Notify::connect(path.to_str()).unwrap().send("READY=1");
        assert_eq!(received(&by_path), "READY=1");

        let hidden = format!("homescar-test-{}-{}", std::process::id(), fastrand::u64(..));
        let address = SocketAddr::from_abstract_name(&hidden).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let notify = Notify::connect(Some(&format!("@{hidden}"))).unwrap();
        notify.send("STOPPING=1");
        assert_eq!(received(&by_name), "STOPPING=1");
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error_and_none_is_fine() {
        assert!(Notify::connect(Some("/nonexistent/notify")).is_err());
        Notify::connect(None).unwrap().send("READY=1");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_twice_a_period() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::connect(path.to_str()).unwrap();
        let fed = tokio::time::timeout(
            Duration::from_millis(1900),
            notify.watchdog(Duration::from_secs(1)),
        );
        assert!(fed.await.is_err());
        supervisor.set_nonblocking(true).unwrap();
        let count = std::iter::from_fn(|| supervisor.recv(&mut [0; 64]).ok()).count();
        assert_eq!(count, 4, "at 0, 0.5, 1 and 1.5 seconds");
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}
