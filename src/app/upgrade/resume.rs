//! homescar goes on in another image of the program.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use ahash::HashMap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    NoTakeover, Program, Takeover,
    state::{SavedSlot, State},
    way_back,
};
use crate::{
    admin::Past,
    app::{
        App, Certificates, ConfigFile, Directs, Office, Place, Scale, ServiceManager, Signers,
        StartError, log_faults, secrets,
    },
    cluster::{Event, SavedAsked, SavedLearned},
    config::{Config, Facts},
    handover::Incoming,
    metrics::Counts,
    proxy::{BoundGroup, Carried, DataPlane, Listener},
    supervisor::Home,
};

/// For slots to be in the table as they were.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(5);

/// All that can fail.
struct Prepared {
    groups: HashMap<Place, BoundGroup>,
    directs: Directs,
    certificates: Certificates,
    signers: Signers,
    signing: secrets::Signing,
    plane: Arc<DataPlane>,
}

impl Prepared {
    fn new(state: &State, incoming: &Incoming, config: &Config) -> Result<Self, StartError> {
        let mut certificates = Certificates::default();
        let staged = certificates.stage(config)?;
        let signers = Signers::of(state.secret);
        let signing = signers.read(config)?;
        let mut groups = HashMap::default();
        for door in &state.doors {
            let sockets = door.sockets.iter();
            let sockets = sockets.map(|number| Ok(incoming.copy(*number)?.into()));
            let sockets: std::io::Result<Vec<_>> = sockets.collect();
            let sockets = sockets?;
            let mut listeners = config.listeners.iter();
            let listener = listeners.find(|listener| listener.name == door.listener);
            if let Some(place) = listener.and_then(|found| Place::of(found).nth(door.index)) {
                groups.insert(place, BoundGroup::of(sockets)?);
            }
        }
        let directs = Directs::resume(config, &state.directs, incoming)?;
        crate::proxy::write_records(config.log.records);
        let plane = DataPlane::start(config.threads, config.max_connections)?;
        certificates.take(staged);
        certificates.believe(&state.tickets);
        Ok(Self {
            groups,
            directs,
            certificates,
            signers,
            signing,
            plane: Arc::new(plane),
        })
    }

    fn into_app(
        self,
        config: Config,
        file: Option<ConfigFile>,
        home: Home,
        (program, scales): (Program, BTreeMap<Arc<str>, Scale>),
        past: Past,
    ) -> (App, HashMap<Place, BoundGroup>, secrets::Signing) {
        let Self {
            groups,
            directs,
            certificates,
            signers,
            signing,
            plane,
        } = self;
        let path = file.as_ref().map(|file| file.path.clone());
        let office = Office::reopen(&config.admin, path, &home, &plane, past);
        let app = App {
            config,
            file,
            home: Arc::new(home),
            plane,
            clusters: BTreeMap::new(),
            listeners: BTreeMap::new(),
            doors: HashMap::default(),
            directs,
            certificates,
            signers,
            scales,
            office,
            manager: ServiceManager::greet(),
            program: Some(program),
            leaving: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        };
        (app, groups, signing)
    }
}

impl App {
    /// Goes on where an earlier image has stood still. Until all is up nothing moves, and what fails, or
    /// panics, leaves everything to that image again.
    ///
    /// # Errors
    /// When neither can.
    pub async fn resume(
        takeover: Takeover,
        config: Config,
        file: Option<ConfigFile>,
        exe: PathBuf,
        arguments: Vec<std::ffi::OsString>,
    ) -> Result<Self, NoTakeover> {
        let way_back = takeover.way_back();
        let prepared = match Prepared::new(&takeover.state, &takeover.incoming, &config) {
            Ok(prepared) => prepared,
            Err(error) => return Err(takeover.go_back(&error.to_string())),
        };
        let Takeover {
            state,
            incoming,
            failed,
            ..
        } = takeover;
        let State {
            version,
            program,
            workers,
            slots,
            learned,
            asked,
            listeners,
            past,
            scales,
            connections,
            cut,
            shut,
            ..
        } = state;
        let (home, mut resumption) = match workers.resume(exe, incoming) {
            Ok(resumed) => resumed,
            Err((error, incoming)) => {
                incoming.pass_on();
                return Err(NoTakeover::after(&error.to_string(), way_back));
            }
        };
        let program = Program {
            path: program,
            arguments,
        };
        let past = past.unwrap_or_else(Past::none);
        let (mut app, mut groups, signing) =
            prepared.into_app(config, file, home, (program, scales), past);
        app.start_clusters(&groups, &signing, Some(&mut resumption));
        let mut incoming = resumption.finish(PUBLISHED_WITHIN).await;
        app.resume_slots(&slots, learned, asked).await;
        #[cfg(feature = "testing")]
        fail_if_asked_to(failed.is_some());
        way_back::close();
        let carried = connections.len();
        incoming.release();
        app.begin(&mut groups, &listeners, connections, incoming);
        if let Some(why) = failed {
            warn!("not upgraded, all goes on as before: the new program failed: {why}");
            return Ok(app);
        }
        let waited = shut.elapsed().unwrap_or_default();
        app.read_file_if_changed().await;
        info!(
            from = %version, to = env!("CARGO_PKG_VERSION"),
            workers = app.home.workers(), connections = carried, cut,
            shut_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            "upgraded"
        );
        Ok(app)
    }

