//! Where a running homescar is spoken to: the admin API, and the board that it reads.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::StartError;
use crate::{
    admin::{Admin, Board, Bound, Demand, Past},
    config::{self, Facts},
    proxy::DataPlane,
    supervisor::Home,
};

/// Demands of the admin API that may wait for the application; more make whoever asks wait.
const PENDING_DEMANDS: usize = 16;

/// The API at work.
#[derive(Debug)]
pub(super) struct Office {
    pub board: Arc<Board>,
    demands: mpsc::Receiver<Demand>,
    /// Not there when an upgrade could not have it again.
    admin: Option<Admin>,
}

impl Office {
    /// Opens it.
    pub(super) fn open(
        config: &config::Admin,
        file: Option<PathBuf>,
        home: &Home,
        plane: &Arc<DataPlane>,
        past: Past,
    ) -> Result<Self, StartError> {
        let bound = Bound::bind(config, &Facts::of_this_process().socket, home.dir())?;
        let (sender, mut office) = Self::closed(file, plane, past);
        office.admin = Some(bound.serve(&office.board, &sender)?);
        Ok(office)
    }

    /// Opens it again, after an upgrade: without it homescar goes on.
    pub(super) fn reopen(
        config: &config::Admin,
        file: Option<PathBuf>,
        home: &Home,
        plane: &Arc<DataPlane>,
        past: Past,
    ) -> Self {
        let opened = Self::open(config, file.clone(), home, plane, past.clone());
        opened.unwrap_or_else(|error| {
            warn!("{error}; until homescar is started anew, nobody can speak to it");
            Self::closed(file, plane, past).1
        })
    }

    fn closed(
        file: Option<PathBuf>,
        plane: &Arc<DataPlane>,
        past: Past,
    ) -> (mpsc::Sender<Demand>, Self) {
        let (sender, demands) = mpsc::channel(PENDING_DEMANDS);
        let board = Arc::new(Board::new(file, Arc::clone(plane), past));
        let office = Self {
            board,
            demands,
            admin: None,
        };
        (sender, office)
    }

    /// Gives what comes in there.
    pub(super) fn take_demands(&mut self) -> mpsc::Receiver<Demand> {
        let (_closed, none) = mpsc::channel(1);
        std::mem::replace(&mut self.demands, none)
    }

    /// Says where it is.
    pub(super) fn announce(&self) {
        if let Some(admin) = &self.admin {
            info!(
                socket = %admin.path().display(),
                tcp = admin.tcp().map(tracing::field::display),
                "answers to `homescar status`"
            );
        }
    }
}
