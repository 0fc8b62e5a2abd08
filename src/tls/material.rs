//! What the files of a configuration hold, read and verified as a whole before anything changes.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::{ResolvesClientCert, WebPkiServerVerifier},
    pki_types::{CertificateDer, ServerName},
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    identity::{ByName, Identity},
    pem::{self, LoadError, Trouble},
    provider,
    tickets::Tickets,
};
use crate::config::{BackendTls, Tls, TlsVersion};

const ALL_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// What a listener needs to speak TLS.
#[derive(Debug)]
pub struct ServerMaterial {
    identities: Vec<Identity>,
    pub(super) trust: Trust,
    pub(super) config: ServerConfig,
    /// The keys of its session tickets.
    pub(super) tickets: Arc<Tickets>,
}

/// By what clients are believed to be who they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    optional: bool,
}

impl Trust {
    /// Whether clients need not say who they are.
    pub(super) const fn is_empty(&self) -> bool {
        self.authorities.is_empty()
    }

    /// What tells it from others.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update([u8::from(self.optional)]);
        for authority in &self.authorities {
            hasher.update((authority.len() as u64).to_be_bytes());
            hasher.update(authority);
        }
        hasher.finalize().into()
    }
}

impl ServerMaterial {
    /// Reads and verifies all files.
    ///
    /// # Errors
    /// What is wrong with each of them.
    pub fn load(tls: &Tls) -> Result<Self, Vec<LoadError>> {
        let mut faults = Vec::new();
        let mut identities = Vec::new();
        for pair in &tls.certs {
            match Identity::load(pair) {
                Ok(identity) => identities.push(identity),
                Err(fault) => faults.push(fault),
            }
        }
        let verifier = client_verifier(tls).map_err(|fault| faults.push(fault));
        let (Some(by_name), Ok((verifier, trust)), true) =
            (ByName::new(&identities), verifier, faults.is_empty())
        else {
            return Err(faults);
        };
        let versions = match tls.min_version {
            TlsVersion::V12 => ALL_VERSIONS,
            TlsVersion::V13 => &[&TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| vec![Trouble::Refused(error).into()])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(by_name));
        // All suites are good ones; scanners want to see that the server decides nevertheless.
        config.ignore_client_order = true;
        config.alpn_protocols = tls.alpn.iter().map(|name| name.as_bytes().into()).collect();
        let tickets = Arc::new(Tickets::new(Instant::now()));
        config.ticketer = Arc::<Tickets>::clone(&tickets);
        Ok(Self {
            identities,
            trust,
            config,
            tickets,
        })
    }

    /// Its certificates, in the order of the configuration.
    #[must_use]
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// Whether a handshake takes longer than established connections should wait for one: 0.1 ms is
    /// what it takes at best; to sign with RSA takes several times as long, and clients may
    /// bring any kind of certificate.
    pub(super) fn is_costly(&self) -> bool {
        !self.trust.is_empty() || !self.identities.iter().all(Identity::signs_fast)
    }
}

/// What a cluster needs to speak TLS with its backends.
#[derive(Clone, Debug)]
pub struct ClientMaterial {
    pub(super) config: Arc<ClientConfig>,
    /// What is asked for and verified instead of the address.
    pub(super) name: Option<ServerName<'static>>,
    identity: Option<Arc<Identity>>,
}

impl ClientMaterial {
    /// Reads and verifies all files.
    ///
    /// # Errors
    /// What is wrong with each of them, and with the name.
    pub fn load(tls: &BackendTls) -> Result<Self, Vec<LoadError>> {
        let mut faults = Vec::new();
        let name = tls.name.as_ref().map(|name| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|_| Trouble::BadName(name.clone()).into())
        });
        let name = name.transpose().map_err(|fault| faults.push(fault));
        let identity = tls.client.as_ref().map(Identity::load).transpose();
        let identity = identity.map_err(|fault| faults.push(fault));
        let roots = match &tls.ca {
            Some(file) => authorities(file).map(|(roots, _)| roots),
            None => authorities_of_this_machine(),
        };
        let roots = roots.map_err(|fault| faults.push(fault));
        let (Ok(name), Ok(identity), Ok(roots)) = (name, identity, roots) else {
            return Err(faults);
        };
        let refused = |error| vec![Trouble::Refused(error).into()];
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| vec![Trouble::BadAuthority(error.to_string()).into()])?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(ALL_VERSIONS)
            .map_err(refused)?
            .with_webpki_verifier(verifier);
        let config = match &identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let shown = SingleCertAndKey::from(Arc::clone(identity.certified()));
                let shown: Arc<dyn ResolvesClientCert> = Arc::new(shown);
                config.with_client_cert_resolver(shown)
            }
        };
        Ok(Self {
            config: Arc::new(config),
            name,
            identity: identity.map(Arc::new),
        })
    }

    /// What homescar shows when it is asked for a certificate.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_deref()
    }
}

fn client_verifier(tls: &Tls) -> Result<(Arc<dyn ClientCertVerifier>, Trust), LoadError> {
    let Some(file) = &tls.client_ca else {
        return Ok((Arc::new(NoClientAuth), Trust::default()));
    };
    let (roots, certificates) = authorities(file)?;
    let trust = Trust {
        authorities: certificates,
        optional: tls.client_optional,
    };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = match tls.client_optional {
        true => builder.allow_unauthenticated(),
        false => builder,
    };
    let verifier = builder.build().map_err(|error| {
        let trouble = Trouble::BadAuthority(error.to_string());
        LoadError::new(file, trouble)
    })?;
    Ok((verifier, trust))
}

fn authorities(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), LoadError> {
    let certificates = pem::certificates(file)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| {
            let trouble = Trouble::BadAuthority(error.to_string());
            LoadError::new(file, trouble)
        })?;
    }
    Ok((roots, certificates))
}

fn authorities_of_this_machine() -> Result<RootCertStore, LoadError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _useless) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(Trouble::NoAuthorities.into()),
        _ => Ok(roots),
    }
}
