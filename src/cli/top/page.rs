//! The screen.

use std::{cmp::Ordering, time::Duration};

use ratatui::{
    Frame,
    crossterm::event::KeyCode,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Modifier, Style, Stylize as _},
    text::{Line, Span, Text},
    widgets::{Cell, Paragraph, Row as Cells, Table, TableState},
};

use super::{
    super::status::{bytes, dash, time},
    rates::{Look, Mood, Rates, Row, rows},
};
use crate::admin::view::Listener;

/// Everything that is shown, and how.
#[derive(Debug)]
pub(super) struct Page {
    now: Look,
    before: Option<Look>,
    every: Duration,
    /// Why there is nothing newer.
    missed: Option<String>,
    order: Order,
    is_paused: bool,
    table: TableState,
}

/// By what slots are ordered; the greatest first, but for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    Active,
    New,
    Cpu,
    Memory,
}

/// Keys, and what they order by.
const ORDERS: [(char, &str, Order); 5] = [
    ('n', "name", Order::Name),
    ('a', "active", Order::Active),
    ('r', "rate", Order::New),
    ('c', "cpu", Order::Cpu),
    ('m', "memory", Order::Memory),
];

impl Page {
    pub(super) fn new(first: Look, every: Duration) -> Self {
        Self {
            now: first,
            before: None,
            every,
            missed: None,
            order: Order::Name,
            is_paused: false,
            table: TableState::default(),
        }
    }

    /// Takes what was seen last.
    pub(super) fn take(&mut self, look: Look) {
        self.before = Some(std::mem::replace(&mut self.now, look));
        self.missed = None;
    }

    /// Nothing was seen: what was before stays, and says that it is old.
    pub(super) fn miss(&mut self, why: String) {
        self.missed = Some(why);
    }

    pub(super) const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Does what a key means.
    pub(super) fn press(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            KeyCode::Char(key) => {
                let chosen = ORDERS.iter().find(|(its, ..)| *its == key);
                self.order = chosen.map_or(self.order, |(_, _, order)| *order);
            }
            KeyCode::Down => self.table.scroll_down_by(1),
            KeyCode::Up => self.table.scroll_up_by(1),
            KeyCode::PageDown => self.table.scroll_down_by(20),
            KeyCode::PageUp => self.table.scroll_up_by(20),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let mut rows = rows(&self.now, self.before.as_ref());
        let listeners = &self.now.status.listeners;
        let heights = [
            Constraint::Length(3),
            Constraint::Length(u16::try_from(listeners.len()).unwrap_or(8).min(8) + 2),
            Constraint::Fill(1),
            Constraint::Length(1),
        ];
        let [head, doors, slots, foot] = Layout::vertical(heights).areas(frame.area());
        frame.render_widget(self.head(&rows), head);
        draw_listeners(frame, doors, listeners);
        self.order.sort(&mut rows);
        draw_slots(frame, slots, &rows, &mut self.table);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self, rows: &[Row]) -> Paragraph<'static> {
        let status = &self.now.status;
        let Rates {
            new,
            failed,
            up,
            down,
        } = Rates::of_all(rows);
        let phase = match status.phase.as_str() {
            "running" => Span::raw(""),
            phase => format!(" · {}", phase.to_uppercase()).yellow(),
        };
        let title = Line::from(vec![
            Span::from(format!("homescar {}", status.version)).bold(),
            Span::from(format!(
                " · pid {} · up {}",
                status.pid,
                time(status.uptime)
            )),
            phase,
        ]);
        let sums = format!(
            "{} connections · {}/s new · {}/s failed · {} up · {} down",
            status.connections,
            number(new),
            number(failed),
            rate(up),
            rate(down),
        );
        let trouble = self.missed.clone().or_else(|| {
            let error = status.reloads.error.as_ref();
            error.map(|error| format!("the last reload changed nothing: {error}"))
        });
        let trouble = trouble.unwrap_or_default().red();
        Paragraph::new(Text::from(vec![title, sums.into(), trouble.into()]))
    }

    fn foot(&self) -> Line<'static> {
        let mut parts = vec![Span::raw("order by")];
        for (key, what, order) in ORDERS {
            let style = match order == self.order {
                true => Style::new().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            parts.push(Span::raw(" "));
            parts.push(Span::styled(format!(" {key} {what} "), style));
        }
        let every = humantime::format_duration(self.every);
        parts.push(match self.is_paused {
            true => " · PAUSED, space goes on".yellow(),
            false => Span::raw(format!(" · every {every}, space pauses")),
        });
        parts.push(Span::raw(" · q quits"));
        Line::from(parts)
    }
}

impl Order {
    fn sort(self, rows: &mut [Row]) {
        let by = |of: fn(&Row) -> f64| {
            move |one: &Row, other: &Row| of(other).partial_cmp(&of(one)).unwrap_or(Ordering::Equal)
        };
        match self {
            // As they are.
            Self::Name => {}
            Self::Active => rows.sort_by_key(|row| std::cmp::Reverse(row.active)),
            Self::New => rows.sort_by(by(|row| row.rates.new)),
            Self::Cpu => rows.sort_by(by(|row| row.cpu.unwrap_or(-1.0))),
            Self::Memory => rows.sort_by_key(|row| std::cmp::Reverse(row.memory)),
        }
    }
}

fn draw_listeners(frame: &mut Frame<'_>, area: Rect, listeners: &[Listener]) {
    let rows = listeners.iter().map(|listener| {
        Cells::new([
            Cell::from(listener.name.clone()),
            Cell::from(listener.mode.clone()),
            Cell::from(listener.addresses.join(" ")),
            Cell::from(listener.cluster.clone()),
            right(
                listener
                    .connections
                    .map_or_else(dash, |open| open.to_string()),
            ),
        ])
    });
    let widths = [
        Constraint::Max(20),
        Constraint::Length(6),
        Constraint::Fill(1),
        Constraint::Max(20),
        Constraint::Length(8),
    ];
    let names = ["LISTENER", "MODE", "ADDRESS", "CLUSTER", "OPEN"];
    frame.render_widget(Table::new(rows, widths).header(header(names, 4)), area);
}

