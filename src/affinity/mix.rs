//! The one mixing function.

/// `triple32` of hash-prospector (<https://github.com/skeeto/hash-prospector>, public domain):
/// three rounds of xor-shift and multiply whose exact avalanche bias, 0.0209, is at the
/// theoretical limit of a permutation of 32 bits. Two rounds (`lowbias32`, 0.17) would be a
/// third cheaper, but keys here are often consecutive addresses, and the second and third
/// choices of a key must be as even as the first.
pub(super) const fn mix32(x: u32) -> u32 {
    mix32_rest(mix32_first(x))
}

/// The first step of [`mix32`]. It is linear, `first(a ^ b) = first(a) ^ first(b)`, so of many
/// mixes of one key with fixed seeds it can be done once for the key and beforehand for the seeds.
pub(super) const fn mix32_first(x: u32) -> u32 {
    x ^ x >> 17
}

/// The steps of [`mix32`] after the first.
pub(super) const fn mix32_rest(mut x: u32) -> u32 {
    x = x.wrapping_mul(0xed5a_d4bb);
    x ^= x >> 11;
    x = x.wrapping_mul(0xac4c_1b51);
    x ^= x >> 15;
    x = x.wrapping_mul(0x3184_8bab);
    x ^= x >> 14;
    x
}

/// The inverse of [`mix32_rest`]: it leads from a score back to the seed that gave it.
pub(super) const fn unmix32_rest(mut x: u32) -> u32 {
    x ^= x >> 14 ^ x >> 28;
    x = x.wrapping_mul(0x32b2_1703);
    x ^= x >> 15 ^ x >> 30;
    x = x.wrapping_mul(0x469e_0db1);
    x ^= x >> 11 ^ x >> 22;
    x.wrapping_mul(0x79a8_5073)
}

#[cfg(test)]
mod tests {
    use super::{mix32, mix32_first, mix32_rest, unmix32_rest};

    #[test]
    fn unmix_undoes_mix() {
        let samples = (0..=u32::MAX).step_by(65_521).chain([1, 2, u32::MAX]);
        for x in samples {
            assert_eq!(unmix32_rest(mix32_rest(x)), x);
            assert_eq!(mix32_rest(unmix32_rest(x)), x);
            let (a, b) = (x.reverse_bits(), x.wrapping_mul(3));
            assert_eq!(mix32(a ^ b), mix32_rest(mix32_first(a) ^ mix32_first(b)));
        }
    }

    /// The strict avalanche criterion: each input bit flips each output bit half of the time.
    #[test]
    fn every_input_bit_flips_every_output_bit_half_of_the_time() {
        const SAMPLES: u32 = 1 << 16;
        for input in 0..32 {
            let mut flips = [0_u32; 32];
            for i in 0..SAMPLES {
                let x = i.wrapping_mul(0x9e37_79b9);
                let changed = mix32(x) ^ mix32(x ^ 1 << input);
                for (output, count) in flips.iter_mut().enumerate() {
                    *count += changed >> output & 1;
                }
            }
            for (output, count) in flips.into_iter().enumerate() {
                // Standard deviation 128 of 32,768; 1,024 pairs are looked at: five of them.
                let off = f64::from(count) - f64::from(SAMPLES) / 2.0;
                assert!(off.abs() < 5.0 * 128.0, "bit {input} -> {output}: {count}");
            }
        }
    }
}
