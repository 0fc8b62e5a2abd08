//! What a slot's task waits for; for ever, where there is nothing to wait for.

use std::io;

use tokio::{sync::mpsc, time::Instant};

use super::memory::{Diet, Most};
use crate::supervisor::{
    notify::{Message, NotifySocket},
    process::Process,
    rollout::Replace,
};

/// Waits until the worker is to be replaced, by somebody or by its size.
pub(super) async fn asked(
    replacements: &mut mpsc::Receiver<Replace>,
    diet: &mut Diet,
    most: Option<Most>,
) -> Replace {
    tokio::select! {
        Some(replace) = replacements.recv() => replace,
        replace = diet.too_big(most) => replace,
    }
}

pub(super) async fn exited(process: Option<&Process>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn told(notify: Option<&mut NotifySocket>) -> io::Result<Vec<Message>> {
    match notify {
        Some(notify) => notify.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
