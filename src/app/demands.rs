//! What a running homescar is told: by signals, and by the admin API.

use std::path::Path;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{App, ConfigFile, Signal, log_faults, upgrade::Left};
use crate::{
    admin::{self, Demand, Refused},
    config::{Config, Facts},
};

/// Where both come in.
#[derive(Debug)]
pub(super) struct Inbox {
    signals: mpsc::Receiver<Signal>,
    demands: mpsc::Receiver<Demand>,
}

/// What goes on after one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    End,
}

impl Inbox {
    pub(super) const fn new(
        signals: mpsc::Receiver<Signal>,
        demands: mpsc::Receiver<Demand>,
    ) -> Self {
        Self { signals, demands }
    }

    /// The next of either.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            signal = self.signals.recv() => Told::Signal(signal.unwrap_or(Signal::Shutdown)),
            Some(demand) = self.demands.recv() => Told::Demand(demand),
        }
    }

    /// What has come until now.
    pub(super) fn try_next(&mut self) -> Option<Told> {
        let signal = self.signals.try_recv().map(Told::Signal);
        let told = signal.or_else(|_| self.demands.try_recv().map(Told::Demand));
        told.ok()
    }

    /// Waits for the next demand to end; all others make no sense any more.
    pub(super) async fn next_shutdown(&mut self) {
        loop {
            tokio::select! {
                signal = self.signals.recv() => match signal {
                    Some(Signal::Shutdown) => return,
                    Some(Signal::Reload | Signal::More | Signal::Fewer | Signal::Upgrade) => {}
                    None => std::future::pending().await,
                },
                Some(demand) = self.demands.recv() => {
                    if demand.is_stop_or_refused(Refused::Ending) {
                        return;
                    }
                }
            }
        }
    }
}

/// One thing that was told.
#[derive(Debug)]
pub(super) enum Told {
    Signal(Signal),
    Demand(Demand),
}

impl App {
    /// Does what was told.
    pub(super) async fn obey(&mut self, told: Told, inbox: &mut Inbox) -> Next {
        match told {
            Told::Signal(Signal::Reload) => {
                let _said_in_the_log = self.reload_file().await;
            }
            Told::Signal(Signal::Upgrade) => return self.try_upgrade(inbox).await.0,
            Told::Demand(Demand::Upgrade(answer)) => {
                let (next, why) = self.try_upgrade(inbox).await;
                admin::reply(answer, Err(Refused::Failed(why)));
                return next;
            }
            Told::Signal(Signal::More) => self.scale_all(1).await,
            Told::Signal(Signal::Fewer) => self.scale_all(-1).await,
            Told::Signal(Signal::Shutdown) => return Next::End,
            Told::Demand(Demand::Reload(answer)) => {
                let reloaded = self.reload_file().await.map_err(Refused::Failed);
                admin::reply(answer, reloaded);
            }
            Told::Demand(Demand::Restart {
                cluster,
                parallel,
                answer,
            }) => admin::reply(answer, self.restart(&cluster, parallel)),
            Told::Demand(Demand::Scale {
                cluster,
                count,
                answer,
            }) => admin::reply(answer, self.scale(&cluster, count).await),
            Told::Demand(Demand::Slot {
                slot,
                state,
                answer,
            }) => admin::reply(answer, self.set_admin(&slot, state).await),
            Told::Demand(Demand::Stop(answer)) => {
                admin::reply(answer, Ok(()));
                return Next::End;
            }
        }
        Next::GoOn
    }

    /// Reads the configuration again, and takes it on; what is wrong with it is logged too.
    async fn reload_file(&mut self) -> Result<(), String> {
        self.manager.reloading("reading the configuration again");
        let reloaded = self.try_reload_file().await;
        self.manager.ready(&self.status());
        self.office.board.reloaded(reloaded.clone());
        reloaded
    }

    async fn try_reload_file(&mut self) -> Result<(), String> {
        let Some(ConfigFile { path, log }) = self.file.clone() else {
            let why = "nothing to reload: homescar was started without a configuration file";
            warn!("{why}");
            return Err(why.to_owned());
        };
        let mut config = Config::load(&path, &Facts::of_this_process()).map_err(|faults| {
            log_faults(&faults);
            faults.to_string()
        })?;
        config.log = log.over(config.log);
        self.change_to(config, &path).await
    }

    /// Becomes the next program, if it can; else says why not.
    async fn try_upgrade(&mut self, inbox: &mut Inbox) -> (Next, String) {
        let (left, why) = self.upgrade(inbox).await;
        match left {
            Left::Nothing => {}
            Left::Reload => {
                let _said_in_the_log = self.reload_file().await;
            }
            Left::End => return (Next::End, why),
        }
        (Next::GoOn, why)
    }

    /// Takes on another configuration; what speaks against it is logged too.
    pub(super) async fn change_to(&mut self, config: Config, path: &Path) -> Result<(), String> {
        match self.reload(config).await {
            Ok(()) => {
                info!(file = %path.display(), "reloaded");
                Ok(())
            }
            Err(error) => {
                for line in error.to_string().lines() {
                    warn!("not reloaded, nothing has changed: {line}");
                }
                Err(error.to_string())
            }
        }
    }
}
