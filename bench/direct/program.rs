//! What a run of the kernel's program costs. It runs once for each SYN; here datagrams run the same
//! program, many times as often, in the time of their sender.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU32,
};

use homescar::{
    affinity::{Masks, Probes, Table},
    direct::attach,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Outcome,
    machine::{Cpus, Usage},
    print, spread,
};

const DATAGRAMS: u32 = 300_000;
const SEED: u64 = 0;

/// Sends to a group without a program, and to groups with theirs, in turns.
pub(crate) fn measure(cpus: Cpus, rounds: usize) -> Outcome {
    cpus.take_load()?;
    let kinds = [None, Some(1), Some(8), Some(64), Some(180)];
    let groups = kinds.map(|slots| Ok((slots, group(slots)?)));
    let groups = groups.into_iter().collect::<Outcome<Vec<_>>>()?;
    let sender = UdpSocket::bind((Ipv4Addr::new(127, 1, 7, 7), 0))?;
    let mut samples = vec![Vec::new(); groups.len()];
    for _ in 0..rounds {
        for ((_, sockets), samples) in groups.iter().zip(&mut samples) {
            let to = sockets[0].local_addr()?;
            send(&sender, to, DATAGRAMS / 10)?;
            let before = Usage::of_this_thread()?;
            send(&sender, to, DATAGRAMS)?;
            let cpu = Usage::of_this_thread()?.since(before).cpu;
            samples.push(cpu.as_secs_f64() * 1e6 / f64::from(DATAGRAMS));
        }
    }
    print("| a datagram, CPU of the sender in µs | |\n|---|---|");
    for ((slots, _), samples) in groups.iter().zip(samples) {
        let name = match slots {
            None => "to a group without a program".to_owned(),
            Some(slots) => format!("to a group of {slots}, with its program"),
        };
        print(&format!("| {name} | {} |", spread(samples)));
    }
    print("");
    Ok(())
}

fn send(sender: &UdpSocket, to: SocketAddr, times: u32) -> Outcome {
    for _ in 0..times {
        // Nobody reads; what does not fit is dropped after the program has run.
        sender.send_to(b"", to)?;
    }
    Ok(())
}

/// Sockets on one address, with the program for as many slots.
fn group(slots: Option<usize>) -> Outcome<Vec<UdpSocket>> {
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut sockets: Vec<UdpSocket> = Vec::new();
    for _ in 0..slots.unwrap_or(8) {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    let Some(slots) = slots else {
        return Ok(sockets);
    };
    let names: Vec<_> = (0..slots).map(|slot| format!("app/{slot}")).collect();
    let weighted = names.iter().map(|name| (&**name, NonZeroU32::MIN));
    let positions: Vec<_> = (0..slots as u32).map(Some).collect();
    let probes = Probes::new(Ipv4Addr::new(127, 72, 83, 0), positions.clone())?;
    let masks = Masks { v4: 32, v6: 64 };
    let table = Table::new(SEED, weighted);
    let program = table.program(masks, SEED, &positions, Some(&probes))?;
    attach(&sockets[0], &program)?;
    Ok(sockets)
}
