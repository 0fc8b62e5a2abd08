//! `homescar upgrade`: the running homescar becomes the program that now stands in its place.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Exit, complain, print, socket};
use crate::admin::{
    client::{Client, ClientError},
    view::{Done, Status},
};

/// For the next program to answer at the socket.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

pub(super) fn run(arguments: &socket::Arguments) -> Exit {
    let socket = arguments.path();
    arguments.speak(async |mut client| {
        let before = client.get::<Status>("/status").await?;
        match client.post::<Done>("/upgrade", &()).await {
            // The connection ends with the image that had it.
            Err(ClientError::Broken(_)) => {}
            Err(error) => return Err(error),
            Ok(_) => {
                complain("homescar answered that it has gone, and is there");
                return Ok(Exit::Failure);
            }
        }
        let after = status_of_next(&socket).await?;
        if after.pid != before.pid {
            complain("another homescar answers at the socket now");
            return Ok(Exit::Failure);
        }
        let text = match arguments.json {
            true => serde_json::to_string_pretty(&after)? + "\n",
            false => format!("upgraded from {} to {}\n", before.version, after.version),
        };
        print(text.as_bytes());
        Ok(Exit::Ok)
    })
}

async fn status_of_next(socket: &Path) -> Result<Status, ClientError> {
    let deadline = Instant::now() + ANSWERS_WITHIN;
    loop {
        let asked = match Client::connect(socket).await {
            Ok(mut client) => client.get::<Status>("/status").await,
            Err(error) => Err(error),
        };
        match asked {
            Err(_) if Instant::now() < deadline => sleep(TRY_AGAIN).await,
            asked => return asked,
        }
    }
}
