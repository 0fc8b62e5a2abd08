//! The chat demo: its workers as processes, over the hub and over a real Redis, and its page in a
//! real browser.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod browser;
mod bus;
pub(crate) mod chromium;
pub(crate) mod client;
mod front;
pub(crate) mod process;
pub(crate) mod tour;
mod worker;

use std::time::Duration;

/// Longer than anything here takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The output of `future`, which must come in time.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {} s: {what}", PATIENCE.as_secs()),
    }
}
