//! Numbers and addresses as text, for what is written at every connection and request: the machinery of
//! `format!` takes longer than all else that is done with a head.

use std::{io::Write as _, net::IpAddr};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes a number.
pub fn decimal(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes the size of a chunk.
pub fn hexadecimal(out: &mut Vec<u8>, mut number: usize) {
    let mut text = [0; 2 * size_of::<usize>()];
    let mut at = text.len();
    loop {
        at -= 1;
        text[at] = DIGITS[number & 15];
        number >>= 4;
        if number == 0 {
            return out.extend_from_slice(&text[at..]);
        }
    }
}

/// Writes an address.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            // The dots stand there already.
            let mut text = [b'.'; "255.255.255.255".len()];
            let mut len = 0;
            for octet in address.octets() {
                for (least, unit) in [(100, 100), (10, 10), (0, 1)] {
                    if octet >= least {
                        text[len] = b'0' + octet / unit % 10;
                        len += 1;
                    }
                }
                len += 1;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        IpAddr::V6(address) => write!(out, "{address}").expect("a vector takes everything"),
    }
}

/// All 32 hexadecimal digits of a number.
pub fn whole(number: u128) -> String {
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(number.to_be_bytes()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    let text = str::from_utf8(&text).expect("digits are ASCII");
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn all_are_written_as_std_writes_them(number: u64, long: u128, shift in 0..64_u32, v4: u32, v6: u128) {
            let number = number >> shift;
            let size = number as usize;
            prop_assert_eq!(written(|out| decimal(out, number)), number.to_string());
            prop_assert_eq!(written(|out| hexadecimal(out, size)), format!("{size:x}"));
            prop_assert_eq!(whole(long >> shift), format!("{:032x}", long >> shift));
            for addr in [IpAddr::from(Ipv4Addr::from(v4)), IpAddr::from(Ipv6Addr::from(v6))] {
                prop_assert_eq!(written(|out| address(out, addr)), addr.to_string());
            }
        }
    }

    #[test]
    fn the_ends_are_written_too() {
        for number in [0, 9, 10, u64::MAX] {
            assert_eq!(written(|out| decimal(out, number)), number.to_string());
        }
        assert_eq!(written(|out| hexadecimal(out, 0)), "0");
    }
}
