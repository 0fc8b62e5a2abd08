//! What signs the cookies of each cluster.

use std::{fs, path::PathBuf, sync::Arc};

use super::cluster::RunningCluster;
use crate::{
    affinity::Secrets,
    config::{Config, Key},
};

/// A file of secrets cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cluster {cluster}: affinity.cookie.secrets: {}: {why}", path.display())]
pub struct SecretsFault {
    cluster: Arc<str>,
    path: PathBuf,
    why: String,
}

/// The secret of this process, for clusters that have no file of them.
#[derive(Debug)]
pub(super) struct Signers([u8; 32]);

/// The secrets of all clusters that go by a cookie.
pub(super) type Signing = Vec<(Arc<str>, Arc<Secrets>)>;

impl Default for Signers {
    fn default() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the kernel has random bytes");
        Self(bytes)
    }
}

impl Signers {
    /// Those of an earlier image of the program.
    pub(super) const fn of(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// For the next image.
    pub(super) const fn secret(&self) -> [u8; 32] {
        self.0
    }

    /// Reads the files that a configuration names.
    pub(super) fn read(&self, config: &Config) -> Result<Signing, SecretsFault> {
        let mut all = Vec::new();
        for cluster in &config.clusters {
            let Key::Cookie(cookie) = &cluster.affinity.key else {
                continue;
            };
            let name = &cluster.name;
            let secrets = match &cookie.secrets {
                None => Secrets::random(&self.0, name),
                Some(path) => {
                    let fault = |why: String| SecretsFault {
                        cluster: Arc::clone(name),
                        path: path.clone(),
                        why,
                    };
                    let text = fs::read_to_string(path).map_err(|why| fault(why.to_string()))?;
                    Secrets::parse(&text, name).map_err(|why| fault(why.to_string()))?
                }
            };
            all.push((Arc::clone(name), Arc::new(secrets)));
        }
        Ok(all)
    }
}

/// Gives the clusters what signs their cookies.
pub(super) fn hand_out<'a>(
    signing: &Signing,
    clusters: impl Fn(&str) -> Option<&'a RunningCluster>,
) {
    for (name, secrets) in signing {
        if let Some(running) = clusters(name) {
            running.cluster().sign_with(Arc::clone(secrets));
        }
    }
}
