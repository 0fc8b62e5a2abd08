//! The first thing that an image does which follows another: it takes what that has left.

use std::{ffi::OsString, fs, path::Path};

use serde::Deserialize;

use super::{
    execute::{RESUME, REVIVE},
    state::{FORMAT, State},
    way_back::{self, WayBack},
};
use crate::{
    app::{ConfigFile, StartError, check},
    config::{Config, Facts},
    handover::{Incoming, Number},
};

/// What an earlier image has left for this one.
#[derive(Debug)]
pub struct Takeover {
    pub(super) state: State,
    pub(super) incoming: Incoming,
    /// Where the state is.
    number: Number,
    /// Why this image is gone back to.
    pub(super) failed: Option<String>,
    /// Of this process, without those that say that it takes over.
    arguments: Vec<OsString>,
}

/// There is nothing to take over, or nothing that this image understands.
#[derive(Debug, thiserror::Error)]
#[error("cannot take over from another homescar: {0}")]
pub struct NoTakeover(String);

/// The part of a state that every image understands.
#[derive(Debug, Deserialize)]
struct Return {
    old_image: Option<Number>,
    descriptors: Vec<Number>,
}

impl Takeover {
    /// What the arguments of this process say that there is; takes them out. To be called before
    /// anything is opened.
    ///
    /// # Errors
    /// When an upgrade was begun that this image cannot understand, and there is no way back.
    pub fn of(arguments: &mut Vec<OsString>) -> Result<Option<Self>, NoTakeover> {
        let extra = match arguments.get(1).and_then(|first| first.to_str()) {
            Some(RESUME) => 2,
            Some(REVIVE) => 3,
            _ => return Ok(None),
        };
        let end = (1 + extra).min(arguments.len());
        let extra: Vec<OsString> = arguments.drain(1..end).collect();
        let text = |index: usize| extra.get(index).map(|text| text.to_string_lossy());
        let number = text(1).and_then(|number| number.parse().ok());
        let number = number.map(Number::told);
        let number = number.ok_or_else(|| NoTakeover("no descriptor is named".to_owned()))?;
        let failed = text(2).map(std::borrow::Cow::into_owned);
        let path = format!("/proc/self/fd/{}", number.get());
        let text = fs::read(&path).map_err(|error| NoTakeover(format!("{path}: {error}")))?;
        let fault = |error: &dyn std::fmt::Display| NoTakeover(format!("{path}: {error}"));
        let back: Return = serde_json::from_slice(&text).map_err(|error| fault(&error))?;
        let numbers = back.descriptors.into_iter().chain([number]);
        let incoming = Incoming::claim(numbers).map_err(|error| fault(&error))?;
        match State::read(&text) {
            Ok(state) => {
                let takeover = Self {
                    state,
                    incoming,
                    number,
                    failed,
                    arguments: arguments.clone(),
                };
                if let Ok(way) = takeover.way_back() {
                    way.open();
                }
                Ok(Some(takeover))
            }
            Err(why) if failed.is_some() => Err(NoTakeover(why)),
            Err(why) => {
                let Some(image) = back.old_image else {
                    return Err(NoTakeover(format!("{why}; there is no way back")));
                };
                let way = WayBack {
                    image,
                    state: number,
                    descriptors: incoming.numbers().collect(),
                    arguments: arguments.clone(),
                };
                Err(NoTakeover::after(&why, Ok(way)))
            }
        }
    }

    /// The configuration that was in use.
    ///
    /// # Errors
    /// When this image does not understand it.
    pub fn config(&self) -> Result<Config, String> {
        self.state.config()
    }

    /// Leaves everything to the image before, which goes on. Returns when that cannot be.
    #[must_use]
    pub fn go_back(self, why: &str) -> NoTakeover {
        let way = self.way_back();
        way_back::close();
        self.incoming.pass_on();
        NoTakeover::after(why, way)
    }

    /// The way to the image before, or why there is none.
    pub(super) fn way_back(&self) -> Result<WayBack, String> {
        if let Some(failed) = &self.failed {
            return Err(format!("the new program had failed: {failed}"));
        }
        let image = self.state.old_image;
        Ok(WayBack {
            image: image.ok_or("there is no way back")?,
            state: self.number,
            descriptors: self.incoming.numbers().collect(),
            arguments: self.arguments.clone(),
        })
    }
}

impl State {
    fn read(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
            version: String,
        }
        let version = env!("CARGO_PKG_VERSION");
        let said: Format = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if said.format != FORMAT {
            return Err(format!(
                "homescar {version} takes over states of format {FORMAT}, and {} has \
                 written one of format {}: restart homescar instead",
                said.version, said.format
            ));
        }
        serde_json::from_slice(text).map_err(|error| {
            format!(
                "homescar {version} does not understand the state of {}: {error}",
                said.version
            )
        })
    }

    fn config(&self) -> Result<Config, String> {
        let facts = Facts::of_this_process();
        Config::parse(&self.config, "the configuration in use", &facts)
            .map_err(|faults| faults.to_string())
    }
}

/// Says whether this image could take over: it understands the state, which is in stdin, and both the
/// configuration in use and that of the file, which it would read next.
///
/// # Errors
/// Why it could not.
pub fn check_upgrade(file: Option<&ConfigFile>) -> Result<(), String> {
    // Not by the descriptor itself, which shares its position with others.
    let text = fs::read("/proc/self/fd/0").map_err(|error| error.to_string())?;
    let state = State::read(&text)?;
    let mut config = state.config()?;
    if let Some(ConfigFile { path, .. }) = file {
        config = load(path)?;
    }
    let checked = check(&config);
    checked.map_err(|error: StartError| error.to_string())?;
    Ok(())
}

fn load(path: &Path) -> Result<Config, String> {
    Config::load(path, &Facts::of_this_process()).map_err(|faults| faults.to_string())
}

impl NoTakeover {
    /// What is left to say after this, when nobody could go back either.
    pub(super) fn after(why: &str, way: Result<WayBack, String>) -> Self {
        match way {
            Ok(way) => Self(format!("{why}; the way back is closed: {}", way.take(why))),
            Err(none) => Self(format!("{why}; {none}")),
        }
    }
}
