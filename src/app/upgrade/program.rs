//! The program that an upgrade executes.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Where this program was started from, and how: what an upgrade executes.
#[derive(Clone, Debug)]
pub struct Program {
    /// The file. It may be another one by now: that is the point.
    pub path: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// By the command line of this process. A name that does not lead to this program, as it is
    /// there for people only, is no path to it.
    #[must_use]
    pub fn of(name: &OsStr, arguments: Vec<OsString>) -> Self {
        let this = Path::new("/proc/self/exe");
        let real = || fs::read_link(this).unwrap_or_else(|_| this.to_owned());
        let typed = Path::new(name);
        let places = match typed.components().count() {
            ..2 if !name.to_string_lossy().contains('/') => {
                let folders = std::env::var_os("PATH").unwrap_or_default();
                let folders: Vec<_> = std::env::split_paths(&folders).collect();
                folders.iter().map(|folder| folder.join(typed)).collect()
            }
            _ => vec![typed.to_owned()],
        };
        let mut places = places
            .into_iter()
            .filter_map(|place| std::path::absolute(place).ok());
        let path = places.find(|place| is_same_file(place, this));
        Self {
            path: path.unwrap_or_else(real),
            arguments,
        }
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}
