//! `homescar check`.

use std::{
    io::{self, Write as _},
    path::Path,
};

use super::{Exit, serve};

/// Prints the whole effective configuration, or all faults.
pub(super) fn run(file: &Path) -> Exit {
    match serve::load(file) {
        Ok(config) => {
            // A reader that has seen enough (`| head`) is no failure.
            let _closed = io::stdout().write_all(config.to_toml().as_bytes());
            Exit::Ok
        }
        Err(exit) => exit,
    }
}
