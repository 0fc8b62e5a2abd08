//! The sockets of the API, and who may speak there.

use std::{
    convert::Infallible,
    fs, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{interval, sleep},
};
use tracing::{info, warn};

use super::{Board, Demand, api, token::Token};
use crate::config;

/// Connections to the API at one time; more wait.
const CONNECTIONS: usize = 64;
/// Those that may wait to be accepted.
const BACKLOG: i32 = 128;
/// For a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the control plane's lag is measured.
const BEAT: Duration = Duration::from_millis(500);
/// After the system refused to accept.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the API cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another homescar has the socket.
    #[error(
        "admin.socket: another homescar answers at {0}; end it, or name another socket for this one"
    )]
    Taken(PathBuf),
    /// What stands there is no socket.
    #[error("admin.socket: {0} is there and no socket; remove it, or name another path")]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("admin.socket: cannot listen on {0}: {1}")]
    Socket(PathBuf, io::Error),
    /// The address cannot be listened on.
    #[error("admin.listen: cannot listen on {0}: {1}")]
    Tcp(SocketAddr, io::Error),
    /// There is no token.
    #[error("admin.token_file: {0}: {1}")]
    Token(PathBuf, io::Error),
}

/// The sockets, before anybody is served.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    socket: Socket,
    tcp: Option<(StdTcpListener, Token)>,
}

/// The API at work. It ends when this is dropped.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    tcp: Option<SocketAddr>,
    _accepting: JoinSet<()>,
}

impl Bound {
    /// Binds what the configuration says. Where the socket is the one that nobody chose
    /// (`default`), and another homescar has it, it is one in `own` folder.
    ///
    /// # Errors
    /// When a socket cannot be had, or the token not be read.
    pub fn bind(config: &config::Admin, default: &Path, own: &Path) -> Result<Self, AdminError> {
        let (path, socket) = match bind_unix(&config.socket) {
            Ok(socket) => (config.socket.clone(), socket),
            Err(AdminError::Taken(_)) if config.socket == default => {
                let path = own.join("admin.sock");
                info!(
                    "another homescar answers at {}; this one does at {} (--socket)",
                    default.display(),
                    path.display()
                );
                let socket = bind_unix(&path)?;
                (path, socket)
            }
            Err(error) => return Err(error),
        };
        let tcp = config.tcp.as_ref().map(bind_tcp).transpose()?;
        Ok(Self { path, socket, tcp })
    }

    /// Answers from now on.
    ///
    /// # Errors
    /// When the runtime does not take the sockets.
    pub fn serve(self, board: &Arc<Board>, demands: &mpsc::Sender<Demand>) -> io::Result<Admin> {
        let Self { path, socket, tcp } = self;
        let address = tcp
            .as_ref()
            .and_then(|(listener, _)| listener.local_addr().ok());
        let mut accepting = JoinSet::new();
        let desk = |token: Option<Token>| Desk {
            board: Arc::clone(board),
            demands: demands.clone(),
            token,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        accepting.spawn(beat(Arc::clone(board)));
        let unix = UnixListener::from_std(socket.into())?;
        let at_unix = desk(None);
        accepting.spawn(at_unix.serve(async move || Ok(unix.accept().await?.0)));
        if let Some((listener, token)) = tcp {
            let tcp = TcpListener::from_std(listener)?;
            let at_tcp = desk(Some(token));
            accepting.spawn(at_tcp.serve(async move || Ok(tcp.accept().await?.0)));
        }
        Ok(Admin {
            path,
            tcp: address,
            _accepting: accepting,
        })
    }
}

impl Admin {
    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The real address of the one over TCP.
    #[must_use]
    pub const fn tcp(&self) -> Option<SocketAddr> {
        self.tcp
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Whoever answers at one of the sockets.
#[derive(Debug)]
struct Desk {
    board: Arc<Board>,
    demands: mpsc::Sender<Demand>,
    token: Option<Token>,
    places: Arc<Semaphore>,
}

impl Desk {
    async fn serve<S>(self, accept: impl AsyncFn() -> io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let desk = Arc::new(self);
        let mut open = JoinSet::new();
        loop {
            while open.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&desk.places).acquire_owned().await else {
                return;
            };
            match accept().await {
                Ok(stream) => {
                    open.spawn(Arc::clone(&desk).converse(stream, place));
                }
                Err(error) => {
                    warn!("the admin socket cannot accept: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse<S>(self: Arc<Self>, stream: S, _place: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let desk = Arc::clone(&self);
            async move {
                let (board, token) = (&desk.board, desk.token.as_ref());
                Ok::<_, Infallible>(api::answer(request, board, &desk.demands, token).await)
            }
        });
        // Whoever breaks off has no use for an answer.
        let _broken_off = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

/// Notes how late the control plane comes to a timer, for ever.
async fn beat(board: Arc<Board>) {
    let mut beat = interval(BEAT);
    loop {
        let due = beat.tick().await;
        board.lag().observe(due.elapsed());
    }
}

fn bind_unix(path: &Path) -> Result<Socket, AdminError> {
    let failed = |error| AdminError::Socket(path.to_owned(), error);
    let socket = match try_unix(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let there = fs::symlink_metadata(path).map_err(failed)?;
            if !there.file_type().is_socket() {
                return Err(AdminError::NoSocket(path.to_owned()));
            }
            match StdUnixStream::connect(path) {
                Ok(_) => return Err(AdminError::Taken(path.to_owned())),
                // Left behind by one that was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
            try_unix(path)
        }
        tried => tried,
    };
    socket.map_err(failed)
}

/// Nobody can connect before it listens, and by then it is closed to others.
fn try_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind_tcp(config: &config::AdminTcp) -> Result<(StdTcpListener, Token), AdminError> {
    let token = Token::read(&config.token_file)
        .map_err(|error| AdminError::Token(config.token_file.clone(), error))?;
    let bind = || {
        let listener = StdTcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listener = bind().map_err(|error| AdminError::Tcp(config.listen, error))?;
    Ok((listener, token))
}
