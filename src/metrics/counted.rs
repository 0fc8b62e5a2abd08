//! Counters by name: so they are told to the next image of the program, which counts on from there.

use std::{collections::BTreeMap, fmt::Display};

use serde::{Deserialize, Serialize};

use super::Counter;

/// Something that has counters. Each has a name that stays the same from version to version.
pub trait Counted {
    /// Shows every counter, by its name.
    fn each(&self, see: &mut dyn FnMut(&str, &Counter));
}

/// What was counted, by the names of the counters; what is not in it is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// What all of these have counted together.
    pub fn of<'a, T: Counted + 'a>(all: impl IntoIterator<Item = &'a T>) -> Self {
        let mut counts = BTreeMap::new();
        for one in all {
            one.each(&mut |name, counter| {
                let count = counter.get();
                if count > 0 {
                    *counts.entry(name.to_owned()).or_default() += count;
                }
            });
        }
        Self(counts)
    }

    /// Counts on from here. What has no such counter is forgotten.
    pub fn add_to(&self, to: &impl Counted) {
        to.each(&mut |name, counter| {
            if let Some(count) = self.0.get(name) {
                counter.add(*count);
            }
        });
    }
}

/// Shows counters under names that begin alike.
pub fn under(
    beginning: impl Display,
    see: &mut dyn FnMut(&str, &Counter),
    show: impl FnOnce(&mut dyn FnMut(&str, &Counter)),
) {
    show(&mut |name, counter| see(&format!("{beginning}.{name}"), counter));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Histogram, Tally, Waits};

    #[derive(Default)]
    struct Shop {
        sold: Tally<2>,
        waits: Histogram<Waits>,
    }

    impl Counted for Shop {
        fn each(&self, see: &mut dyn FnMut(&str, &Counter)) {
            under("sold", see, |see| self.sold.each(["bread", "milk"], see));
            under("waits", see, |see| self.waits.each(see));
        }
    }

    #[test]
    fn what_was_counted_is_counted_on_from() {
        let (first, second) = (Shop::default(), Shop::default());
        first.sold.count(1);
        second.sold.count(1);
        second.waits.observe(Duration::from_millis(7));
        let counts = Counts::of([&first, &second]);
        let text = serde_json::to_string(&counts).unwrap();
        assert_eq!(
            text,
            r#"{"sold.milk":2,"waits.le10000":1,"waits.nanos":7000000}"#
        );
        let third = Shop::default();
        third.sold.count(0);
        third.waits.observe(Duration::from_secs(20));
        let read: Counts = serde_json::from_str(&text).unwrap();
        read.add_to(&third);
        assert_eq!((third.sold.get(0), third.sold.get(1)), (1, 2));
        assert_eq!(third.waits.seen().count(), 2);
        assert!((third.waits.seen().sum - 20.007).abs() < 1e-9);
    }
}
