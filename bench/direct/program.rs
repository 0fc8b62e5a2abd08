//! What the kernel's program adds to a connect. It runs for the SYN, over loopback on the CPU of
//! the client, and so in the client's time.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use homescar::{
    affinity::{Masks, Probes, Table},
    direct::attach,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    Outcome,
    machine::{Cpus, Usage},
    print, spread,
};

const CONNECTS: u32 = 30_000;
const SEED: u64 = 0;

/// Connects to a socket alone, and to groups with their program; in turns.
pub(crate) fn measure(cpus: Cpus, rounds: usize) -> Outcome {
    cpus.take_proxy()?;
    let kinds = [None, Some(1), Some(8), Some(64)];
    let groups = kinds.map(|slots| Ok((slots, Group::start(slots)?)));
    let groups = groups.into_iter().collect::<Outcome<Vec<_>>>()?;
    cpus.take_load()?;
    let mut samples = vec![Vec::new(); groups.len()];
    for _ in 0..rounds {
        for ((_, group), samples) in groups.iter().zip(&mut samples) {
            connect(group.address, CONNECTS / 10)?;
            let before = Usage::of_this_thread()?;
            connect(group.address, CONNECTS)?;
            let cpu = Usage::of_this_thread()?.since(before).cpu;
            samples.push(cpu.as_secs_f64() * 1e6 / f64::from(CONNECTS));
        }
    }
    print("| a connect, CPU of the client in µs | |\n|---|---|");
    for ((slots, _), samples) in groups.iter().zip(samples) {
        let name = match slots {
            None => "to a socket alone, no program".to_owned(),
            Some(slots) => format!("to a group of {slots}, with its program"),
        };
        print(&format!("| {name} | {} |", spread(samples)));
    }
    print("");
    Ok(())
}

fn connect(to: SocketAddr, times: u32) -> Outcome {
    for time in 0..times {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let [high, low] = ((time % 10_000 + 1) as u16).to_be_bytes();
        let from = Ipv4Addr::new(127, 1, high, low);
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        // No TIME_WAIT, of which there would soon be too many.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&to.into())?;
    }
    Ok(())
}

/// Listening sockets, and a thread that accepts and lets go.
struct Group {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Group {
    fn start(slots: Option<usize>) -> Outcome<Self> {
        let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut sockets: Vec<TcpListener> = Vec::new();
        for _ in 0..slots.unwrap_or(1) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_port(slots.is_some())?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            socket.set_nonblocking(true)?;
            let socket = TcpListener::from(socket);
            address = socket.local_addr()?;
            sockets.push(socket);
        }
        if let Some(slots) = slots {
            let names: Vec<_> = (0..slots).map(|slot| format!("app/{slot}")).collect();
            let weighted = names.iter().map(|name| (&**name, NonZeroU32::MIN));
            let positions: Vec<_> = (0..slots as u32).map(Some).collect();
            let probes = Probes::new(Ipv4Addr::new(127, 72, 83, 0), positions.clone())?;
            let program = Table::new(SEED, weighted).program(
                Masks { v4: 32, v6: 64 },
                SEED,
                &positions,
                Some(&probes),
            )?;
            attach(&sockets[0], &program)?;
        }
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let _detached = thread::Builder::new().spawn(move || accept(&sockets, &told))?;
        Ok(Self { address, over })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}

fn accept(sockets: &[TcpListener], over: &AtomicBool) {
    use std::os::fd::AsFd as _;
    let fds = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
    let mut fds: Vec<_> = fds.collect();
    while !over.load(Relaxed) {
        if poll(&mut fds, PollTimeout::from(100_u16)).is_err() {
            return;
        }
        for (socket, fd) in sockets.iter().zip(&fds) {
            while fd.any() == Some(true)
                && let Ok((stream, _)) = socket.accept()
            {
                let _gone = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }
}
