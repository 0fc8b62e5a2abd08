//! Which of an application's servers is the one that clients are brought to. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A server on another port than the listener's may be the one that clients are meant for, or be
/// followed by that. Servers that an application starts in one go ask within this.
pub(super) const DECIDE_AFTER: Duration = Duration::from_millis(200);

/// What becomes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Clients of the cluster's listeners are brought to it.
    Routed,
    /// It gets a socket of the slot's own, which nobody is brought to.
    Private,
    /// It listens where it wants to, together with the same server of all workers.
    Shared,
    /// It is not known yet; see [`Servers::decided`].
    Undecided,
}

/// The servers of one generation.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    /// Ports of the listeners that lead here.
    expected: Vec<u16>,
    /// The port that clients were brought to in an earlier generation.
    known: Option<u16>,
    routed: Option<u16>,
    decide_at: Option<Instant>,
}

impl Servers {
    pub(super) fn new(expected: &[u16], known: Option<u16>) -> Self {
        Self {
            expected: expected.to_vec(),
            known,
            routed: None,
            decide_at: None,
        }
    }

    /// The same again, in another image of the program.
    pub(super) fn resumed(expected: &[u16], known: Option<u16>, routed: Option<u16>) -> Self {
        Self {
            routed,
            ..Self::new(expected, known)
        }
    }

    pub(super) fn expected(&self) -> &[u16] {
        &self.expected
    }

    pub(super) const fn known(&self) -> Option<u16> {
        self.known
    }

    /// The port of the server that clients are brought to.
    pub(super) const fn routed(&self) -> Option<u16> {
        self.routed
    }

    /// When what is undecided is to be asked again.
    pub(super) const fn decide_at(&self) -> Option<Instant> {
        self.decide_at
    }

    /// What becomes of a server on this port.
    pub(super) fn part(&mut self, port: u16, now: Instant) -> Part {
        let is_expected = self.expected.contains(&port);
        match self.routed {
            Some(routed) if routed == port => return Part::Routed,
            Some(routed) if is_expected && !self.expected.contains(&routed) => {}
            Some(_) if is_expected => return Part::Private,
            Some(_) => return Part::Shared,
            // As it was before, or as nothing speaks against.
            None if is_expected || self.known == Some(port) || self.expected.is_empty() => {}
            None if self
                .known
                .is_some_and(|known| self.expected.contains(&known)) =>
            {
                return Part::Shared;
            }
            None => match self.decide_at {
                Some(at) if at <= now => {}
                Some(_) => return Part::Undecided,
                None => {
                    self.decide_at = Some(now + DECIDE_AFTER);
                    return Part::Undecided;
                }
            },
        }
        self.routed = Some(port);
        self.decide_at = None;
        Part::Routed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(expected: &[u16], known: Option<u16>, asked: &[u16]) -> Vec<Part> {
        let mut servers = Servers::new(expected, known);
        let now = Instant::now();
        asked.iter().map(|port| servers.part(*port, now)).collect()
    }

    #[test]
    fn the_listeners_port_is_the_one() {
        use Part::{Private, Routed, Shared, Undecided};
        assert_eq!(of(&[3000], None, &[3000, 9100]), [Routed, Shared]);
        assert_eq!(
            of(&[3000], None, &[9100, 3000, 9100]),
            [Undecided, Routed, Shared]
        );
        assert_eq!(
            of(&[80, 8080], None, &[80, 8080, 80]),
            [Routed, Private, Routed]
        );
        // What is known from before needs no waiting.
        assert_eq!(of(&[3000], Some(3000), &[9100, 3000]), [Shared, Routed]);
        assert_eq!(of(&[3000], Some(4000), &[4000, 9100]), [Routed, Shared]);
        // Nothing is expected: the first.
        assert_eq!(of(&[], None, &[4000, 9100, 4000]), [Routed, Shared, Routed]);
    }

    #[test]
    fn another_port_is_the_one_when_no_better_comes() {
        let mut servers = Servers::new(&[3000], None);
        let now = Instant::now();
        assert_eq!(servers.part(4000, now), Part::Undecided);
        assert_eq!(servers.decide_at(), Some(now + DECIDE_AFTER));
        let soon = now + DECIDE_AFTER / 2;
        assert_eq!(servers.part(4000, soon), Part::Undecided);
        let later = now + DECIDE_AFTER;
        assert_eq!(servers.part(4000, later), Part::Routed);
        assert_eq!((servers.routed(), servers.decide_at()), (Some(4000), None));
        // It comes late, but it comes.
        assert_eq!(servers.part(3000, later), Part::Routed);
        assert_eq!(servers.routed(), Some(3000));
    }
}
