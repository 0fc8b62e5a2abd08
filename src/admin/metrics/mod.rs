//! The page of metrics: gathered when it is asked for, from what is at work then, so that what is
//! gone is not shown any more.
//!
//! Labels are few and stable: listeners, clusters and slots by name. A generation, a pid and an
//! address are labels of `homescar_slot_info` alone.

mod listeners;
mod process;
mod slots;

use std::{collections::BTreeMap, fmt, sync::Arc};

use tokio::task::spawn_blocking;

use super::{Board, standing};
use crate::{
    direct::Usage,
    metrics::{self, Format, Page, Sheet},
};

/// The page.
pub(super) async fn page(board: &Arc<Board>, format: Format) -> Result<String, fmt::Error> {
    let gathered = Gathered {
        usages: standing::usages(board).await,
        board: Arc::clone(board),
    };
    // It reads what the kernel tells of each worker, which may be many.
    let written = spawn_blocking(move || metrics::write(gathered, format)).await;
    written.unwrap_or(Err(fmt::Error))
}

#[derive(Debug)]
struct Gathered {
    board: Arc<Board>,
    /// Of direct listeners, by cluster and slot.
    usages: BTreeMap<String, Vec<Usage>>,
}

impl Sheet for Gathered {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        process::write(page, &self.board)?;
        listeners::write(page, &self.board, &self.usages)?;
        slots::write(page, &self.board, &self.usages)
    }
}
