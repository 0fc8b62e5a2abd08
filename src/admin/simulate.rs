//! Who would move if slots went or came: the table as it would be, asked for those who are here.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use tokio::task::spawn_blocking;

use super::{
    Board, Place, Refused,
    view::{Move, Simulation},
};
use crate::{
    affinity::{AffinityKey, Table},
    cluster::{Snapshot, key_of_address},
    config::Key,
    proxy::Whereabouts,
};

/// Slots that may come at once.
const MOST_ADDED: usize = 1024;

/// A change that nobody makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    cluster: Option<String>,
    /// Slots that would go.
    remove: Vec<String>,
    /// How many would come.
    add: usize,
}

/// A client, once: what it hashes by, and its slot where that is known otherwise.
type Client = (AffinityKey, Option<usize>);

impl Change {
    /// From the query of a request.
    pub(super) fn read(query: &str) -> Result<Self, Refused> {
        let mut change = Self::default();
        for (name, text) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "cluster" => change.cluster = Some(text.into_owned()),
                "remove" => change.remove.push(text.into_owned()),
                "add" => {
                    let count = text.parse().ok().filter(|count| *count <= MOST_ADDED);
                    change.add = count.ok_or_else(|| {
                        Refused::Invalid(format!(
                            "add: {text:?} is no number from 0 to {MOST_ADDED}"
                        ))
                    })?;
                }
                _ => {
                    return Err(Refused::Invalid(format!(
                        "there is no parameter {name}; there are cluster, remove, add"
                    )));
                }
            }
        }
        Ok(change)
    }

    /// Who of the clients that are connected now would move.
    pub(super) async fn simulate(&self, board: &Board) -> Result<Simulation, Refused> {
        let cluster = board.cluster(self.cluster.as_deref())?;
        let snapshot = cluster.load();
        let after = self.table(&snapshot)?;
        let mut clients = clients(&snapshot, &board.plane().whereabouts().await);
        let mut note = match &snapshot.config.affinity.key {
            Key::None => Some("sticky by none: no client has a home".to_owned()),
            Key::Query(_) => Some("clients whose id was learned stay with their slot".to_owned()),
            Key::Address | Key::Cookie(_) | Key::Header(_) => None,
        };
        match of_kernel(board, cluster.name()).await {
            Ok(led) => {
                let affinity = &snapshot.config.affinity;
                clients.extend(
                    led.into_iter()
                        .map(|ip| (key_of_address(ip, affinity), None)),
                );
            }
            Err(error) => {
                note = Some(format!(
                    "the kernel does not tell who is connected in mode direct ({error}): only the \
                     clients that homescar relays are counted"
                ));
            }
        }
        let moves = after.moves(&snapshot, &clients);
        Ok(Simulation {
            cluster: cluster.name().to_string(),
            before: snapshot.entries.len(),
            after: after.names.len(),
            clients: clients.len(),
            moved: moves.iter().map(|one| one.clients).sum(),
            moves,
            note,
        })
    }

    /// The slots as they would be. Those that come are numbered on, as `scale` does.
    fn table(&self, snapshot: &Snapshot) -> Result<After, Refused> {
        let entries = &snapshot.entries;
        if let Some(unknown) = self
            .remove
            .iter()
            .find(|name| snapshot.entry(name).is_none())
        {
            let known: Vec<_> = entries.iter().map(|entry| &*entry.slot.name).collect();
            let known = known.join(", ");
            return Err(Refused::Unknown(format!(
                "there is no slot {unknown}; there are {known}"
            )));
        }
        if self.add > 0 && snapshot.config.supervised().is_none() {
            return Err(Refused::Invalid(
                "add is for workers: the slots of static backends have names of their own".into(),
            ));
        }
        let stays = |name: &str| !self.remove.iter().any(|removed| removed == name);
        let mut slots: Vec<_> = entries
            .iter()
            .filter(|entry| stays(&entry.slot.name))
            .map(|entry| (Arc::clone(&entry.slot.name), entry.slot.weight))
            .collect();
        let cluster = &snapshot.config.name;
        slots.extend((entries.len()..entries.len() + self.add).map(|number| {
            let name = format!("{cluster}/{number}").into();
            (name, std::num::NonZeroU32::MIN)
        }));
        if slots.is_empty() {
            return Err(Refused::Invalid("no slot would be left".into()));
        }
        let weighted = slots.iter().map(|(name, weight)| (&**name, *weight));
        let table = Table::new(snapshot.config.affinity.seed, weighted);
        let names = slots.iter().map(|(name, _)| Arc::clone(name)).collect();
        Ok(After { table, names })
    }
}

