//! Descriptors that this program was started with, or leaves to its next image: what passes through
//! `execve(2)` is open, has a number, and lacks the flag `FD_CLOEXEC`.
//!
//! Everything that the program opens by itself has that flag. It is taken away at the last moment
//! before an upgrade, and given back at once by whoever finds itself the new owner.
//!
//! Beside descriptors, points in time: see [`Moment`].

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd},
    sync::LazyLock,
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    time::{ClockId, Timespec, clock_gettime},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What a descriptor is called on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(i32);

impl Number {
    /// The number of an open descriptor.
    #[must_use]
    pub fn of(descriptor: &impl AsFd) -> Self {
        Self(descriptor.as_fd().as_raw_fd())
    }

    /// The number that somebody else has told.
    #[must_use]
    pub const fn told(number: i32) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

/// Lets a descriptor pass through the next `execve(2)`.
///
/// # Errors
/// What `fcntl(2)` gives.
pub fn let_pass(descriptor: &impl AsFd) -> io::Result<Number> {
    fcntl_setfd(descriptor, FdFlags::empty())?;
    Ok(Number::of(descriptor))
}

/// Takes that back.
pub fn hold_back(descriptor: &impl AsFd) {
    // It fails only for what is not open, and this is.
    let _set = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
}

/// Copies of descriptors, for the next image; they are closed when this is dropped.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<OwnedFd>);

impl Outgoing {
    /// Adds a copy. Gives its number.
    ///
    /// # Errors
    /// When there is no room for one more.
    pub fn add(&mut self, descriptor: &impl AsFd) -> io::Result<Number> {
        let copy = descriptor.as_fd().try_clone_to_owned()?;
        let number = Number::of(&copy);
        self.0.push(copy);
        Ok(number)
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Number> + '_ {
        self.0.iter().map(Number::of)
    }

    /// Lets all of them pass through the next `execve(2)`.
    ///
    /// # Errors
    /// What `fcntl(2)` gives.
    pub fn let_pass(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|one| let_pass(one).map(drop))
    }
}

/// Descriptors that were open when this image of the program began. Until [`release`](Self::release)
/// each of them stays open under its number, whatever is taken: somebody may have to go back.
#[derive(Debug, Default)]
pub struct Incoming {
    all: BTreeMap<Number, OwnedFd>,
    is_released: bool,
}

impl Incoming {
    /// Takes over those of these that are open and were meant to be passed on.
    ///
    /// # Errors
    /// What `fcntl(2)` gives.
    pub fn claim(numbers: impl IntoIterator<Item = Number>) -> io::Result<Self> {
        let mut claimed = BTreeMap::new();
        for number in numbers {
            if claimed.contains_key(&number) || !was_passed(number) {
                continue;
            }
            #[expect(unsafe_code, reason = "only a number says what was inherited")]
            // SAFETY: it is open, no standard stream, and lacks the flag that everything has which
            // this process has opened: whoever opened it is gone, and nobody here owns it.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number.0) };
            fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
            claimed.insert(number, descriptor);
        }
        Ok(Self {
            all: claimed,
            is_released: false,
        })
    }

    /// Gives one away, for good.
    ///
    /// # Errors
    /// When there is none of this number, or no room for one more.
    pub fn take(&mut self, number: Number) -> io::Result<OwnedFd> {
        if !self.is_released {
            return self.copy(number);
        }
        self.all.remove(&number).ok_or_else(|| missing(number))
    }

    /// A copy of one, which itself stays here.
    ///
    /// # Errors
    /// When there is none of this number, or no room for one more.
    pub fn copy(&self, number: Number) -> io::Result<OwnedFd> {
        let descriptor = self.all.get(&number).ok_or_else(|| missing(number))?;
        descriptor.try_clone()
    }

    /// Nobody goes back any more.
    pub const fn release(&mut self) {
        self.is_released = true;
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = Number> + '_ {
        self.all.keys().copied()
    }

    /// Leaves all of them open, for another image.
    pub fn pass_on(self) {
        for descriptor in self.all.into_values() {
            let _open = fcntl_setfd(&descriptor, FdFlags::empty());
            let _passed = descriptor.into_raw_fd();
        }
    }
}

/// Lets descriptors of these numbers pass, whoever has them: for the last that a program does before
/// another image takes its place.
pub fn let_all_pass(numbers: &[Number]) {
    for number in numbers {
        #[expect(unsafe_code, reason = "their owners are out of reach")]
        // SAFETY: it is used for this call only, which takes any number and fails for what is not open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number.0) };
        let _not_open = fcntl_setfd(descriptor, FdFlags::empty());
    }
}

