//! Which slots the kernel's program has, and whose backlog is emptied by us: pure.

use tokio::time::Instant;

use crate::{
    cluster::{Skip, Snapshot},
    config::{Address, OnDown},
};

/// How long each slot has been down.
#[derive(Debug, Default)]
pub(super) struct Standings {
    down_since: Vec<Option<Instant>>,
}

/// What is to be done for the slots of one snapshot, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// In the program: clients whose home it is are led to it.
    pub led_to: Vec<bool>,
    /// Whoever waits in its backlog is accepted by us.
    pub rescued: Vec<bool>,
    /// When time alone changes this.
    pub again: Option<Instant>,
}

impl Standings {
    /// Decides. A slot that is down stays in the program for as long as it is held for; then its
    /// clients go to their next choice, and those who wait already are rescued. With `reject` it
    /// stays, and the rescue is what resets them; but one that the operator has taken out is not
    /// down.
    pub(super) fn decide(&mut self, now: &Snapshot, at: Instant) -> Decision {
        self.down_since.resize(now.entries.len(), None);
        let mut decision = Decision::default();
        for (entry, since) in now.entries.iter().zip(&mut self.down_since) {
            let backend = entry.backend.as_ref();
            // A worker that is reached elsewhere does not accept here.
            let at_its_door = backend.is_none_or(|b| matches!(b.address, Address::Probe { .. }));
            let Some(why) = entry.skip else {
                *since = None;
                decision.push(true, !at_its_door);
                continue;
            };
            let since = *since.get_or_insert(at);
            // Nobody else may accept where a worker can: it would meet its own checks in us.
            let accepts = backend.is_some() && at_its_door && why != Skip::Unresponsive;
            let is_taken_out = matches!(why, Skip::Draining | Skip::Maint);
            match now.config.on_down {
                OnDown::Reject if !is_taken_out => decision.push(true, !accepts),
                OnDown::Hold(longest) if entry.is_waited_for(why) && at < since + longest => {
                    let until = since + longest;
                    decision.again = Some(decision.again.map_or(until, |again| again.min(until)));
                    decision.push(true, false);
                }
                OnDown::Hold(_) | OnDown::Next | OnDown::Reject => decision.push(false, !accepts),
            }
        }
        decision
    }
}

impl Decision {
    /// Nobody is left who could take a client: they are for us to refuse, as in the other modes.
    pub(super) fn leads_nowhere(&self) -> bool {
        !self.led_to.contains(&true)
    }

    fn push(&mut self, led_to: bool, rescued: bool) {
        self.led_to.push(led_to);
        self.rescued.push(rescued);
    }
}
