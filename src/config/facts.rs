//! What a configuration needs to know of the machine, as an argument, so that the same file
//! means the same in every test.

use std::{
    env,
    ffi::OsString,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{AccessFlags, User, eaccess, geteuid},
};

/// Descriptors that are kept for everything but client connections (96 of them for the pipes that bulk
/// goes through) …
const RESERVED_DESCRIPTORS: u64 = 256;
/// … and for each worker: pipes, notify socket, pidfd, listening socket, checks.
const DESCRIPTORS_PER_WORKER: u64 = 8;

/// What the machine and the environment of the process are like.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Cores that this process may use: `"auto"` of `threads` and `count`.
    pub cores: NonZeroUsize,
    /// The hard limit of open descriptors (`RLIMIT_NOFILE`).
    pub max_descriptors: u64,
    /// The effective user; 0 may run workers as somebody else.
    pub euid: u32,
    /// The current directory: relative paths of the command line start here.
    pub folder: PathBuf,
    /// `PATH`: where programs without a `/` in their name are looked for.
    pub path: OsString,
    /// `WEB_CONCURRENCY`: workers of `homescar run`, unless it is told how many.
    pub web_concurrency: Option<String>,
    /// Where a homescar of this user is spoken to unless it is said otherwise: `HOMESCAR_SOCKET`,
    /// else `/run/homescar.sock` for root, else `homescar.sock` in `XDG_RUNTIME_DIR`, else
    /// `homescar-UID.sock` in the folder for temporary files.
    pub socket: PathBuf,
    /// Whether there is a user of this name.
    pub has_user: fn(&str) -> bool,
}

impl Facts {
    /// The facts of this process, now.
    #[must_use]
    pub fn of_this_process() -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE);
        Self {
            cores: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            max_descriptors: descriptors.map_or(1024, |(_soft, hard)| hard),
            euid: geteuid().as_raw(),
            folder: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            path: env::var_os("PATH").unwrap_or_default(),
            web_concurrency: env::var_os("WEB_CONCURRENCY")
                .map(|value| value.to_string_lossy().into_owned()),
            socket: socket(geteuid().as_raw()),
            has_user: |name| matches!(User::from_name(name), Ok(Some(_))),
        }
    }

    /// Connections that the descriptor limit allows beside so many workers: two descriptors
    /// each, and some for us.
    #[must_use]
    pub const fn max_connections(&self, workers: usize) -> u64 {
        let reserved = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_WORKER * workers as u64;
        let connections = self.max_descriptors.saturating_sub(reserved) / 2;
        if connections == 0 { 1 } else { connections }
    }

    /// Whether `program` could be started: found and executable. `cwd` and `path` are the
    /// worker's own, where it has any.
    ///
    /// # Errors
    /// Why it could not, as a sentence for the person who wrote the command.
    pub(super) fn check_program(
        &self,
        program: &str,
        cwd: Option<&Path>,
        path: Option<&str>,
    ) -> Result<(), String> {
        let folder = cwd.unwrap_or(&self.folder);
        if program.contains('/') {
            let file = folder.join(program);
            return startable(&file).map_err(|why| match file == Path::new(program) {
                true => format!("`{program}` {why}"),
                false => format!("`{program}` ({}) {why}", file.display()),
            });
        }
        let place = if path.is_some() {
            "the PATH of `env`"
        } else {
            "PATH"
        };
        let path = path.map_or_else(|| self.path.clone(), OsString::from);
        let mut found = None;
        for entry in env::split_paths(&path) {
            let file = folder.join(entry).join(program);
            match startable(&file) {
                Ok(()) => return Ok(()),
                Err(why) if file.is_file() => {
                    let told = || format!("`{program}` ({}) {why}", file.display());
                    found.get_or_insert_with(told);
                }
                Err(_) => {}
            }
        }
        Err(found.unwrap_or_else(|| {
            format!("`{program}` was not found in {place}; install it, or write its whole path")
        }))
    }
}

fn socket(euid: u32) -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let runtime_dir = || set("XDG_RUNTIME_DIR").map(PathBuf::from);
    match (set("HOMESCAR_SOCKET"), euid) {
        (Some(socket), _) => socket.into(),
        (None, 0) => "/run/homescar.sock".into(),
        (None, _) => runtime_dir().map_or_else(
            || env::temp_dir().join(format!("homescar-{euid}.sock")),
            |folder| folder.join("homescar.sock"),
        ),
    }
}

/// Whether a file can be executed, or why not.
fn startable(file: &Path) -> Result<(), &'static str> {
    match fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err("cannot be reached: permission denied; check the folders above it")
        }
        Err(_) => Err("does not exist; check the path"),
        Ok(metadata) if metadata.is_dir() => Err("is a directory; write the path of a program"),
        Ok(_) if eaccess(file, AccessFlags::X_OK).is_err() => {
            Err("is not executable; make it so with `chmod +x`")
        }
        Ok(_) => Ok(()),
    }
}
