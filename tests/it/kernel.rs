//! The kernel sends each client where the affinity function says.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use homescar::{
    affinity::{AffinityKey, Instruction, Masks, NO_POSITION, Probes, Table, capacity},
    direct::{AttachError, attach},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
};
use socket2::{Domain, Socket, Type};

const SLOTS: usize = 8;
const SEED: u64 = 0x5ca1_ab1e_0000_0001;
const MASKS: Masks = Masks { v4: 32, v6: 64 };
const PROBE_BASE: Ipv4Addr = Ipv4Addr::new(127, 72, 83, 0);
const SOON: Duration = Duration::from_secs(20);

/// Listening sockets on one port, index = slot.
struct Group {
    sockets: Vec<TcpListener>,
    port: u16,
}

impl Group {
    fn bind(address: IpAddr) -> Self {
        let mut port = 0;
        let sockets = (0..SLOTS).map(|_| {
            let domain = Domain::for_address((address, port).into());
            let socket = Socket::new(domain, Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(false).unwrap();
            }
            socket.set_reuse_port(true).unwrap();
            socket
                .bind(&SocketAddr::from((address, port)).into())
                .unwrap();
            socket.listen(1024).unwrap();
            socket.set_nonblocking(true).unwrap();
            let listener = TcpListener::from(socket);
            port = listener.local_addr().unwrap().port();
            listener
        });
        let sockets = sockets.collect();
        Self { sockets, port }
    }

    fn attach(&self, program: &[Instruction]) {
        attach(&self.sockets[0], program).unwrap();
    }

    /// Whom the kernel gave to which slot; waits so long for somebody to come.
    fn accept(&self, timeout: Duration) -> Vec<(usize, IpAddr)> {
        let interest = |socket| PollFd::new(AsFd::as_fd(socket), PollFlags::POLLIN);
        let mut ready: Vec<_> = self.sockets.iter().map(interest).collect();
        poll(&mut ready, PollTimeout::try_from(timeout).unwrap()).unwrap();
        let mut accepted = Vec::new();
        for (slot, socket) in self.sockets.iter().enumerate() {
            loop {
                match socket.accept() {
                    Ok((_, peer)) => accepted.push((slot, peer.ip().to_canonical())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("slot {slot}: {error}"),
                }
            }
        }
        accepted
    }

    /// The slot that a new connection from this address is given to.
    fn slot_of(&self, source: IpAddr) -> usize {
        let _client = connect(source, self.port).unwrap();
        let accepted = self.accept(SOON);
        let [(slot, peer)] = *accepted else {
            panic!("{source} came, but {accepted:?} arrived");
        };
        assert_eq!(peer, source);
        slot
    }

    /// Connects from each source, and compares with the table; how many the slots got.
    fn agrees(
        &self,
        table: &Table,
        usable: &[Option<u32>],
        sources: impl Iterator<Item = IpAddr>,
    ) -> [usize; SLOTS] {
        let mut counts = [0; SLOTS];
        for source in sources {
            let slot = self.slot_of(source);
            assert_eq!(Some(slot), home(table, usable, source), "{source}");
            counts[slot] += 1;
        }
        counts
    }
}

/// Connects from one loopback or local address to the loopback address of its family.
fn connect(source: IpAddr, port: u16) -> io::Result<TcpStream> {
    let target: IpAddr = match source {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = Socket::new(Domain::for_address((source, 0).into()), Type::STREAM, None)?;
    if source.is_ipv6() {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&SocketAddr::from((target, port)).into(), SOON)?;
    Ok(socket.into())
}

/// `app/0` …, of which `app/2` counts three times.
fn table() -> Table {
    let names: Vec<_> = (0..SLOTS).map(|slot| format!("app/{slot}")).collect();
    let slots = names.iter().enumerate().map(|(slot, name)| {
        let weight = if slot == 2 { 3 } else { 1 };
        (&**name, NonZeroU32::new(weight).unwrap())
    });
    Table::new(SEED, slots)
}

/// The positions of the slots that take clients.
fn all_but(skipped: &[usize]) -> [Option<u32>; SLOTS] {
    std::array::from_fn(|slot| (!skipped.contains(&slot)).then_some(slot as u32))
}

fn home(table: &Table, usable: &[Option<u32>], source: IpAddr) -> Option<usize> {
    let key = AffinityKey::from_address(source, MASKS, SEED);
    table.candidates(key).find(|slot| usable[*slot].is_some())
}

/// Random addresses of 127.128.0.0/9, where no probe address is.
fn loopback_sources(seed: u64) -> impl Iterator<Item = IpAddr> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || {
        Ipv4Addr::new(127, random.u8(128..), random.u8(..), random.u8(1..255)).into()
    })
}

