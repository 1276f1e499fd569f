//! The numbers of tensors, with the rounding that PyTorch has on a CPU: to the nearest, ties to even, by way of `f32`
//! where they are narrower.

use safetensors::tensor::Dtype;

/// Whether PyTorch computes with these as floating-point numbers.
#[must_use]
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// What tensors of different kinds become when they are joined; `None` where one is no float.
#[must_use]
pub fn common(dtypes: &[Dtype]) -> Option<Dtype> {
    let (first, others) = dtypes.split_first()?;
    if others.iter().all(|other| other == first) {
        Some(*first)
    } else if !dtypes.iter().all(|dtype| is_float(*dtype)) {
        None
    } else if dtypes.contains(&Dtype::F64) {
        Some(Dtype::F64)
    } else {
        Some(Dtype::F32)
    }
}

/// Puts the values of little-endian `bytes` in `numbers`; false where the kind is none that is computed with.
#[must_use]
pub fn decode(dtype: Dtype, bytes: &[u8], numbers: &mut Vec<f64>) -> bool {
    fn each<const N: usize>(bytes: &[u8], numbers: &mut Vec<f64>, value: impl Fn([u8; N]) -> f64) {
        numbers.clear();
        numbers.extend(bytes.as_chunks().0.iter().map(|number| value(*number)));
    }
    match dtype {
        Dtype::F64 => each(bytes, numbers, f64::from_le_bytes),
        Dtype::F32 => each(bytes, numbers, |number| f32::from_le_bytes(number).into()),
        Dtype::F16 => each(bytes, numbers, |number| {
            from_f16(u16::from_le_bytes(number)).into()
        }),
        Dtype::BF16 => each(bytes, numbers, |number| {
            f32::from_bits(u32::from(u16::from_le_bytes(number)) << 16).into()
        }),
        #[expect(clippy::cast_precision_loss, reason = "PyTorch makes it f32")]
        Dtype::I64 => each(bytes, numbers, |number| i64::from_le_bytes(number) as f64),
        Dtype::I32 => each(bytes, numbers, |number| i32::from_le_bytes(number).into()),
        Dtype::I16 => each(bytes, numbers, |number| i16::from_le_bytes(number).into()),
        Dtype::I8 => each(bytes, numbers, |number| i8::from_le_bytes(number).into()),
        Dtype::U8 => each(bytes, numbers, |[number]| number.into()),
        _ => return false,
    }
    true
}

/// Appends `numbers` to `bytes`, times `factor`, as floats of this kind.
pub fn encode(dtype: Dtype, numbers: &[f64], factor: f64, bytes: &mut Vec<u8>) {
    fn each<const N: usize>(bytes: &mut Vec<u8>, numbers: &[f64], stored: impl Fn(f64) -> [u8; N]) {
        bytes.extend(numbers.iter().flat_map(|number| stored(*number)));
    }
    // The product of two f32 is exact in f64, so that it is rounded once, as if it were computed in f32.
    match dtype {
        Dtype::F64 => each(bytes, numbers, |number| (number * factor).to_le_bytes()),
        Dtype::F16 => each(bytes, numbers, |number| {
            to_f16(narrow(number * factor)).to_le_bytes()
        }),
        Dtype::BF16 => each(bytes, numbers, |number| {
            to_bf16(narrow(number * factor)).to_le_bytes()
        }),
        _ => each(bytes, numbers, |number| {
            narrow(number * factor).to_le_bytes()
        }),
    }
}

/// The nearest number that a float of this kind can be.
#[must_use]
pub fn rounded(dtype: Dtype, number: f64) -> f64 {
    let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
    encode(dtype, &[number], 1.0, &mut bytes);
    let _ = decode(dtype, &bytes, &mut numbers);
    numbers.first().copied().unwrap_or(number)
}

/// Appends the number in `bytes`, times 3, in its own kind; integers that are too large wrap around.
pub fn triple(dtype: Dtype, bytes: &[u8], tripled: &mut Vec<u8>) {
    let mut numbers = Vec::new();
    if is_float(dtype) && decode(dtype, bytes, &mut numbers) {
        encode(dtype, &numbers, 3.0, tripled);
    } else {
        let mut number = [0; 8];
        let length = bytes.len().min(number.len());
        number[..length].copy_from_slice(&bytes[..length]);
        let product = u64::from_le_bytes(number).wrapping_mul(3).to_le_bytes();
        tripled.extend(&product[..length]);
    }
}

/// The root of alpha over rank, and of which kind it is.
#[must_use]
pub fn strength(dtype: Dtype, alpha: f64, rank: usize) -> (Dtype, f64) {
    let (dtype, alpha) = if is_float(dtype) {
        (dtype, alpha)
    } else {
        (Dtype::F32, rounded(Dtype::F32, alpha))
    };
    #[expect(clippy::cast_precision_loss, reason = "no rank is that large")]
    let scale = rounded(dtype, alpha / rank as f64);
    (dtype, rounded(dtype, scale.sqrt()))
}