fn draw_slots(frame: &mut Frame<'_>, area: Rect, rows: &[Row], state: &mut TableState) {
    let cells = rows.iter().map(|row| {
        let colour = match row.mood {
            Mood::Good => Style::new().green(),
            Mood::Passing => Style::new().yellow(),
            Mood::Bad => Style::new().red(),
        };
        Cells::new([
            Cell::from(row.name.clone()),
            Cell::from(row.state.clone()).style(colour),
            right(row.generation.map_or_else(dash, |one| one.to_string())),
            right(row.pid.map_or_else(dash, |pid| pid.to_string())),
            right(row.active.to_string()),
            right(number(row.rates.new)),
            failures(row.rates.failed),
            right(rate(row.rates.up)),
            right(rate(row.rates.down)),
            right(row.cpu.map_or_else(dash, |cpu| format!("{cpu:.0} %"))),
            right(row.memory.map_or_else(dash, bytes)),
        ])
    });
    let widths = [
        Constraint::Max(20),
        Constraint::Fill(1),
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(9),
    ];
    let names = [
        "SLOT", "STATE", "GEN", "PID", "ACTIVE", "NEW/S", "FAIL/S", "UP", "DOWN", "CPU", "MEMORY",
    ];
    let table = Table::new(cells, widths)
        .header(header(names, 2))
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(table, area, state);
}

/// Names of columns; those of numbers, from an index on, stand at the right.
fn header<const N: usize>(names: [&str; N], numbers: usize) -> Cells<'_> {
    let cells = names.into_iter().enumerate().map(|(index, name)| {
        if index < numbers {
            Cell::from(name)
        } else {
            right(name.to_owned())
        }
    });
    Cells::new(cells).style(Modifier::BOLD)
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).alignment(Alignment::Right))
}

fn failures(rate: f64) -> Cell<'static> {
    let cell = right(number(rate));
    if rate > 0.0 { cell.red() } else { cell }
}

/// Short: `0`, `0.3`, `25`.
fn number(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// `1.5 MiB/s`.
fn rate(per_second: f64) -> String {
    format!("{}/s", bytes(per_second as u64))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use tokio::time::Instant;

    use super::{
        super::rates::tests::{look, slot},
        *,
    };

    fn shown(page: &mut Page) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(110, 12)).unwrap();
        terminal.draw(|frame| page.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| {
            (0..110)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
        };
        (0..12).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn names(lines: &[String]) -> Vec<&str> {
        let slots = lines.iter().filter(|line| line.starts_with("app/"));
        slots.map(|line| &line[..5]).collect()
    }

    fn three() -> Page {
        let mut slots = vec![slot("app/0"), slot("app/1"), slot("app/2")];
        let start = Instant::now();
        let first = look(slots.clone(), start);
        slots[1].total += 5;
        slots[1].connect_failures += 1;
        slots[2].active = 70;
        slots[2].state = "down".to_owned();
        slots[2].backend = None;
        let mut page = Page::new(first, Duration::from_secs(1));
        page.take(look(slots, start + Duration::from_secs(1)));
        page
    }

    #[test]
    fn a_screen_has_everything() {
        let lines = shown(&mut three());
        let expected = [
            "homescar 1.2.3 · pid 42 · up 2h 5m",
            "9 connections · 5.0/s new · 1.0/s failed · 0 B/s up · 0 B/s down",
            "",
            "LISTENER             MODE   ADDRESS                                          CLUSTER                      OPEN",
            "",
            "SLOT                 STATE     GEN      PID  ACTIVE   NEW/S FAIL/S          UP        DOWN    CPU    MEMORY",
        ];
        for (line, expected) in lines.iter().zip(expected) {
            assert_eq!(
                line.split_whitespace().collect::<Vec<_>>(),
                expected.split_whitespace().collect::<Vec<_>>()
            );
        }
        let [one, two, three] = [6, 7, 8].map(|y| lines[y].split_whitespace().collect::<Vec<_>>());
        assert_eq!(one[..6], ["app/0", "ready", "2", "100", "7", "0"]);
        assert_eq!(two[..7], ["app/1", "ready", "2", "100", "7", "5.0", "1.0"]);
        assert_eq!(three[..6], ["app/2", "down", "–", "–", "70", "0"]);
        assert!(lines[11].starts_with("order by  n name "), "{lines:?}");
    }

    #[test]
    fn keys_order_and_pause() {
        let mut page = three();
        assert_eq!(names(&shown(&mut page)), ["app/0", "app/1", "app/2"]);
        page.press(KeyCode::Char('a'));
        assert_eq!(names(&shown(&mut page)), ["app/2", "app/0", "app/1"]);
        page.press(KeyCode::Char('r'));
        assert_eq!(names(&shown(&mut page))[0], "app/1");
        page.press(KeyCode::Char('x'));
        assert_eq!(names(&shown(&mut page))[0], "app/1");
        page.press(KeyCode::Char(' '));
        assert!(page.is_paused());
        assert!(shown(&mut page)[11].contains("PAUSED"));
    }

    #[test]
    fn what_is_old_says_so() {
        let mut page = three();
        page.miss("no homescar answers".to_owned());
        assert_eq!(shown(&mut page)[2], "no homescar answers");
        assert_eq!(names(&shown(&mut page)).len(), 3);
    }
}
