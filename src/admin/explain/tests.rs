//! What is told is what is decided.

use std::{net::Ipv4Addr, num::NonZeroU32, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::config::{self, Address, Source, StaticBackend};

#[test]
fn addresses_come_in_many_clothes() {
    let v4 = Some(IpAddr::from([10, 1, 2, 3]));
    for text in [
        "10.1.2.3",
        "10.1.2.3:443",
        "::ffff:10.1.2.3",
        "[::ffff:10.1.2.3]:80",
    ] {
        assert_eq!(address(text), v4, "{text}");
    }
    assert_eq!(address("[::1]"), address("::1"));
    assert_eq!(address("[::1]:80"), address("::1"));
    for text in ["", "10.1.2", "localhost", "10.1.2.3:x"] {
        assert_eq!(address(text), None, "{text}");
    }
}

#[test]
fn a_question_is_refused_for_what_nobody_knows() {
    let refused = |query| Question::read(query).unwrap_err().to_string();
    assert!(refused("client=10.0.0.1&colour=blue").contains("no parameter colour"));
    assert!(refused("cluster=app").contains("no IPv4 or IPv6 address"));
    let asked = Question::read("client=10.0.0.1&value=a%26b+c").unwrap();
    assert_eq!(asked.value.as_deref(), Some("a&b c"));
}

/// Slots of these weights, each passed over for a reason or for none.
fn snapshot(slots: &[(u32, Option<Skip>, bool)], on_down: OnDown) -> Snapshot {
    let backends = slots.iter().enumerate().map(|(index, (weight, ..))| {
        let address = Address::Tcp((Ipv4Addr::LOCALHOST, 1).into());
        StaticBackend {
            name: format!("app/{index}").into(),
            address,
            weight: NonZeroU32::new(*weight).unwrap(),
        }
    });
    let source = Source::Static(backends.collect());
    let mut snapshot = Snapshot::configured(&config::Cluster {
        on_down,
        ..config::Cluster::new("app", source)
    });
    for (entry, (_, skip, supervised)) in snapshot.entries.iter_mut().zip(slots) {
        entry.skip = *skip;
        entry.down = *skip;
        entry.supervised = *supervised;
    }
    snapshot
}

fn any_slot() -> impl Strategy<Value = (u32, Option<Skip>, bool)> {
    // Load and failures to connect are no state of a slot.
    let skips = prop::sample::select(Skip::ALL[..9].to_vec());
    (1..4_u32, prop::option::of(skips), any::<bool>())
}

proptest! {
    /// Whatever the state: what is told is what is decided, and the table shows why.
    #[test]
    fn it_tells_what_is_decided(
        slots in prop::collection::vec(any_slot(), 1..8),
        client: u32,
        known in prop::option::of(0..8_usize),
        on_down in prop::sample::select(vec![
            OnDown::Hold(std::time::Duration::from_secs(2)), OnDown::Next, OnDown::Reject
        ]),
    ) {
        let snapshot = snapshot(&slots, on_down);
        let known = known.filter(|index| *index < slots.len());
        let client = Ipv4Addr::from_bits(client);
        let question = Question::read(&format!("client={client}")).unwrap();
        let mut found = question.find(&snapshot.config.affinity, &snapshot, None, |_| None);
        found.known = known;
        let told = question.explain(found, &snapshot, &snapshot.live());

        let asker = Asker {
            known,
            may_hold: true,
            may_queue: true,
            ..Asker::new(AffinityKey::from_bits(client.to_bits()))
        };
        let name = |index: usize| Some(snapshot.entries[index].slot.name.to_string());
        let decided = match snapshot.route(&asker, &snapshot.live()) {
            Route::To { index, .. } => (Outlook::Goes, name(index)),
            Route::Hold { index } => (Outlook::Held, name(index)),
            Route::Queue { index } => (Outlook::Queues, name(index)),
            Route::Reject { index, .. } => (Outlook::Refused, name(index)),
            Route::Nowhere => (Outlook::Refused, None),
        };
        prop_assert_eq!((told.outcome, told.slot.clone()), decided);
        prop_assert_eq!(&told.key, &format!("{:08x}", client.to_bits()));
        prop_assert_eq!(told.candidates.len(), slots.len());
        let hashed = &told.candidates[usize::from(known.is_some())..];
        prop_assert!(hashed.is_sorted_by(|a, b| a.score > b.score));
        let open = told.candidates.iter().find(|candidate| candidate.skip.is_none());
        if let (Outlook::Goes, Some(open)) = (told.outcome, open) {
            prop_assert_eq!(told.slot, Some(open.slot.clone()));
        }
    }
}

#[test]
fn a_cookie_is_told_from_one_that_ended_or_is_forged() {
    let snapshot = snapshot(&[(1, None, false), (1, None, false)], OnDown::Next);
    let secrets = Secrets::random(&[1; 32], "app");
    let slot = snapshot.entries[1].slot.id;
    let sign = |expires| {
        secrets.sign(crate::affinity::Token {
            slot,
            generation: 3,
            expires,
        })
    };
    let affinity = Affinity {
        key: Key::Cookie(Arc::default()),
        ..Affinity::default()
    };
    for (cookie, by, says) in [
        (sign(u64::MAX), "cookie", "says app/1, generation 3"),
        (sign(1), "address", "it ended"),
        ("forged".to_owned(), "address", "none of the secrets"),
    ] {
        let question = Question::read(&format!("client=10.0.0.1&cookie={cookie}")).unwrap();
        let found = question.find(&affinity, &snapshot, Some(&secrets), |_| None);
        assert_eq!(found.by, by);
        assert!(found.steps[0].contains(says), "{:?}", found.steps);
        assert_eq!(found.known.is_some(), by == "cookie");
    }
}
