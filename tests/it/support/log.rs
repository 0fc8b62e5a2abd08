//! What was logged, for tests to look at.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry};

use super::DEADLINE;

/// The log of the present thread from now on: `LEVEL target: message field=value …`.
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: DefaultGuard,
}

impl Log {
    pub(crate) fn capture() -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let layer = Capture(Arc::clone(&lines));
        let guard = tracing::subscriber::set_default(registry().with(layer));
        Self {
            lines,
            _guard: guard,
        }
    }

    /// Calls `look` for every line of the present thread, before whoever logs it goes on.
    pub(crate) fn watch(look: impl Fn(&str) + Send + Sync + 'static) -> DefaultGuard {
        tracing::subscriber::set_default(registry().with(Watch(look)))
    }

    /// The lines that contain `part`.
    pub(crate) fn with(&self, part: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|l| l.contains(part)).cloned().collect()
    }

    /// The first line that contains `part`; waits for it.
    pub(crate) async fn wait_for(&self, part: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(line) = self.with(part).into_iter().next() {
                return line;
            }
            assert!(
                Instant::now() < deadline,
                "no {part:?} in the log:\n{}",
                self.lines.lock().unwrap().join("\n")
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Capture(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.lock().unwrap().push(line_of(event));
    }
}

struct Watch<F>(F);

impl<S: Subscriber, F: Fn(&str) + 'static> Layer<S> for Watch<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        (self.0)(&line_of(event));
    }
}

fn line_of(event: &Event<'_>) -> String {
    let mut text = Text::default();
    event.record(&mut text);
    let meta = event.metadata();
    let (level, target) = (meta.level(), meta.target());
    format!("{level} {target}: {}{}", text.message, text.fields)
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => write!(self.fields, " {name}={value:?}").unwrap(),
        }
    }
}
