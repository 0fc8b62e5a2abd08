//! Where the head of an HTTP/1 message ends, found as the bytes come in.
//!
//! Lines end with CR LF and nothing else (RFC 9112 §2.2 lets a recipient take a bare LF; two
//! recipients that differ in that see different messages).

/// Looks for the end of a head; each byte is looked at once, however the head is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Looked at so far. No head is so long that this is too small.
    at: u32,
    /// Where the present line begins.
    line: u32,
    /// The first line has ended.
    has_line: bool,
}

/// A line that ends with LF alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BareLineFeed;

impl Scan {
    /// The length of the head, its empty line included, when it is all there. `bytes` are those of
    /// the last call and more behind them.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, BareLineFeed> {
        while let Some(found) = line_feed(&bytes[self.at as usize..]) {
            let feed = self.at as usize + found;
            if feed == 0 || bytes[feed - 1] != b'\r' {
                return Err(BareLineFeed);
            }
            let is_empty = feed - 1 == self.line as usize;
            self.at = place(feed + 1);
            self.line = self.at;
            match (is_empty, self.has_line) {
                (true, true) => return Ok(Some(feed + 1)),
                // An empty line before the message is passed over (RFC 9112 §2.2).
                (true, false) => {}
                (false, _) => self.has_line = true,
            }
        }
        self.at = place(bytes.len());
        Ok(None)
    }

    /// Whether the first line is all there.
    pub(super) const fn has_first_line(self) -> bool {
        self.has_line
    }
}

/// Where the first line feed is. Lines of heads are so short that wider steps than these take longer to
/// begin than to end.
fn line_feed(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        // Of a byte that is zero, and of none before the first such, this leaves the highest bit.
        let others = u64::from_le_bytes(*word) ^ (ONES * u64::from(b'\n'));
        let found = others.wrapping_sub(ONES) & !others & (ONES << 7);
        if found != 0 {
            return Some(8 * index + found.trailing_zeros() as usize / 8);
        }
    }
    let last = rest.iter().position(|byte| *byte == b'\n');
    last.map(|at| 8 * words.len() + at)
}

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end_of(bytes: &[u8]) -> Result<Option<usize>, BareLineFeed> {
        Scan::default().end(bytes)
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        assert_eq!(
            end_of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest"),
            Ok(Some(27))
        );
        assert_eq!(end_of(b"\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Some(20)));
        assert_eq!(end_of(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        assert_eq!(end_of(b"\r\n\r\n"), Ok(None), "there is no head yet");
    }

    #[test]
    fn a_bare_line_feed_ends_nothing() {
        for head in [
            "\n",
            "GET / HTTP/1.1\n",
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "A\r\n\n",
        ] {
            assert_eq!(end_of(head.as_bytes()), Err(BareLineFeed), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn line_feeds_are_found_as_memchr_finds_them(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), 8..13_u8, any::<u8>()], 0..40), before in 0..20_usize) {
            let mut all = vec![b'x'; before];
            all.extend(bytes);
            prop_assert_eq!(line_feed(&all), memchr::memchr(b'\n', &all));
        }

        #[test]
        fn cuts_make_no_difference(text in "(\r\n){0,2}([ab:]{0,3}\r?\n?){0,6}", cuts in proptest::collection::vec(0usize..40, 0..6)) {
            let bytes = text.as_bytes();
            let whole = end_of(bytes);
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut scan = Scan::default();
            let found = cuts.iter().map(|cut| scan.end(&bytes[..*cut])).find(|found| *found != Ok(None));
            prop_assert_eq!(found.unwrap_or(Ok(None)), whole);
        }
    }
}
