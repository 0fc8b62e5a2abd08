//! What a worker is told: its environment.

use std::{env, num::NonZeroU32, path::PathBuf, time::Duration};

use super::{DemoError, HUB_VAR, REDIS_VAR};

/// All that a worker is told: its part of a worker's contract, and where the bus is.
#[derive(Clone)]
pub struct WorkerEnv {
    /// `PORT`: where to listen.
    pub listen: Listen,
    /// `HOMESCAR_SLOT`: the slot, such as `chat/0`. Default `chat/0`.
    pub slot: String,
    /// `HOMESCAR_GENERATION`. Default 1.
    pub generation: u64,
    /// `NOTIFY_SOCKET`, if anyone wants to be notified.
    pub notify_socket: Option<String>,
    /// `WATCHDOG_USEC`: how often the supervisor must hear from the event loop, if at all.
    pub watchdog: Option<Duration>,
    /// `HOMESCAR_DEMO_HUB`: the hub's socket.
    pub hub: Option<PathBuf>,
    /// `REDIS_URL`; beats the hub.
    pub redis_url: Option<String>,
}

/// Where a worker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A port of the IPv4 loopback address; 0 lets the kernel choose.
    Port(u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl WorkerEnv {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`DemoError::Missing`] and [`DemoError::Invalid`].
    pub fn from_env() -> Result<Self, DemoError> {
        Self::from_vars(|name| env::var(name).ok())
    }

    /// Reads the variables that `var` gives.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, DemoError> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let port = var("PORT").ok_or(DemoError::Missing {
            name: "PORT",
            hint: "give a port, or the path of a Unix socket",
        })?;
        let listen = if port.contains('/') {
            Listen::Unix(port.into())
        } else {
            Listen::Port(number("PORT", &port, "a port or a path")?)
        };
        let generation = var("HOMESCAR_GENERATION");
        let watchdog = var("WATCHDOG_USEC");
        let watchdog = watchdog.as_deref().map(|usec| {
            number::<NonZeroU32>("WATCHDOG_USEC", usec, "a number of microseconds")
                .map(|usec| Duration::from_micros(usec.get().into()))
        });
        let (hub, redis_url) = (var(HUB_VAR).map(PathBuf::from), var(REDIS_VAR));
        if hub.is_none() && redis_url.is_none() {
            return Err(DemoError::Missing {
                name: HUB_VAR,
                hint: "give the path of the hub's socket, or a REDIS_URL; \
                       or let `homescar demo` do it all",
            });
        }
        Ok(Self {
            listen,
            slot: var("HOMESCAR_SLOT").unwrap_or_else(|| "chat/0".to_owned()),
            generation: generation.map_or(Ok(1), |text| {
                number("HOMESCAR_GENERATION", &text, "a number")
            })?,
            notify_socket: var("NOTIFY_SOCKET"),
            watchdog: watchdog.transpose()?,
            hub,
            redis_url,
        })
    }
}

impl std::fmt::Debug for WorkerEnv {
    /// Without the Redis's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerEnv")
            .field("listen", &self.listen)
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("hub", &self.hub)
            .field("redis", &self.redis_url.is_some())
            .finish_non_exhaustive()
    }
}

fn number<T: std::str::FromStr>(
    name: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<T, DemoError> {
    value.parse().map_err(|_not| DemoError::Invalid {
        name,
        value: value.to_owned(),
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<WorkerEnv, String> {
        let find = |name: &str| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        WorkerEnv::from_vars(find).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_the_contract_of_a_worker() {
        let env = read(&[
            ("PORT", "4000"),
            ("HOMESCAR_SLOT", "chat/2"),
            ("HOMESCAR_GENERATION", "7"),
            ("WATCHDOG_USEC", "500000"),
            (HUB_VAR, "/run/hub"),
            (REDIS_VAR, ""),
        ])
        .unwrap();
        assert_eq!(env.listen, Listen::Port(4000));
        assert_eq!((env.slot.as_str(), env.generation), ("chat/2", 7));
        assert_eq!(env.watchdog, Some(Duration::from_millis(500)));
        assert_eq!(env.redis_url, None, "empty is not set");
        let env = read(&[("PORT", "./w.sock"), (HUB_VAR, "h")]).unwrap();
        assert_eq!(env.listen, Listen::Unix("./w.sock".into()));
    }

    #[test]
    fn says_what_is_wrong_with_the_environment() {
        let told = |vars: &[(&str, &str)]| read(vars).unwrap_err();
        assert_eq!(
            told(&[]),
            "the environment has no PORT: give a port, or the path of a Unix socket"
        );
        assert_eq!(
            told(&[("PORT", "65536"), (HUB_VAR, "h")]),
            "PORT=\"65536\" is not a port or a path"
        );
        assert!(told(&[("PORT", "1")]).starts_with("the environment has no HOMESCAR_DEMO_HUB"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let env = read(&[("PORT", "1"), (REDIS_VAR, "redis://:secret@h")]).unwrap();
        assert!(!format!("{env:?}").contains("secret"));
    }
}
