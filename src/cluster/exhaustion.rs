//! What is not a backend's fault.

use std::io;

/// Whether a connection was not even tried, because this machine has run out of descriptors,
/// memory or ports: no backend is to blame.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}