fn clients_go_home_in(group: &Group, seed: u64) {
    let table = table();
    let probes = Probes::new(PROBE_BASE, all_but(&[])).unwrap();
    for skipped in [&[][..], &[5], &[0, 2, 7], &[0, 1, 2, 4, 5, 6, 7]] {
        let usable = all_but(skipped);
        let program = table.program(MASKS, SEED, &usable, Some(&probes)).unwrap();
        group.attach(&program);
        let counts = group.agrees(&table, &usable, loopback_sources(seed).take(400));
        for (slot, count) in counts.into_iter().enumerate() {
            assert_eq!(count == 0, skipped.contains(&slot), "slot {slot}: {count}");
        }
        for slot in 0..SLOTS {
            let source = probes.address(slot).unwrap();
            assert_eq!(group.slot_of(source.into()), slot, "{source}");
        }
    }
}

#[test]
fn clients_go_home_over_ipv4() {
    clients_go_home_in(&Group::bind(Ipv4Addr::LOCALHOST.into()), 4);
}

#[test]
fn clients_go_home_over_a_dual_stack_socket() {
    let group = Group::bind(Ipv6Addr::UNSPECIFIED.into());
    clients_go_home_in(&group, 46);
    let (table, usable) = (table(), all_but(&[3]));
    let program = table.program(MASKS, SEED, &usable, None).unwrap();
    group.attach(&program);
    let both = loopback_sources(64).step_by(2).take(20);
    let both = both.flat_map(|v4| [v4, Ipv6Addr::LOCALHOST.into()]);
    group.agrees(&table, &usable, both);
}

/// In a network of its own, where all of `2001:db8::/32` is local.
#[test]
fn clients_go_home_over_ipv6() {
    let network = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
        for command in ["link set lo up", "-6 route add local 2001:db8::/32 dev lo"] {
            let done = Command::new("ip").args(command.split(' ')).status();
            assert!(done.unwrap().success(), "ip {command}");
        }
        let group = Group::bind(Ipv6Addr::UNSPECIFIED.into());
        let table = table();
        let mut random = fastrand::Rng::with_seed(6);
        for skipped in [&[][..], &[1, 6]] {
            let usable = all_but(skipped);
            let program = table.program(MASKS, SEED, &usable, None).unwrap();
            group.attach(&program);
            let networks = std::iter::repeat_with(|| {
                0x2001_0db8 << 96 | u128::from(random.u32(..)) << 64 | u128::from(random.u64(..))
            });
            let sources = networks
                .take(500)
                .flat_map(|bits| [bits, bits ^ 0xff_ffff])
                .map(|bits| Ipv6Addr::from_bits(bits).into());
            let counts = group.agrees(&table, &usable, sources);
            for (slot, count) in counts.into_iter().enumerate() {
                assert_eq!(count == 0, skipped.contains(&slot), "slot {slot}: {count}");
            }
        }
        // What /128 folds, and what /0 does not.
        for masks in [Masks { v4: 32, v6: 128 }, Masks { v4: 0, v6: 0 }] {
            let program = table.program(masks, SEED, &all_but(&[]), None).unwrap();
            group.attach(&program);
            for host in 0..100 {
                let source = Ipv6Addr::from_bits(0x2001_0db8 << 96 | host).into();
                let key = AffinityKey::from_address(source, masks, SEED);
                assert_eq!(Some(group.slot_of(source)), table.home(key), "{source}");
            }
        }
    });
    network.join().unwrap();
}