    /// It is up: from here on things move.
    fn begin(
        &mut self,
        groups: &mut HashMap<Place, BoundGroup>,
        counts: &BTreeMap<Arc<str>, Counts>,
        connections: Vec<Carried>,
        mut incoming: Incoming,
    ) {
        self.home.begin();
        self.let_in(groups);
        for (name, counts) in counts {
            if let Some(listener) = self.listeners.get(name) {
                counts.add_to(listener.stats().mine());
            }
        }
        for connection in connections {
            match self.listener_of(connection.listener()) {
                Some(listener) => self.plane.resume(listener, connection, &mut incoming),
                None => warn!("a connection of a listener that is not there is lost"),
            }
        }
    }

    /// Slots are in the table as they were before anybody is let in, and clusters know what they knew.
    async fn resume_slots(
        &self,
        slots: &[SavedSlot],
        learned: BTreeMap<Arc<str>, SavedLearned>,
        asked: BTreeMap<Arc<str>, SavedAsked>,
    ) {
        for (name, learned) in learned {
            if let Some(running) = self.clusters.get(&name) {
                running.cluster().learned().resume(learned);
            }
        }
        for (name, asked) in asked {
            if let Some(running) = self.clusters.get(&name) {
                running.cluster().asked().resume(asked);
            }
        }
        for saved in slots {
            let Some(running) = self.clusters.get(&saved.cluster) else {
                continue;
            };
            let cluster = running.cluster();
            if let Some(health) = saved.health.clone() {
                let checked = Event::Checked {
                    slot: Arc::clone(&saved.slot),
                    generation: 0,
                    health,
                };
                cluster.report(checked).await;
            }
            let admin = Event::Admin {
                slot: Arc::clone(&saved.slot),
                state: saved.admin,
            };
            cluster.report(admin).await;
        }
        for config in &self.config.clusters {
            self.clusters[&config.name].publish(config).await;
        }
        for saved in slots {
            let running = self.clusters.get(&saved.cluster);
            let snapshot = running.map(|running| running.cluster().load());
            if let Some(entry) = snapshot.as_ref().and_then(|now| now.entry(&saved.slot)) {
                saved.add_to(&entry.slot.stats);
            }
        }
    }

    fn listener_of(&self, name: &str) -> Option<&Arc<Listener>> {
        let listener = self.listeners.get(name);
        listener.or_else(|| self.directs.rescued(name))
    }

    /// What has changed in the file since it was read last takes effect, as in a reload.
    async fn read_file_if_changed(&mut self) {
        let Some(ConfigFile { path, log }) = self.file.clone() else {
            return;
        };
        let changed = match Config::load(&path, &Facts::of_this_process()) {
            Ok(mut config) => {
                config.log = log.over(config.log);
                self.keep_scales(&mut config);
                if config == self.config {
                    return;
                }
                self.change_to(config, &path).await
            }
            Err(faults) => {
                log_faults(&faults);
                Err(faults.to_string())
            }
        };
        self.office.board.reloaded(changed);
    }
}

/// A test can ask for an end, by the name of a file in the environment that says which.
#[cfg(feature = "testing")]
fn fail_if_asked_to(has_gone_back: bool) {
    let file = std::env::var_os("HOMESCAR_TEST_FAIL").map(PathBuf::from);
    let asked = file.and_then(|file| std::fs::read_to_string(file).ok());
    match asked.filter(|_| !has_gone_back).as_deref() {
        None => {}
        Some("thread") => {
            let other = std::thread::spawn(|| panic!("as asked"));
            let _ended = other.join();
        }
        Some("crash") => {
            let other = std::thread::spawn(|| nix::sys::signal::raise(nix::sys::signal::SIGSEGV));
            let _ended = other.join();
        }
        Some("hang") => loop {
            std::hint::spin_loop();
        },
        Some(_) => panic!("as asked"),
    }
}
