//! The pipes of a worker with the half lines that have come through them, for the next image of the
//! program.

use std::{collections::VecDeque, io};

use serde::{Deserialize, Serialize};
use tokio::{net::unix::pipe, time::Instant};

use super::{Budget, Dropped, Lines, Output, Source, Stream, Tail};
use crate::handover::{Incoming, Number, Outgoing};

/// An [`Output`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedOutput {
    /// Whose it is.
    pub pid: u32,
    stdout: SavedStream,
    stderr: SavedStream,
    /// The last lines of stderr.
    tail: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedStream {
    /// While it is open.
    pipe: Option<Number>,
    partial: Vec<u8>,
    skipping: bool,
}

impl Output {
    /// What the next image has to know of it.
    pub(super) fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedOutput> {
        Ok(SavedOutput {
            pid: self.source.pid,
            stdout: self.stdout.saved(outgoing)?,
            stderr: self.stderr.saved(outgoing)?,
            tail: self.tail.0.iter().cloned().collect(),
        })
    }

    /// The same again. Needs a runtime.
    pub(in crate::supervisor) fn resumed(
        source: Source,
        saved: SavedOutput,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        Ok(Self {
            source,
            stdout: Stream::resumed("stdout", saved.stdout, incoming)?,
            stderr: Stream::resumed("stderr", saved.stderr, incoming)?,
            budget: Budget::new(Instant::now()),
            dropped: Dropped::default(),
            tail: Tail(VecDeque::from(saved.tail)),
        })
    }
}

impl Stream {
    fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedStream> {
        let pipe = self.pipe.as_ref().filter(|_| self.open);
        Ok(SavedStream {
            pipe: pipe.map(|pipe| outgoing.add(pipe)).transpose()?,
            partial: self.lines.partial.clone(),
            skipping: self.lines.skipping,
        })
    }

    fn resumed(
        name: &'static str,
        saved: SavedStream,
        incoming: &mut Incoming,
    ) -> io::Result<Self> {
        let pipe = saved.pipe.map(|number| incoming.take(number)).transpose()?;
        let pipe = pipe.map(pipe::Receiver::from_owned_fd).transpose()?;
        Ok(Self {
            name,
            open: pipe.is_some(),
            pipe,
            lines: Lines {
                partial: saved.partial,
                skipping: saved.skipping,
            },
        })
    }
}
