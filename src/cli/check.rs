//! `homescar check`.

use std::path::Path;

use super::{Exit, complain_faults, print, serve};
use crate::app;

/// Prints the whole effective configuration, or all faults; then those of the files that it names.
pub(super) fn run(file: &Path) -> Exit {
    let config = match serve::load(file) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    match app::check(&config) {
        Ok(warnings) => {
            if !warnings.is_empty() {
                complain_faults(warnings.join("\n"));
            }
            print(config.to_toml().as_bytes());
            Exit::Ok
        }
        Err(faults) => {
            complain_faults(faults);
            Exit::Config
        }
    }
}
