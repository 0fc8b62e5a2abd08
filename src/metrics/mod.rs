//! What is counted: counters and histograms that cost whoever counts an addition or two, and the
//! page that they are shown on.
//!
//! Who counts holds its counters itself (a listener, a slot, a thread): nothing is looked up by name
//! or label. Where threads of the data plane would meet at one, each has its own
//! ([`PerThread`]). Nothing here knows what is counted; `admin` gathers it, so what is gone is not
//! shown any more.

mod counted;
mod counter;
mod histogram;
mod page;
mod per_thread;

pub use counted::{Counted, Counts, under};
pub use counter::{Counter, Tally};
pub use histogram::{Histogram, Lives, STEPS, Scale, Seen, Waits};
pub use page::{Format, Labels, Page, Sheet, write};
pub use per_thread::PerThread;
