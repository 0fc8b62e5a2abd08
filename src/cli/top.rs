//! `homescar top`: who has how much to do now, anew at every look.

mod page;
mod rates;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use self::{page::Page, rates::Look};
use super::{Exit, complain, socket};
use crate::admin::{
    client::{Client, ClientError},
    view::Status,
};

/// For an answer to come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = an_interval)]
    interval: Duration,
    #[command(flatten)]
    socket: socket::Arguments,
}

fn an_interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(100);
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= SHORTEST => Ok(duration),
        Ok(_) => Err("the shortest is 100ms".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let Arguments { interval, socket } = arguments;
    if !socket.json && !io::stdout().is_terminal() {
        complain(
            "top needs a terminal; `homescar status` shows how things stand now, `homescar top \
             --json` a line at every look",
        );
        return Exit::Usage;
    }
    socket.speak(async |client| {
        let mut source = Source {
            socket: socket.path(),
            client: Some(client),
        };
        // Before the screen is taken: who cannot be asked at all is a plain error.
        let first = source.look().await?;
        if socket.json {
            return lines(source, first, *interval).await;
        }
        let shown = match ratatui::try_init() {
            Ok(terminal) => watch(terminal, source, first, *interval).await,
            Err(error) => Err(error),
        };
        ratatui::restore();
        Ok(shown.map_or_else(
            |error| {
                complain(format_args!("the terminal cannot be used: {error}"));
                Exit::Failure
            },
            |()| Exit::Ok,
        ))
    })
}

/// A line of JSON at every look, until nobody reads or answers any more.
async fn lines(mut source: Source, first: Look, every: Duration) -> Result<Exit, ClientError> {
    let mut look = first;
    let mut ticks = interval(every);
    ticks.tick().await;
    loop {
        let line = serde_json::to_string(&look.status)? + "\n";
        if io::Write::write_all(&mut io::stdout(), line.as_bytes()).is_err() {
            return Ok(Exit::Ok);
        }
        ticks.tick().await;
        look = source.look().await?;
    }
}

/// The screen, until its reader has seen enough.
async fn watch(
    mut terminal: DefaultTerminal,
    mut source: Source,
    first: Look,
    every: Duration,
) -> io::Result<()> {
    let mut page = Page::new(first, every);
    let mut events = events();
    let mut end = signal(SignalKind::terminate())?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        terminal.draw(|frame| page.draw(frame))?;
        select! {
            _ = ticks.tick(), if !page.is_paused() => match source.look().await {
                Ok(look) => page.take(look),
                Err(error) => page.miss(error.to_string()),
            },
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if is_end(key) {
                        return Ok(());
                    }
                    page.press(key.code);
                }
                Some(_) => {}
                None => return Ok(()),
            },
            _ = end.recv() => return Ok(()),
        }
    }
}

/// Whether the reader has seen enough.
fn is_end(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => control,
        _ => false,
    }
}

/// What the terminal says. Reading it blocks, and has a thread that ends with the process.
fn events() -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(16);
    let _for_the_life_of_the_process = thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    events
}

/// The homescar that is looked at. It may go, and another one come.
struct Source {
    socket: PathBuf,
    client: Option<Client>,
}

impl Source {
    async fn look(&mut self) -> Result<Look, ClientError> {
        let asked = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => Client::connect(&self.socket).await?,
            };
            let status: Status = client.get("/status").await?;
            self.client = Some(client);
            Ok(status)
        };
        let late = |_| Err(ClientError::Refused("no answer in time".to_owned()));
        let status = timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(late)?;
        let at = Instant::now();
        Ok(Look { status, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_a_least() {
        assert_eq!(an_interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(an_interval("1ms"), Err("the shortest is 100ms".to_owned()));
        assert!(an_interval("soon").is_err());
    }
}
