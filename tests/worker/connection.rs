//! What the worker does with a connection. The client's first line says it:
//!
//! | line | answer |
//! |---|---|
//! | `whoami` | a line of JSON; then the next command |
//! | `echo` | from then on every byte comes back |
//! | `sink` | reads to the end, answers `COUNT FNV1A`, closes |
//! | `source N` | N bytes of a pattern (position modulo 251), closes |
//! | `reset` | RST |
//! | `close` | FIN |
//! | `hang` | the whole process acts dead from then on |
//! | `die` | the whole process aborts |
//! | `GET /ws HTTP/1.1` | a WebSocket: `whoami` as a message, then each message comes back |
//! | `GET /PATH HTTP/1.1` | 200, or for `/health` the status in `--health-file`; keep-alive |

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process,
    time::Duration,
};

use tokio_tungstenite::tungstenite::{
    Message, WebSocket, handshake::derive_accept_key, protocol::Role,
};

use crate::{HUNG, hang, leaving, options::Options};
use std::sync::atomic::Ordering;

const PROXY_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

pub(crate) struct Connection {
    stream: BufReader<Stream>,
    peer: String,
    proxy: Option<String>,
}

impl Connection {
    pub(crate) fn tcp(stream: TcpStream, peer: SocketAddr) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::new(Stream::Tcp(stream), peer.to_string())
    }

    pub(crate) fn unix(stream: UnixStream) -> Self {
        Self::new(Stream::Unix(stream), "unix".to_owned())
    }

    fn new(stream: Stream, peer: String) -> Self {
        Self {
            stream: BufReader::new(stream),
            peer,
            proxy: None,
        }
    }

    pub(crate) fn serve(mut self, options: &Options) -> io::Result<()> {
        if options.proxy {
            self.read_proxy_header()?;
        }
        if options.banner {
            self.whoami()?;
        }
        if options.mute {
            io::copy(&mut self.stream, &mut io::sink())?;
            return Ok(());
        }
        while let Some(line) = self.line()? {
            if HUNG.load(Ordering::SeqCst) {
                hang();
            }
            let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
            match command {
                "whoami" => self.whoami()?,
                "echo" => return self.echo(),
                "sink" => return self.sink(),
                "source" => return self.source(argument.parse().map_err(io::Error::other)?),
                "reset" => return self.reset(),
                "close" => return Ok(()),
                "hang" => hang(),
                "die" => process::abort(),
                "GET" => {
                    if !self.http(argument, options)? {
                        return Ok(());
                    }
                }
                _ => writeln!(self.out(), "what is {command:?}?")?,
            }
        }
        Ok(())
    }

    fn out(&mut self) -> &mut Stream {
        self.stream.get_mut()
    }

    /// The next line without its end; `None` at the end of the stream.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(line.trim_end().to_owned()))
    }

    fn whoami(&mut self) -> io::Result<()> {
        let text = self.identity();
        writeln!(self.out(), "{text}")
    }

    fn identity(&self) -> String {
        let var = |name: &str| env::var(name).unwrap_or_default();
        let (slot, generation) = (var("HOMESCAR_SLOT"), var("HOMESCAR_GENERATION"));
        let generation: u32 = generation.parse().unwrap_or(0);
        let (pid, peer) = (process::id(), &self.peer);
        let proxy = match &self.proxy {
            Some(header) => format!(r#","proxy":"{}""#, header.escape_default()),
            None => String::new(),
        };
        format!(
            r#"{{"slot":"{slot}","generation":{generation},"pid":{pid},"peer":"{peer}"{proxy}}}"#
        )
    }

    fn echo(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        loop {
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.out().write_all(&buffer[..read])?;
        }
    }

    fn sink(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        let (mut count, mut hash) = (0_u64, 0xcbf2_9ce4_8422_2325_u64);
        loop {
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                return writeln!(self.out(), "{count} {hash:016x}");
            }
            count += read as u64;
            for byte in &buffer[..read] {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    fn source(&mut self, count: u64) -> io::Result<()> {
        // A multiple of the pattern's length, so that every piece begins alike.
        let pattern: Vec<u8> = (0..251_u8).cycle().take(251 * 256).collect();
        let mut left = count;
        while left > 0 {
            let part = pattern
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            self.out().write_all(&pattern[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    fn reset(self) -> io::Result<()> {
        match self.stream.into_inner() {
            Stream::Tcp(stream) => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }

    /// Answers one request; false when the connection is to end.
    fn http(&mut self, rest: &str, options: &Options) -> io::Result<bool> {
        let path = rest.split(' ').next().unwrap_or("/").to_owned();
        let (mut keep, mut key) = (true, None);
        while let Some(header) = self.line()?.filter(|line| !line.is_empty()) {
            keep &= !header.eq_ignore_ascii_case("connection: close");
            let (name, value) = header.split_once(": ").unwrap_or_default();
            if name.eq_ignore_ascii_case("sec-websocket-key") {
                key = Some(value.to_owned());
            }
        }
        if let (Some(key), "/ws") = (key, &*path) {
            self.websocket(&key);
            return Ok(false);
        }
        let status = match &options.health_file {
            Some(file) if path == "/health" => fs::read_to_string(file)?.trim().to_owned(),
            _ => "200".to_owned(),
        };
        let body = self.identity() + "\n";
        keep &= !leaving::is_on();
        let connection = if keep { "keep-alive" } else { "close" };
        write!(
            self.out(),
            "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
            body.len(),
        )?;
        Ok(keep)
    }

    /// Says who it is, and sends back what comes, until the end.
    fn websocket(&mut self, key: &str) {
        let accept = derive_accept_key(key.as_bytes());
        let text = self.identity();
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        if self.out().write_all(head.as_bytes()).is_err() {
            return;
        }
        let mut socket = WebSocket::from_raw_socket(self.out(), Role::Server, None);
        let mut next = Ok(Message::text(text));
        while let Ok(message) = next {
            if matches!(message, Message::Text(_) | Message::Binary(_))
                && socket.send(message).is_err()
            {
                return;
            }
            next = socket.read();
        }
    }

    /// `v1 TCP4 SRC DST SPORT DPORT`, or `v2 COMMAND SRC:PORT DST:PORT`, or how it looked.
    fn read_proxy_header(&mut self) -> io::Result<()> {
        let mut start = [0; 12];
        self.stream.read_exact(&mut start)?;
        if &start != PROXY_V2 {
            let mut line = start.to_vec();
            if !line.ends_with(b"\n") {
                self.stream.read_until(b'\n', &mut line)?;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end().trim_start_matches("PROXY ");
            self.proxy = Some(format!("v1 {text}"));
            return Ok(());
        }
        let mut head = [0; 4];
        self.stream.read_exact(&mut head)?;
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        self.stream.read_exact(&mut rest)?;
        let command = if head[0] == 0x20 { "LOCAL" } else { "PROXY" };
        let addresses = match (head[1] >> 4, rest.len()) {
            (1, 12..) => {
                let ip = |at: usize| <[u8; 4]>::try_from(&rest[at..at + 4]).unwrap();
                Some((ip(0).into(), ip(4).into(), 8))
            }
            (2, 36..) => {
                let ip = |at: usize| <[u8; 16]>::try_from(&rest[at..at + 16]).unwrap();
                Some((ip(0).into(), ip(16).into(), 32))
            }
            _ => None,
        };
        self.proxy = Some(match addresses {
            Some((source, target, at)) => {
                let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
                let source = SocketAddr::new(source, port(at));
                let target = SocketAddr::new(target, port(at + 2));
                format!("v2 {command} {source} {target}")
            }
            None => format!("v2 {command} family {:#x}", head[1]),
        });
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
