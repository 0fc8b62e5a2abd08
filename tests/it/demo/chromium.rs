//! A real browser: headless Chromium, driven over WebDriver.

use std::{path::PathBuf, process::Stdio};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Child,
};

use super::{process::command, within};

/// How a window looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) dark: bool,
}

/// Wide and light.
pub(crate) const WIDE: Look = Look {
    width: 1280,
    height: 1500,
    dark: false,
};

/// A running driver; every window it opens is a browser with a profile of its own.
///
/// The browsers are children of the driver and in its process group, which ends with this value:
/// also those of a test that failed and closed none.
pub(crate) struct Chromium {
    driver: Child,
    address: String,
    profiles: TempDir,
}

impl Chromium {
    pub(crate) async fn start() -> Self {
        let mut driver = command("/usr/bin/chromedriver")
            .arg("--port=0")
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tests need chromedriver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = within("the driver's port", async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("successfully on port ") {
                    return port.trim_end_matches('.').to_owned();
                }
            }
            panic!("chromedriver does not say where it listens");
        })
        .await;
        Self {
            driver,
            address: format!("http://127.0.0.1:{port}"),
            profiles: tempfile::tempdir().unwrap(),
        }
    }

    /// Opens a window.
    pub(crate) async fn window(&self, look: Look) -> Client {
        let profile = tempfile::tempdir_in(self.profiles.path()).unwrap().keep();
        let mut arguments: Vec<String> = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-background-timer-throttling",
            "--disable-renderer-backgrounding",
            "--lang=en-GB",
        ]
        .map(str::to_owned)
        .into();
        arguments.push(format!("--user-data-dir={}", profile.display()));
        arguments.push(format!("--window-size={},{}", look.width, look.height));
        arguments.push(format!(
            "--blink-settings=preferredColorScheme={}",
            u8::from(!look.dark)
        ));
        let mut options = json!({ "args": arguments });
        // A window has a least width; a telephone has not.
        if look.width < 600 {
            options["mobileEmulation"] = json!({
                "deviceMetrics": { "width": look.width, "height": look.height, "pixelRatio": 2 }
            });
        }
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        capabilities.insert("acceptInsecureCerts".to_owned(), true.into());
        within("a window", async {
            ClientBuilder::new(HttpConnector::new())
                .capabilities(capabilities)
                .connect(&self.address)
                .await
                .unwrap()
        })
        .await
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.id() {
            let group = Pid::from_raw(driver.try_into().unwrap());
            let _gone_already = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs `script` until it gives something other than null or false.
pub(crate) async fn until(window: &Client, what: &str, script: &str) -> Value {
    within(what, async {
        loop {
            match window.execute(script, Vec::new()).await.unwrap() {
                Value::Null | Value::Bool(false) => {}
                value => return value,
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
    })
    .await
}

/// Writes a picture of the window into `HOMESCAR_SCREENSHOTS`, or else the target directory.
pub(crate) async fn screenshot(window: &Client, name: &str) {
    let directory = std::env::var_os("HOMESCAR_SCREENSHOTS").map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screenshots"),
        PathBuf::from,
    );
    std::fs::create_dir_all(&directory).unwrap();
    let picture = window.screenshot().await.unwrap();
    std::fs::write(directory.join(format!("{name}.png")), picture).unwrap();
}
