//! What a visitor does on the page. Everything here takes windows and URLs, so it works in front of
//! bare workers and in front of `homescar demo` alike.

use fantoccini::{Client, Locator};
use serde::Deserialize;

use super::chromium::until;

/// Who serves a window, as the page says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Home {
    pub(crate) slot: String,
    pub(crate) generation: String,
    pub(crate) pid: String,
}

/// The result of a run of hashes, as the page says.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Run {
    pub(crate) answered: u32,
    pub(crate) full: u32,
    pub(crate) p95: String,
    /// In milliseconds.
    pub(crate) worst: f64,
}

/// Opens the page and waits until somebody serves it and the bus is up.
pub(crate) async fn visit(window: &Client, url: &str) -> Home {
    window.goto(url).await.unwrap();
    until(
        window,
        "the bus",
        "return document.querySelector('#bus').classList.contains('up')",
    )
    .await;
    home(window).await
}

/// Who serves the window; waits while nobody does.
pub(crate) async fn home(window: &Client) -> Home {
    let script = "const text = (id) => document.getElementById(id).textContent;
        return document.body.dataset.state === 'home' &&
            { slot: text('slot'), generation: text('generation'), pid: text('pid') }";
    serde_json::from_value(until(window, "a home", script).await).unwrap()
}

/// Takes another name.
pub(crate) async fn rename(window: &Client, name: &str) {
    let field = window.find(Locator::Css("#name")).await.unwrap();
    let select = "document.getElementById('name').select()";
    window.execute(select, Vec::new()).await.unwrap();
    field.send_keys(name).await.unwrap();
    field.send_keys("\u{e004}").await.unwrap(); // Tab
}

/// Types a line and sends it.
pub(crate) async fn say(window: &Client, text: &str) {
    let field = window.find(Locator::Css("#text")).await.unwrap();
    field.send_keys(text).await.unwrap();
    field.send_keys("\u{e007}").await.unwrap(); // Enter
}

/// Waits until the window shows `text` as said (not as still being sent), exactly once; gives the
/// slot it came by.
pub(crate) async fn sees(window: &Client, text: &str) -> String {
    let text = serde_json::to_string(text).unwrap();
    let script = format!(
        "const said = [...document.querySelectorAll('#lines li:not(.pending):not(.failed)')]
            .filter((item) => item.querySelector('.body')?.textContent === {text});
        return said.length === 1 && said[0].querySelector('.via').textContent"
    );
    let via = until(window, &text, &script).await;
    via.as_str().unwrap().trim_start_matches("via ").to_owned()
}

/// Presses a button.
pub(crate) async fn press(window: &Client, id: &str) {
    let script = format!("return !document.getElementById('{id}').disabled");
    until(window, id, &script).await;
    let button = window.find(Locator::Id(id)).await.unwrap();
    button.click().await.unwrap();
}

/// The newest entry of the list of homes.
pub(crate) async fn journey(window: &Client, containing: &str) -> String {
    let wanted = serde_json::to_string(containing).unwrap();
    let script = format!(
        "const text = document.querySelector('#journey li')?.textContent ?? '';
        return text.includes({wanted}) && text"
    );
    let text = until(window, containing, &script).await;
    text.as_str().unwrap().to_owned()
}

/// Hashes at `place` (`pool` or `loop`) and waits for the end of the run.
pub(crate) async fn hash(window: &Client, place: &str, count: u32) -> Run {
    let choose = format!("document.querySelector('[name=burst][value=\"{count}\"]').click()");
    window.execute(&choose, Vec::new()).await.unwrap();
    press(window, &format!("hash-{place}")).await;
    // The buttons are free again when the run is over.
    let script = format!(
        "const text = (id) => document.getElementById('{place}-' + id).textContent;
        const worst = text('worst');
        return !document.getElementById('hash-{place}').disabled && {{
            answered: Number(text('done')), full: Number(text('full')), p95: text('p95'),
            worst: parseFloat(worst) * (worst.endsWith('ms') ? 1 : 1000),
        }}"
    );
    serde_json::from_value(until(window, "the end of the hashes", &script).await).unwrap()
}
