//! The clients of socket.io, in a process of their own.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
};

use serde::Deserialize;

use super::street::{Kind, Outcome, Street, Visit};
use crate::{
    node::script,
    support::{
        client::Who,
        homescar::{SOON, eventually},
    },
};

const CLIENTS: usize = 9;
/// So many of them go on to a WebSocket.
const UPGRADED: usize = 3;

pub(super) struct Pollers {
    child: Child,
    orders: ChildStdin,
    said: Arc<Mutex<Vec<Said>>>,
}

/// What happened to one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    what: String,
    address: String,
    begun: f64,
    at: f64,
    slot: String,
    generation: u32,
    pid: u32,
    reason: String,
    text: String,
}

impl Pollers {
    pub(super) fn start(mode: &str, to: SocketAddr) -> Self {
        // A relay of bytes cannot ask them to go, and who is not on the path neither.
        let upgraded = if mode == "http" { UPGRADED } else { 0 };
        let mut child = Command::new("node")
            .arg(script("pollers.mjs"))
            .args([usize::from(to.port()), CLIENTS, upgraded].map(|n| n.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = Arc::<Mutex<Vec<Said>>>::default();
        let noted = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                noted
                    .lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        Self {
            child,
            orders,
            said,
        }
    }

    pub(super) async fn pause(&mut self) {
        let paused = || {
            let said = self.said.lock().unwrap();
            said.iter().filter(|said| said.what == "paused").count()
        };
        let before = paused();
        self.orders.write_all(b"pause\n").unwrap();
        eventually("they have gone", SOON, || paused() > before).await;
    }

    pub(super) fn go_on(&mut self) {
        self.orders.write_all(b"go\n").unwrap();
    }

    /// Notes what all of them have met.
    pub(super) fn tell(&self, street: &Street) {
        let mut sessions = BTreeMap::new();
        for said in self.said.lock().unwrap().iter() {
            let outcome = match &*said.what {
                "who" => Outcome::Served(Who {
                    slot: said.slot.clone(),
                    generation: said.generation,
                    pid: said.pid,
                    peer: String::new(),
                    proxy: None,
                }),
                // Whoever is told to pause goes by itself.
                "disconnect" if said.reason == "io client disconnect" => continue,
                "disconnect" => Outcome::Lost(format!("{}: {}", said.reason, said.text)),
                // Its first poll came to another generation than its handshake.
                "refused" if said.text.contains("Session ID unknown") => {
                    Outcome::Lost(said.text.clone())
                }
                "refused" | "silent" => Outcome::Failed(format!("{}: {}", said.what, said.text)),
                "connect" => {
                    sessions.insert(&said.address, said.begun);
                    continue;
                }
                _ => continue,
            };
            // It stays where it was begun.
            let begun = match &outcome {
                Outcome::Served(_) => sessions.get(&said.address).copied(),
                Outcome::Lost(_) => Some(said.at),
                _ => None,
            };
            let begun = begun.unwrap_or(said.begun);
            street.note(Visit {
                kind: Kind::Session,
                cluster: "node",
                client: said.address.parse().unwrap(),
                from: None,
                begun,
                asked: if said.begun > begun {
                    said.begun
                } else {
                    begun
                },
                ended: said.at,
                outcome,
            });
        }
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
