//! What commands that speak to a running homescar have in common.

use std::path::PathBuf;

use serde::{Serialize, de::DeserializeOwned};

use super::{Exit, complain, serve};
use crate::{
    admin::client::{Client, ClientError},
    config::Facts,
};

/// Which homescar, and how the answer looks.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// The admin socket of the homescar that is meant [default: HOMESCAR_SOCKET, else
    /// /run/homescar.sock, or, when not root, homescar.sock in XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Arguments {
    /// Where it is spoken to.
    pub(super) fn path(&self) -> PathBuf {
        let default = || Facts::of_this_process().socket;
        self.socket.clone().unwrap_or_else(default)
    }

    /// Speaks with it.
    pub(super) fn speak(
        &self,
        conversation: impl AsyncFnOnce(Client) -> Result<Exit, ClientError>,
    ) -> Exit {
        let socket = self.path();
        serve::with_runtime(async {
            let spoken = match Client::connect(&socket).await {
                Ok(client) => conversation(client).await,
                Err(error) => Err(error),
            };
            spoken.unwrap_or_else(|error| {
                complain(&error);
                match error {
                    ClientError::Unreachable(..) | ClientError::Foreign(..) => Exit::Unavailable,
                    _ => Exit::Failure,
                }
            })
        })
    }

    /// Asks for something and shows the answer.
    pub(super) fn ask<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        show: impl FnOnce(&T) -> String,
    ) -> Exit {
        self.speak(async |mut client| {
            let answer = client.get::<T>(path).await?;
            self.show(&answer, show)
        })
    }

    /// Tells something and shows the answer.
    pub(super) fn tell<T: Serialize + DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        show: impl FnOnce(&T) -> String,
    ) -> Exit {
        self.speak(async |mut client| {
            let answer = client.post::<T>(path, body).await?;
            self.show(&answer, show)
        })
    }

    fn show<T: Serialize>(
        &self,
        answer: &T,
        show: impl FnOnce(&T) -> String,
    ) -> Result<Exit, ClientError> {
        let text = match self.json {
            true => serde_json::to_string_pretty(answer)? + "\n",
            false => show(answer),
        };
        super::print(text.as_bytes());
        Ok(Exit::Ok)
    }
}