/// A point in time that means the same to another image: nanoseconds of the system's monotonic clock,
/// which an `Instant` counts by, too, and does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(i64);

/// One point in time, as both tell it.
static BOTH: LazyLock<(Instant, i64)> = LazyLock::new(|| {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    #[expect(
        clippy::disallowed_methods,
        reason = "a clock that a test has stopped is not what the system counts by"
    )]
    let now = std::time::Instant::now();
    let nanos = tv_sec.saturating_mul(NANOS).saturating_add(tv_nsec);
    (Instant::from_std(now), nanos)
});
/// Of a second.
const NANOS: i64 = 1_000_000_000;

impl Moment {
    /// What another image understands.
    #[must_use]
    pub fn of(at: Instant) -> Self {
        let (known, nanos) = *BOTH;
        let distance = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Self(match at.checked_duration_since(known) {
            Some(ahead) => nanos.saturating_add(distance(ahead)),
            None => nanos.saturating_sub(distance(known - at)),
        })
    }

    /// What it is here.
    #[must_use]
    pub fn instant(self) -> Instant {
        let (known, nanos) = *BOTH;
        let distance = Duration::from_nanos(self.0.abs_diff(nanos));
        let at = match self.0 >= nanos {
            true => known.checked_add(distance),
            false => known.checked_sub(distance),
        };
        at.unwrap_or(known)
    }
}

/// Bytes in a state that is text, shorter than a list of numbers.
pub mod text {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// For [`serde`].
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    /// For [`serde`].
    ///
    /// # Errors
    /// When it is no such text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64_STANDARD.decode(text).map_err(D::Error::custom)
    }
}

fn missing(number: Number) -> io::Error {
    io::Error::other(format!("descriptor {} was not passed on", number.0))
}

/// Whether a descriptor is open, is no standard stream, and stays open over an `execve(2)`.
fn was_passed(number: Number) -> bool {
    const O_CLOEXEC: u32 = 0o2_000_000;
    if number.0 <= 2 {
        return false;
    }
    let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{}", number.0)) else {
        return false;
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & O_CLOEXEC == 0)
}

/// Whether a descriptor closes with the next `execve(2)`.
///
/// # Errors
/// What `fcntl(2)` gives.
pub fn is_held_back(descriptor: &impl AsFd) -> io::Result<bool> {
    Ok(fcntl_getfd(descriptor)?.contains(FdFlags::CLOEXEC))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_what_was_passed_on_is_claimed() {
        let own = File::open("/dev/null").unwrap();
        let numbers = [Number::of(&own), Number(0), Number(1_000_000)];
        assert!(Incoming::claim(numbers).unwrap().all.is_empty());

        // What an execve leaves: open, without the flag, and nobody's.
        let passed = OwnedFd::from(File::open("/dev/null").unwrap());
        let number = let_pass(&passed).unwrap();
        let _nobodys = passed.into_raw_fd();
        let mut incoming = Incoming::claim([number, number]).unwrap();
        assert!(incoming.copy(number).is_ok());
        let copy = incoming.take(number).unwrap();
        assert_ne!(Number::of(&copy), number, "it stays where it was");
        incoming.release();
        let taken = incoming.take(number).unwrap();
        assert_eq!(Number::of(&taken), number);
        assert!(is_held_back(&taken).unwrap());
        let error = incoming.take(number).unwrap_err();
        assert!(error.to_string().contains("was not passed on"), "{error}");
    }

    #[test]
    fn a_moment_is_what_the_clock_of_the_system_says() {
        let now = Instant::now();
        for millis in [0, 1, 2_500] {
            let distance = Duration::from_millis(millis);
            for at in [now + distance, now - distance] {
                assert_eq!(Moment::of(at).instant(), at);
            }
        }
        let clock = || {
            let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
            tv_sec * NANOS + tv_nsec
        };
        let (before, told, after) = (clock(), Moment::of(Instant::now()), clock());
        // The one point that is known was not read twice at the very same time.
        let little = NANOS / 10;
        assert!((before - little..=after + little).contains(&told.0));
    }

    #[test]
    fn copies_for_the_next_image_pass_only_when_they_are_let() {
        let own = File::open("/dev/null").unwrap();
        let mut outgoing = Outgoing::default();
        let number = outgoing.add(&own).unwrap();
        assert_ne!(number, Number::of(&own));
        assert!(is_held_back(&outgoing.0[0]).unwrap());
        outgoing.let_pass().unwrap();
        assert!(!is_held_back(&outgoing.0[0]).unwrap());
        assert!(is_held_back(&own).unwrap());
    }
}
