//! Whether files have changed.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// What tells one state of some files from another without reading them: symbolic links are
/// followed, so that a link that leads elsewhere now (certbot, Kubernetes) is a change too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<File>>);

/// Device, inode, size, and the time of the last change in seconds and nanoseconds.
type File = (u64, u64, u64, i64, i64);

impl Fingerprint {
    /// Of these files, now; one that is not there counts as such.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let of_file = |file: &Path| {
            let found = fs::metadata(file).ok()?;
            let (device, inode, size) = (found.dev(), found.ino(), found.size());
            Some((device, inode, size, found.mtime(), found.mtime_nsec()))
        };
        Self(files.into_iter().map(of_file).collect())
    }
}

/// Tells when files have changed and stood still since: a pair that is half written is no pair.
#[derive(Debug)]
pub struct Watch {
    known: Fingerprint,
    last: Fingerprint,
}

impl Watch {
    /// `known` is the state that was read.
    #[must_use]
    pub fn new(known: Fingerprint) -> Self {
        let last = known.clone();
        Self { known, last }
    }

    /// Takes the present state; true when it is to be read: once for each change, at the second
    /// look that finds it.
    pub fn look(&mut self, now: Fingerprint) -> bool {
        let is_new = now == self.last && now != self.known;
        if is_new {
            self.known.clone_from(&now);
        }
        self.last = now;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_change_is_told_once_when_it_stands_still() {
        let state = |size| Fingerprint(vec![Some((0, 0, size, 0, 0))]);
        let mut watch = Watch::new(state(1));
        let told: Vec<_> = [1, 2, 3, 3, 3, 3, 4, 3, 3]
            .map(|size| watch.look(state(size)))
            .into();
        assert_eq!(
            told,
            [false, false, false, true, false, false, false, false, false]
        );
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let of_link = || Fingerprint::of([at("link").as_path()]);
        let none = of_link();
        fs::write(at("a"), "same").unwrap();
        fs::write(at("b"), "same").unwrap();
        symlink(at("a"), at("link")).unwrap();
        let first = of_link();
        assert_ne!(none, first);
        assert_eq!(first, of_link());
        symlink(at("b"), at("new")).unwrap();
        fs::rename(at("new"), at("link")).unwrap();
        assert_ne!(first, of_link());
    }
}
