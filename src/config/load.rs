//! Where a configuration comes from: a file, a text, or the command line.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
};

use super::{Config, Facts, Faults, RunOptions, fault::Position, resolve, run};

/// The longest file that is read.
const MAX_SIZE: u64 = 1 << 20;

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// All that is wrong with it; or the one reason why there is nothing to read.
    pub fn load(path: &Path, facts: &Facts) -> Result<Self, Faults> {
        let name = path.display().to_string();
        let bytes = read(path).map_err(|why| Faults::of_file(&name, why))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
            let Position { line, column } = Position::of(&before, valid);
            let message =
                format!("is not UTF-8 text, from line {line}, column {column} on; save it as such");
            Faults::of_file(&name, message)
        })?;
        Self::parse(&text, &name, facts)
    }

    /// Reads a configuration from a text. `name` stands in front of its faults; where it is a
    /// path, relative paths in the text start at its folder.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str, name: &str, facts: &Facts) -> Result<Self, Faults> {
        let is_blank = |line: &str| line.trim().is_empty() || line.trim().starts_with('#');
        if text.trim_start_matches('\u{feff}').lines().all(is_blank) {
            let message = "is empty; the smallest configuration is a [listener.web] with `bind` \
                           and `cluster`, and a [cluster.app] with `workers` or `backends`";
            return Err(Faults::of_file(name, message.to_owned()));
        }
        resolve::resolve(text, name, facts)
    }

    /// The configuration of `homescar run`: a listener `web` before a cluster `app`.
    ///
    /// # Errors
    /// All that is wrong with the options and with `WEB_CONCURRENCY`, by their names.
    pub fn for_run(options: RunOptions, facts: &Facts) -> Result<Self, Faults> {
        run::resolve(options, facts)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut bytes));
    read.map_err(|error| explain(&error))?;
    match bytes.len() as u64 > MAX_SIZE {
        true => Err("is larger than 1 MiB: this is no configuration".to_owned()),
        false => Ok(bytes),
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "does not exist; check the path".to_owned(),
        ErrorKind::PermissionDenied => {
            "cannot be read: permission denied; check the rights of the file and its folders"
                .to_owned()
        }
        ErrorKind::IsADirectory => {
            "is a directory; write the path of the file in it, as in homescar.toml".to_owned()
        }
        _ => format!("cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_to_be_unreadable_are_told_apart() {
        let told = |kind: ErrorKind| explain(&kind.into());
        assert!(told(ErrorKind::NotFound).starts_with("does not exist"));
        assert!(told(ErrorKind::PermissionDenied).contains("permission denied"));
        assert!(told(ErrorKind::IsADirectory).starts_with("is a directory"));
        assert!(told(ErrorKind::TimedOut).starts_with("cannot be read: "));
    }
}