/// The clients that the kernel has led to a cluster's workers.
async fn of_kernel(board: &Board, cluster: &str) -> io::Result<Vec<IpAddr>> {
    let found = board.places().into_iter().find_map(|place| match place {
        Place::Direct {
            cluster: its,
            direct,
            ..
        } if *its == *cluster => Some(direct),
        _ => None,
    });
    match found {
        Some(direct) => spawn_blocking(move || direct.clients()).await?,
        None => Ok(Vec::new()),
    }
}

/// The clients of a cluster that homescar relays now. One that holds a cookie is at home where it is.
fn clients(snapshot: &Snapshot, all: &[Whereabouts]) -> HashSet<Client> {
    let by = &snapshot.config.affinity.key;
    if *by == Key::None {
        return HashSet::new();
    }
    let ours = all.iter().filter_map(|one| {
        let mut entries = snapshot.entries.iter();
        let slot = entries.position(|entry| Arc::ptr_eq(&entry.slot.stats, &one.slot))?;
        Some((one.key, matches!(by, Key::Cookie(_)).then_some(slot)))
    });
    ours.collect()
}

/// The slots after a change.
#[derive(Debug)]
struct After {
    table: Table,
    names: Vec<Arc<str>>,
}

impl After {
    /// From where to where these clients would move.
    fn moves(&self, before: &Snapshot, clients: &HashSet<Client>) -> Vec<Move> {
        let mut moves = BTreeMap::<(usize, usize), usize>::new();
        for (key, known) in clients {
            let Some(from) = known.or_else(|| before.table.home(*key)) else {
                continue;
            };
            let name = &before.entries[from].slot.name;
            let stays = || self.names.iter().position(|left| left == name);
            let to = known
                .and_then(|_| stays())
                .or_else(|| self.table.home(*key));
            if let Some(to) = to.filter(|to| self.names[*to] != *name) {
                *moves.entry((from, to)).or_default() += 1;
            }
        }
        let moves = moves.into_iter().map(|((from, to), clients)| Move {
            from: before.entries[from].slot.name.to_string(),
            to: self.names[to].to_string(),
            clients,
        });
        moves.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::{self, Source, Workers};

    const CLIENTS: u32 = 4_000;

    fn snapshot(count: usize) -> Snapshot {
        let workers = Workers::new(vec!["true".into()], NonZeroUsize::new(count).unwrap());
        let source = Source::Workers(Arc::new(workers));
        Snapshot::configured(&config::Cluster::new("app", source))
    }

    fn keys() -> HashSet<Client> {
        let keys = (0..CLIENTS).map(|key| (AffinityKey::from_bits(key * 7), None));
        keys.collect()
    }

    fn moves(query: &str, clients: &HashSet<Client>) -> Vec<Move> {
        let before = snapshot(5);
        let after = Change::read(query).unwrap().table(&before).unwrap();
        after.moves(&before, clients)
    }

    #[test]
    fn who_leaves_takes_exactly_its_own_clients_along() {
        let before = snapshot(5);
        let its_own = |(key, _): &&Client| before.table.home(*key) == Some(2);
        let its_own = keys().iter().filter(its_own).count();
        let moves = moves("remove=app/2", &keys());
        assert!(its_own > 0);
        assert!(moves.iter().all(|one| one.from == "app/2"), "{moves:?}");
        assert_eq!(moves.len(), 4, "to each of the others");
        assert_eq!(moves.iter().map(|one| one.clients).sum::<usize>(), its_own);
    }

    #[test]
    fn who_comes_takes_its_share_and_nobody_else_moves() {
        let moves = moves("add=1", &keys());
        assert!(moves.iter().all(|one| one.to == "app/5"), "{moves:?}");
        let moved: usize = moves.iter().map(|one| one.clients).sum();
        assert!((500..850).contains(&moved), "{moved} of {CLIENTS}");
    }

    #[test]
    fn who_has_a_cookie_stays_for_as_long_as_its_slot_does() {
        let here = |slot| HashSet::from([(AffinityKey::from_bits(1), Some(slot))]);
        for slot in 0..5 {
            assert_eq!(moves("add=5", &here(slot)), []);
        }
        let moved = moves("remove=app/2", &here(2));
        assert_eq!((&*moved[0].from, moved[0].clients), ("app/2", 1));
        assert_eq!(moves("remove=app/2", &here(3)), []);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |query| Change::read(query).and_then(|change| change.table(&snapshot(2)));
        for (query, why) in [
            ("add=many", "no number"),
            ("remove=app/9", "there are app/0, app/1"),
            ("remove=app/0&remove=app/1", "no slot would be left"),
            ("colour=blue", "no parameter colour"),
        ] {
            let error = refused(query).unwrap_err().to_string();
            assert!(error.contains(why), "{query}: {error}");
        }
    }
}
