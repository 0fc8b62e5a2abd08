//! The secret that opens the API over TCP.

use std::{fs, io, path::Path};

use sha2::{Digest, Sha256};

/// A shorter one could be guessed.
const SHORTEST: usize = 16;

/// A token, of which only a digest is kept: comparing digests takes as long whatever was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token([u8; 32]);

impl Token {
    /// The first line of a file.
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(file)?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < SHORTEST {
            let why = format!(
                "its first line is the token, and has {} of at least {SHORTEST} characters: \
                 `openssl rand -hex 32` makes one",
                token.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self(digest(token)))
    }

    /// Whether this value of `Authorization` (RFC 6750 §2.1) shows it.
    pub(super) fn is_shown_by(&self, authorization: &str) -> bool {
        let (scheme, shown) = authorization.split_once(' ').unwrap_or_default();
        scheme.eq_ignore_ascii_case("bearer") && digest(shown.trim()) == self.0
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_first_line_and_shown_as_a_bearer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "0123456789abcdef\nanother line\n").unwrap();
        let token = Token::read(file.path()).unwrap();
        assert!(token.is_shown_by("Bearer 0123456789abcdef"));
        assert!(token.is_shown_by("bearer  0123456789abcdef"));
        for other in [
            "",
            "Bearer",
            "Bearer x",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!token.is_shown_by(other), "{other}");
        }
        fs::write(file.path(), "short\n").unwrap();
        let why = Token::read(file.path()).unwrap_err().to_string();
        assert!(why.contains("has 5 of at least 16"), "{why}");
    }
}
