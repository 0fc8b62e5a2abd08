//! The rude little worker of the tests: it listens as its contract says, and misbehaves in
//! whatever way it is told to. Blocking threads and std, so that it shares nothing with what it
//! tests.
#![expect(
    clippy::disallowed_methods,
    clippy::exit,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test program: it may sleep, spawn, exit and print, and dies of what it does not expect"
)]

mod connection;
mod leaving;
mod options;

use std::{
    env, fs,
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::net::{UnixDatagram, UnixListener},
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    signal::{SigSet, Signal},
};

use connection::Connection;
use options::Options;

/// The whole process acts dead: `hang` was said to it.
static HUNG: AtomicBool = AtomicBool::new(false);

fn main() {
    let mut args = env::args().skip(1).peekable();
    if let Some(mode) = args.next_if(|arg| arg.starts_with("__")) {
        return leave_behind(&mode);
    }
    let options = Arc::new(Options::parse(args));
    handle_term(&options);
    if options.greedy {
        limit_memory();
    }
    for text in &options.stderr {
        eprintln!("{text}");
    }
    if let Some(after) = options.exit_after {
        let code = options.exit_code;
        thread::spawn(move || {
            thread::sleep(after);
            process::exit(code);
        });
    }
    if options.children {
        start_children();
    }
    if options.flood > 0 {
        flood(options.flood);
    }
    if options.print_env {
        for (name, value) in env::vars() {
            println!("{name}={value}");
        }
    }
    if options.never_listen {
        sleep_for_ever();
    }
    thread::sleep(options.ready_after);
    let listeners = match options.wrong_port {
        true => vec![Listener::somewhere_else()],
        false => Listener::by_contract(),
    };
    if options.ready_notify {
        notify("READY=1\nSTATUS=serving");
    }
    if options.watchdog {
        thread::spawn(ping);
    }
    for listener in listeners {
        let options = Arc::clone(&options);
        thread::spawn(move || listener.serve(&options));
    }
    if options.greedy {
        be_greedy();
    }
    sleep_for_ever();
}

/// A process that has more address space than this gets none.
const MEMORY: u64 = 1 << 30;

fn limit_memory() {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).unwrap();
}

fn be_greedy() -> ! {
    let mut all = Vec::new();
    loop {
        thread::sleep(Duration::from_millis(5));
        // Address space, which is what is limited: no machine is short of memory by it.
        all.push(vec![0_u8; 64 << 20]);
    }
}

/// How the contract gives us our socket.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn by_contract() -> Vec<Self> {
        if let Ok(count) = env::var("LISTEN_FDS") {
            assert_eq!(env::var("LISTEN_PID").unwrap(), process::id().to_string());
            let numbers = 3..3 + count.parse::<i32>().unwrap();
            return numbers.map(|number| Self::Tcp(inherited(number))).collect();
        }
        let port = env::var("PORT").expect("PORT or LISTEN_FDS");
        vec![match port.parse::<u16>() {
            Ok(port) => Self::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()),
            Err(_) => Self::Unix(UnixListener::bind(port).unwrap()),
        }]
    }

    fn somewhere_else() -> Self {
        Self::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    }

    fn never_block(&self) {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
        .unwrap();
    }

    fn serve(self, options: &Arc<Options>) -> ! {
        if options.graceful {
            // Another generation may have the same socket, and be faster.
            self.never_block();
        }
        loop {
            if options.graceful && !leaving::wait_for_client(&self) {
                drop(self);
                leaving::end();
            }
            let accepted = match &self {
                Self::Tcp(listener) => listener
                    .accept()
                    .map(|(stream, peer)| Connection::tcp(stream, peer)),
                Self::Unix(listener) => listener
                    .accept()
                    .map(|(stream, _)| Connection::unix(stream)),
            };
            if HUNG.load(Ordering::SeqCst) {
                sleep_for_ever();
            }
            let Ok(connection) = accepted else { continue };
            let options = Arc::clone(options);
            let open = leaving::Open::count();
            thread::spawn(move || {
                let _rude_client = connection.serve(&options);
                drop(open);
            });
        }
    }
}

#[expect(unsafe_code, reason = "a descriptor that is known by its number only")]
fn inherited(number: i32) -> TcpListener {
    use std::os::fd::FromRawFd;
    // SAFETY: LISTEN_FDS says that this descriptor is ours, and nobody else here owns it.
    unsafe { TcpListener::from_raw_fd(number) }
}

/// From now on nothing is accepted, answered or pinged.
fn hang() -> ! {
    HUNG.store(true, Ordering::SeqCst);
    sleep_for_ever()
}

fn sleep_for_ever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn handle_term(options: &Options) {
    if !options.ignore_term && !options.graceful && options.term_delay.is_zero() {
        return;
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    // Threads that are started later inherit the mask.
    signals.thread_block().unwrap();
    let (ignore, delay) = (options.ignore_term, options.term_delay);
    let graceful = options.graceful;
    thread::spawn(move || {
        loop {
            signals.wait().unwrap();
            eprintln!("TERM");
            if graceful {
                leaving::begin();
            } else if !ignore {
                notify("STOPPING=1");
                thread::sleep(delay);
                process::exit(0);
            }
        }
    });
}

fn notify(text: &str) {
    if let Ok(path) = env::var("NOTIFY_SOCKET") {
        let socket = UnixDatagram::unbound().unwrap();
        let _nobody_listens = socket.send_to(text.as_bytes(), path);
    }
}

fn ping() {
    let micros = env::var("WATCHDOG_USEC").unwrap().parse().unwrap();
    assert_eq!(env::var("WATCHDOG_PID").unwrap(), process::id().to_string());
    let every = Duration::from_micros(micros) / 3;
    while !HUNG.load(Ordering::SeqCst) {
        notify("WATCHDOG=1");
        thread::sleep(every);
    }
}

fn flood(mut bytes: u64) {
    let mut line = vec![b'x'; 1023];
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    while bytes > 0 {
        let part = line.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        stdout.write_all(&line[..part]).unwrap();
        bytes -= part as u64;
    }
    stdout.flush().unwrap();
}

/// A child in our group with an empty environment, and a grandchild in a session of its own that
/// nobody waits for; both sleep for ever. Prints their pids.
fn start_children() {
    let start = |mode: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg(mode).stdin(Stdio::null());
        command
    };
    let mut child = start("__child").env_clear().spawn().unwrap();
    println!("child {}", child.id());
    let between = start("__daemonise")
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    println!(
        "grandchild {}",
        String::from_utf8_lossy(&between.stdout).trim()
    );
    thread::spawn(move || child.wait());
}

fn leave_behind(mode: &str) {
    match mode {
        "__child" => sleep_for_ever(),
        "__daemonise" => {
            #[expect(clippy::zombie_processes, reason = "it outlives us: that is its point")]
            let daemon = Command::new(env::current_exe().unwrap())
                .arg("__daemon")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // It is to be found in its own session as soon as its pid is known.
            let stat = format!("/proc/{}/stat", daemon.id());
            let session = |stat: String| stat.split(' ').nth(5).unwrap().to_owned();
            while session(fs::read_to_string(&stat).unwrap()) != daemon.id().to_string() {
                thread::yield_now();
            }
            println!("{}", daemon.id());
        }
        "__daemon" => {
            nix::unistd::setsid().unwrap();
            sleep_for_ever()
        }
        _ => panic!("unknown mode {mode}"),
    }
}
