//! Workers as processes, supervised by nobody but this.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{Outcome, machine::Cpus};

/// What they run.
pub(crate) const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/proxy/worker.js");
const COUNT: usize = 4;
/// What systemd waits by default before it starts a service again.
const RESTART_AFTER: Duration = Duration::from_millis(100);
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) addresses: Vec<SocketAddr>,
    processes: Vec<Child>,
    cpus: Cpus,
}

impl Workers {
    pub(crate) async fn start(cpus: Cpus) -> Outcome<Self> {
        let mut workers = Self {
            addresses: Vec::new(),
            processes: Vec::new(),
            cpus,
        };
        for slot in 0..COUNT {
            let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
            workers.addresses.push(address);
            workers.processes.push(spawn(cpus, slot, address)?);
        }
        for address in &workers.addresses {
            let deadline = Instant::now() + START_TIMEOUT;
            while TcpStream::connect(address).await.is_err() {
                if Instant::now() >= deadline {
                    return Err("a worker does not start".into());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(workers)
    }

    /// Kills one, and starts it again as systemd would.
    pub(crate) async fn restart(&mut self, slot: usize) -> Outcome {
        self.processes[slot].kill()?;
        self.processes[slot].wait()?;
        sleep(RESTART_AFTER).await;
        self.processes[slot] = spawn(self.cpus, slot, self.addresses[slot])?;
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _gone = process.kill();
            let _reaped = process.wait();
        }
    }
}

/// On the CPU of the proxy, where those that homescar starts are, too.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no supervisor to spawn with"
)]
fn spawn(cpus: Cpus, slot: usize, address: SocketAddr) -> Outcome<Child> {
    cpus.take_proxy()?;
    let spawned = Command::new("node")
        .arg(SERVER)
        .env("SLOT", slot.to_string())
        .env("PORT", address.port().to_string())
        .stdin(Stdio::null())
        .spawn();
    cpus.take_load()?;
    spawned.map_err(|error| format!("cannot run node: {error}").into())
}
