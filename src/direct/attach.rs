//! Giving a group its program.

use std::os::fd::AsFd;

use nix::{
    errno::Errno,
    libc::{sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
};
use thiserror::Error;

use crate::affinity::Instruction;

/// Why the kernel did not take a program. The group keeps the one that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// Compiled, it is larger than `net.core.optmem_max`: 128 KiB by default, which holds any;
    /// 20 KiB in older kernels, which holds some 130 seeds.
    #[error(
        "the kernel has no room for a program of {instructions} instructions: raise the sysctl \
         net.core.optmem_max, or have fewer slots"
    )]
    NoRoom {
        /// Its length.
        instructions: usize,
    },
    /// Anything else: the socket is in no group, or the program is none.
    #[error("the kernel refuses a program of {instructions} instructions for a group of sockets")]
    Refused {
        /// Its length.
        instructions: usize,
        /// `EINVAL`, when the socket was bound without `SO_REUSEPORT` or a check has failed.
        source: Errno,
    },
}

/// Replaces the program of the group that a socket belongs to, at once and whole: each SYN is
/// decided by the old one or by the new one. It needs no privilege, and stays with the group when
/// this socket is closed.
///
/// The socket must have `SO_REUSEPORT`. One that is not bound yet becomes the first of a group.
///
/// # Errors
/// [`AttachError`]; the group is left as it was.
pub fn attach(socket: &impl AsFd, program: &[Instruction]) -> Result<(), AttachError> {
    let instructions = program.len();
    let mut filters: Vec<sock_filter> = program
        .iter()
        .map(|&Instruction { code, jt, jf, k }| sock_filter { code, jt, jf, k })
        .collect();
    let len = u16::try_from(instructions).map_err(|_| AttachError::Refused {
        instructions,
        source: Errno::EINVAL,
    })?;
    let program = sock_fprog {
        len,
        filter: filters.as_mut_ptr(),
    };
    setsockopt(socket, AttachReusePortCbpf, &program).map_err(|source| match source {
        Errno::ENOMEM => AttachError::NoRoom { instructions },
        source => AttachError::Refused {
            instructions,
            source,
        },
    })
}
