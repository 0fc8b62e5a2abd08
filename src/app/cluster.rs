//! A cluster with everything that keeps it up to date: controller, checks, workers.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{Cluster, Event},
    config::{self, Source},
    health::{Checker, Watch},
    supervisor::{Busy, Entrances, Home, Resumption, SlotReceipt, Supervisor},
    tls::Connector,
};

/// A cluster at work.
#[derive(Debug)]
pub(super) struct RunningCluster {
    cluster: Cluster,
    supervisor: Option<Supervisor>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl RunningCluster {
    pub(super) fn start(
        config: &config::Cluster,
        connector: Option<Arc<Connector>>,
        entrances: Entrances,
        home: &Arc<Home>,
        from: Option<&mut Resumption>,
    ) -> Self {
        let (cluster, controller) = Cluster::new(config);
        if let Some(connector) = connector {
            cluster.set_connector(connector);
        }
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.run_until_cancelled(controller.run()).await });
        let checker = Checker::new(cluster.clone());
        tasks.spawn(checker.run(stop.clone().cancelled_owned()));
        let watch = Watch::new(cluster.clone());
        tasks.spawn(watch.run(stop.clone().cancelled_owned()));
        let mut new = Self {
            cluster,
            supervisor: None,
            tasks,
            stop,
        };
        match (&config.source, from) {
            (Source::Workers(workers), Some(from)) => {
                let (cluster, home) = (new.cluster.clone(), Arc::clone(home));
                let workers = Arc::clone(workers);
                new.supervisor = Some(Supervisor::resume(cluster, home, workers, entrances, from));
            }
            _ => new.supervise(config, entrances, home),
        }
        new
    }

    /// Lets no worker be replaced, until what this gives is dropped. Waits for the replacement that
    /// is under way.
    pub(super) async fn hold_replacements(&self) -> Option<OwnedSemaphorePermit> {
        self.supervisor.as_ref()?.hold_replacements().await
    }

    /// A slot that was scaled away, and whose worker has not ended yet.
    pub(super) fn retiring(&self) -> Option<&Arc<str>> {
        self.supervisor.as_ref()?.retiring()
    }

    /// Runs a task for as long as the cluster is at work.
    pub(super) fn keep_running(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { stop.run_until_cancelled(task).await });
    }

    pub(super) const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes on another configuration. The table changes first, so that workers of slots that
    /// leave get no new clients while they drain.
    pub(super) async fn configure(
        &mut self,
        config: &config::Cluster,
        connector: Option<Arc<Connector>>,
        entrances: Entrances,
        home: &Arc<Home>,
    ) {
        if let Some(connector) = connector {
            self.cluster.set_connector(connector);
        }
        self.publish(config).await;
        self.supervise(config, entrances, home);
    }

    /// Returns once a configuration, and all that was reported before, is in the table.
    pub(super) async fn publish(&self, config: &config::Cluster) {
        let next = Arc::new(config.clone());
        self.cluster
            .report(Event::Configure(Arc::clone(&next)))
            .await;
        // The controller is alive as long as `self` is, so the answer comes; what it was told
        // before is published before.
        let _published = self
            .cluster
            .wait_until(Duration::from_secs(10), |now| {
                Arc::ptr_eq(&now.config, &next)
            })
            .await;
    }

    pub(super) fn supervise(
        &mut self,
        config: &config::Cluster,
        entrances: Entrances,
        home: &Arc<Home>,
    ) {
        match (&config.source, &mut self.supervisor) {
            (Source::Workers(workers), Some(supervisor)) => {
                supervisor.configure(Arc::clone(workers), entrances, config.drain.timeout);
            }
            (Source::Workers(workers), none @ None) => {
                let (cluster, home) = (self.cluster.clone(), Arc::clone(home));
                let workers = Arc::clone(workers);
                *none = Some(Supervisor::new(cluster, home, workers, entrances));
            }
            (Source::Static(_), _) => {}
        }
    }

    /// Replaces the workers, if it has any; see [`Supervisor::restart`].
    pub(super) fn restart(
        &mut self,
        parallel: NonZeroUsize,
    ) -> Option<Result<mpsc::Receiver<SlotReceipt>, Busy>> {
        let supervisor = self.supervisor.as_mut()?;
        Some(supervisor.restart(parallel))
    }

    /// The supervisor of workers that this cluster no longer has.
    pub(super) fn take_idle_supervisor(&mut self) -> Option<Supervisor> {
        let idle = matches!(self.cluster.load().config.source, Source::Static(_));
        if idle { self.supervisor.take() } else { None }
    }

    /// Ends the workers, by KILL at once when `now` is cancelled, and then all else.
    pub(super) async fn stop(self, now: &CancellationToken) {
        if let Some(supervisor) = &self.supervisor {
            stop_workers(supervisor, now).await;
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// TERM, `stop_timeout`, KILL; or KILL as soon as `now` is cancelled.
pub(super) async fn stop_workers(supervisor: &Supervisor, now: &CancellationToken) {
    let stopped = supervisor.stop();
    tokio::pin!(stopped);
    tokio::select! {
        () = &mut stopped => return,
        () = now.cancelled() => supervisor.kill_now(),
    }
    stopped.await;
}
