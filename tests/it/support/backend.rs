//! Backends of the test itself, whose manners can change.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What a backend does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Answers each line with its name.
    Lines,
    /// Hears a line, and resets the connection.
    Reset,
    /// Answers each request with this status and its name.
    Status(u16),
    /// Hears a request, and ends the connection.
    Close,
    /// Hears a request, and says nothing.
    Hang,
}

/// A backend that is ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    manners: Mutex<Manners>,
    open: AtomicUsize,
    most: AtomicUsize,
    heard: Mutex<Vec<String>>,
}

impl Backend {
    pub(crate) async fn start(name: &str, manners: Manners) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), name, manners).await
    }

    pub(crate) async fn start_at(address: SocketAddr, name: &str, manners: Manners) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            manners: Mutex::new(manners),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            heard: Mutex::default(),
        });
        let mut task = JoinSet::new();
        let of_task = Arc::clone(&shared);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let open = of_task.open.fetch_add(1, Relaxed) + 1;
                of_task.most.fetch_max(open, Relaxed);
                let shared = Arc::clone(&of_task);
                connections.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    shared.serve(&mut stream).await;
                    // Before its end is seen at the other end, from where the next may come at once.
                    shared.open.fetch_sub(1, Relaxed);
                });
            }
        });
        Self {
            address,
            shared,
            _task: task,
        }
    }

    pub(crate) fn behave(&self, manners: Manners) {
        *self.shared.manners.lock().unwrap() = manners;
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Relaxed)
    }

    /// The most that were ever open at one time.
    pub(crate) fn most(&self) -> usize {
        self.shared.most.load(Relaxed)
    }

    /// All that it heard: lines, or the first lines of requests.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.shared.heard.lock().unwrap().clone()
    }
}

impl Shared {
    async fn serve(&self, stream: &mut BufReader<TcpStream>) {
        loop {
            let mut line = String::new();
            if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
                return;
            }
            let line = line.trim_end().to_owned();
            self.heard.lock().unwrap().push(line);
            let manners = *self.manners.lock().unwrap();
            let name = &self.name;
            let answer = match manners {
                Manners::Lines => format!("{name}\n"),
                Manners::Reset => {
                    let stream = socket2::SockRef::from(stream.get_ref());
                    stream.set_linger(Some(Duration::ZERO)).unwrap();
                    return;
                }
                Manners::Status(status) => {
                    read_request(stream).await;
                    let length = name.len();
                    format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n{name}")
                }
                Manners::Close => {
                    read_request(stream).await;
                    return;
                }
                Manners::Hang => {
                    let _until_the_end = stream.read_to_end(&mut Vec::new()).await;
                    return;
                }
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// Reads what follows the first line of a request.
async fn read_request(stream: &mut BufReader<impl AsyncRead + Unpin>) {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
            return;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let _body = stream.read_exact(&mut vec![0; length]).await;
}