/// Slots 0 to 4 take turns with slots 2 to 5; 6 and 7 are in neither table.
#[test]
fn a_new_program_takes_over_without_a_lost_or_stray_client() {
    const SWAPS: usize = 2_000;
    const CONNECTS: usize = 4_000;
    let group = Group::bind(Ipv4Addr::LOCALHOST.into());
    let table = table();
    let turns = [all_but(&[5, 6, 7]), all_but(&[0, 1, 6, 7])];
    let programs = turns.map(|usable| table.program(MASKS, SEED, &usable, None).unwrap());
    group.attach(&programs[0]);

    let (connected, over) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let deadline = Instant::now() + 3 * SOON;
    thread::scope(|scope| {
        let clients = [7, 8].map(|seed| {
            let port = group.port;
            scope.spawn(move || {
                let mut sources = loopback_sources(seed);
                while !over.load(Relaxed) {
                    let client = connect(sources.next().unwrap(), port);
                    over.fetch_or(client.is_err(), Relaxed);
                    client?;
                    connected.fetch_add(1, Relaxed);
                }
                io::Result::Ok(())
            })
        });
        let swaps = scope.spawn(|| {
            let mut swaps = 0;
            while !over.load(Relaxed) {
                swaps += 1;
                group.attach(&programs[swaps % 2]);
                let enough = swaps >= SWAPS && connected.load(Relaxed) >= CONNECTS;
                over.fetch_or(enough || Instant::now() > deadline, Relaxed);
                thread::yield_now();
            }
            swaps
        });

        let (mut accepted, mut strays) = (0, Vec::new());
        // How many went where only the one or only the other table sends them.
        let mut went = [0; 2];
        while !clients.iter().all(thread::ScopedJoinHandle::is_finished)
            || accepted < connected.load(Relaxed)
        {
            let came = group.accept(Duration::from_millis(10));
            assert!(!came.is_empty() || Instant::now() < deadline + SOON);
            for (slot, source) in came {
                accepted += 1;
                let homes = turns.map(|usable| home(&table, &usable, source));
                if !homes.contains(&Some(slot)) {
                    strays.push((source, slot, homes));
                } else if homes[0] != homes[1] {
                    went[usize::from(homes[1] == Some(slot))] += 1;
                }
            }
        }
        for client in clients {
            client.join().unwrap().unwrap();
        }
        let (swaps, connected) = (swaps.join().unwrap(), connected.load(Relaxed));
        assert!(
            swaps >= SWAPS && connected >= CONNECTS,
            "{swaps}, {connected}"
        );
        assert_eq!(accepted, connected);
        assert_eq!(strays, []);
        assert!(went.iter().all(|count| *count > CONNECTS / 100), "{went:?}");
    });
}

#[test]
fn without_a_position_the_kernel_spreads_clients_itself() {
    let group = Group::bind(Ipv4Addr::LOCALHOST.into());
    let probes = Probes::new(PROBE_BASE, all_but(&[])).unwrap();
    let program = table().program(MASKS, SEED, &[], Some(&probes)).unwrap();
    assert_eq!(program.last().unwrap().k, NO_POSITION);
    group.attach(&program);
    let client = loopback_sources(1).next().unwrap();
    let slots: BTreeSet<_> = (0..100).map(|_| group.slot_of(client)).collect();
    assert!(slots.len() > SLOTS / 2, "{slots:?}");
    for slot in 0..SLOTS {
        assert_eq!(group.slot_of(probes.address(slot).unwrap().into()), slot);
    }
}

#[test]
fn the_longest_program_is_taken_and_a_lone_socket_is_refused() {
    let fit = capacity(MASKS, None);
    let names: Vec<_> = (0..fit).map(|slot| format!("app/{slot}")).collect();
    let table = Table::new(SEED, names.iter().map(|name| (&**name, NonZeroU32::MIN)));
    // Everybody's home has a socket, though there are only eight.
    let positions: Vec<_> = (0..fit as u32).map(|slot| Some(slot % 8)).collect();
    let program = table.program(MASKS, SEED, &positions, None).unwrap();
    let group = Group::bind(Ipv4Addr::LOCALHOST.into());
    group.attach(&program);
    for source in loopback_sources(2).take(100) {
        let key = AffinityKey::from_address(source, MASKS, SEED);
        assert_eq!(group.slot_of(source), table.home(key).unwrap() % 8);
    }

    let lone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let refused = AttachError::Refused {
        instructions: program.len(),
        source: Errno::EINVAL,
    };
    assert_eq!(attach(&lone, &program), Err(refused));
}
