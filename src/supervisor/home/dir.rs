//! The runtime directory: the sockets of workers are below it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::supervisor::guard;

/// `sun_path` has 108 bytes with its terminator; the longest name that is put below the
/// directory is `/4294967295/notify-4294967295.sock`.
const LONGEST_DIR: usize = 107 - 34;

/// A directory that only we may enter, with a name short enough for the sockets in it. It is removed
/// when this is dropped; an image that another one follows drops nothing.
#[derive(Debug)]
pub(super) struct RuntimeDir(PathBuf);

impl RuntimeDir {
    pub(super) fn make() -> io::Result<Self> {
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix(guard::DIR_PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)
        };
        let dir = make(&std::env::temp_dir())?;
        let dir = match dir.path().as_os_str().len() <= LONGEST_DIR {
            true => dir,
            false => make(Path::new("/tmp"))?,
        };
        Ok(Self(TempDir::keep(dir)))
    }

    /// The one that an earlier image has made.
    pub(super) const fn made_before(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_its_name_short() {
        let dir = RuntimeDir::make().unwrap();
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(dir.path().as_os_str().len() <= LONGEST_DIR);
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
