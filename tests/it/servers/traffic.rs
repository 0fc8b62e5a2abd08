//! Clients that come all the time.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use tokio::{sync::RwLock, task::JoinSet, time::Instant};

use crate::support::{
    client::{Client, Who},
    homescar::{SOON, eventually},
};

/// Clients that come, ask, go, and come again.
pub(super) struct Traffic {
    /// Everybody who is being served holds it for reading.
    pub(super) gate: Arc<RwLock<()>>,
    /// Those who have asked and have no answer yet.
    pub(super) waiting: Arc<AtomicUsize>,
    /// Which generation has answered each of them last.
    latest: Vec<Arc<AtomicU32>>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Attempt>>,
}

impl Traffic {
    pub(super) fn start(clients: &[IpAddr], to: SocketAddr) -> Self {
        let mut traffic = Self {
            gate: Arc::default(),
            waiting: Arc::default(),
            latest: Vec::new(),
            stop: Arc::default(),
            clients: JoinSet::new(),
        };
        for from in clients.iter().copied() {
            let latest = Arc::<AtomicU32>::default();
            traffic.latest.push(Arc::clone(&latest));
            let gate = Arc::clone(&traffic.gate);
            let waiting = Arc::clone(&traffic.waiting);
            let stop = Arc::clone(&traffic.stop);
            traffic.clients.spawn(async move {
                let mut attempts = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let _pass = gate.read().await;
                    let attempt = visit_and_count(from, to, &waiting).await;
                    if let Ok(who) = &attempt.answer {
                        latest.store(who.generation, Ordering::SeqCst);
                    }
                    attempts.push(attempt);
                }
                attempts
            });
        }
        traffic
    }

    pub(super) async fn is_answered_by(&self, generation: u32) {
        eventually(&format!("answered by {generation}"), SOON, || {
            let mut latest = self.latest.iter();
            latest.all(|latest| latest.load(Ordering::SeqCst) == generation)
        })
        .await;
    }

    pub(super) async fn stop(self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::SeqCst);
        self.clients
            .join_all()
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

/// A client's attempt to be answered.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) from: IpAddr,
    pub(super) began: Instant,
    pub(super) connected: bool,
    pub(super) answer: io::Result<Who>,
}

pub(super) async fn visit(from: IpAddr, to: SocketAddr) -> Attempt {
    visit_and_count(from, to, &AtomicUsize::new(0)).await
}

async fn visit_and_count(from: IpAddr, to: SocketAddr, waiting: &AtomicUsize) -> Attempt {
    let began = Instant::now();
    let mut connected = false;
    let asking = async {
        let mut client = Client::connect_from(from, to).await?;
        connected = true;
        let request = "GET /whoami HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";
        client.send(request).await?;
        waiting.fetch_add(1, Ordering::SeqCst);
        let answer = client.rest().await;
        waiting.fetch_sub(1, Ordering::SeqCst);
        let answer = String::from_utf8_lossy(&answer?).into_owned();
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(serde_json::from_str(body)?),
            _ => Err(io::Error::other(format!("no answer: {answer:?}"))),
        }
    };
    let answer = asking.await;
    Attempt {
        from,
        began,
        connected,
        answer,
    }
}
