//! Which events are written: those of a level, which may change.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use tracing::{Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{Layer, layer::Context};

use crate::config::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Changes the level of the log.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Relaxed);
    // Whoever logs remembers whether anybody listens.
    tracing::callsite::rebuild_interest_cache();
}

/// Whether records are written at this level.
pub(super) fn shows_records() -> bool {
    present() >= LevelFilter::INFO
}

/// Lets the events of the present level pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter;

impl<S: Subscriber> Layer<S> for Filter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match present() >= *metadata.level() {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        present() >= *metadata.level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(present())
    }
}

fn present() -> LevelFilter {
    const LEVELS: [LevelFilter; 5] = [
        LevelFilter::ERROR,
        LevelFilter::WARN,
        LevelFilter::INFO,
        LevelFilter::DEBUG,
        LevelFilter::TRACE,
    ];
    LEVELS[usize::from(LEVEL.load(Relaxed)).min(LEVELS.len() - 1)]
}