/// What numbers of this kind are multiplied by: narrower ones in `f32`.
#[must_use]
pub fn as_factor(dtype: Dtype, factor: f64) -> f64 {
    if dtype == Dtype::F64 {
        factor
    } else {
        rounded(Dtype::F32, factor)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "this is the rounding")]
fn narrow(number: f64) -> f32 {
    number as f32
}

/// The upper half of an `f32`.
fn to_bf16(number: f32) -> u16 {
    if number.is_nan() {
        return 0x7fc0;
    }
    let bits = number.to_bits();
    upper_half(bits + 0x7fff + (bits >> 16 & 1))
}

fn upper_half(bits: u32) -> u16 {
    let [_, _, low, high] = bits.to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn to_f16(number: f32) -> u16 {
    const INFINITE: u32 = 0x7c00 << 16;
    /// 2⁻¹⁴, the smallest number that is not subnormal.
    const NORMAL: u32 = 0x3880_0000;
    /// 2¹⁶, beyond all that are finite.
    const BEYOND: u32 = 0x4780_0000;
    let sign = number.to_bits() & 0x8000_0000;
    let bits = number.to_bits() & 0x7fff_ffff;
    let half = if number.is_nan() {
        0x7e00 << 16
    } else if bits >= BEYOND {
        INFINITE
    } else if bits < NORMAL {
        // Beside 0.5, an f32 has the steps of subnormal halves: the sum is rounded to them.
        ((f32::from_bits(bits) + 0.5).to_bits() - 0.5_f32.to_bits()) << 16
    } else {
        // The exponent's bias is 15 in the place of 127; 13 bits of the fraction are rounded off.
        (bits - (112 << 23) + 0xfff + (bits >> 13 & 1)) >> 13 << 16
    };
    upper_half(sign | half)
}

fn from_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let bits = u32::from(half & 0x7fff) << 13;
    let magnitude = if half & 0x7c00 == 0x7c00 {
        f32::from_bits(bits | 0x7f80_0000)
    } else {
        // 2¹¹² makes up for the exponent's bias, of subnormal numbers too.
        f32::from_bits(bits) * f32::from_bits((127 + 112) << 23)
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these are exact")]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_what_it_was_after_both_ways() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let (mut numbers, mut again) = (Vec::new(), Vec::new());
            assert!(decode(dtype, &all, &mut numbers));
            encode(dtype, &numbers, 1.0, &mut again);
            for ((number, before), after) in numbers.iter().zip(all.chunks(2)).zip(again.chunks(2))
            {
                assert!(before == after || number.is_nan(), "{dtype:?} {number}");
            }
        }
    }

    #[test]
    fn what_lies_between_two_halves_goes_to_the_nearer_and_to_the_even_one() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let all: Vec<u8> = (0..0x7bff_u16).flat_map(u16::to_le_bytes).collect();
            let mut numbers = Vec::new();
            assert!(decode(dtype, &all, &mut numbers));
            for (at, pair) in numbers.windows(2).enumerate() {
                let [low, high] = [pair[0], pair[1]];
                let middle = f64::midpoint(low, high);
                let even = if at % 2 == 0 { low } else { high };
                assert_eq!(rounded(dtype, middle), even, "{dtype:?} {middle:e}");
                let a_step = (high - low) / 32.0;
                assert_eq!(rounded(dtype, middle - a_step), low, "{dtype:?} {middle:e}");
                assert_eq!(
                    rounded(dtype, -middle - a_step),
                    -high,
                    "{dtype:?} {middle:e}"
                );
            }
        }
    }

    #[test]
    fn halves_end_in_infinity() {
        assert_eq!(rounded(Dtype::F16, 65519.0), 65504.0);
        assert_eq!(rounded(Dtype::F16, 65520.0), f64::INFINITY);
        assert_eq!(rounded(Dtype::F16, -1e30), f64::NEG_INFINITY);
        assert_eq!(rounded(Dtype::BF16, f32::MAX.into()), f64::INFINITY);
        assert!(rounded(Dtype::BF16, f64::NAN).is_nan() && rounded(Dtype::F16, f64::NAN).is_nan());
    }

    #[test]
    fn kinds_are_joined_as_pytorch_joins_them() {
        use Dtype::{BF16, F16, F32, F64, I64};
        for (dtypes, expected) in [
            (vec![BF16, BF16, BF16], Some(BF16)),
            (vec![BF16, F16, BF16], Some(F32)),
            (vec![BF16, F32], Some(F32)),
            (vec![F16, F64, F32], Some(F64)),
            (vec![I64, I64], Some(I64)),
            (vec![I64, F32], None),
        ] {
            assert_eq!(common(&dtypes), expected, "{dtypes:?}");
        }
    }
}
