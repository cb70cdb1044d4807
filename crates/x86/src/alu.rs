//! Arithmetic and logic on numbers of 1, 2, 4 or 8 bytes, with the flags they leave (Intel SDM 1,
//! 3.4.3.1).
//!
//! A flag that the manual leaves undefined is left as it was.

use crate::state::{mask, sign_extended};

pub(crate) const CARRY: u64 = 1;
pub(crate) const PARITY: u64 = 1 << 2;
pub(crate) const ADJUST: u64 = 1 << 4;
pub(crate) const ZERO: u64 = 1 << 6;
pub(crate) const SIGN: u64 = 1 << 7;
pub(crate) const DIRECTION: u64 = 1 << 10;
pub(crate) const OVERFLOW: u64 = 1 << 11;
/// The flags that arithmetic sets.
pub(crate) const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;

/// A result, and the flags in `which`.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) value: u64,
    pub(crate) flags: u64,
    pub(crate) which: u64,
}

fn flag(which: u64, is_set: bool) -> u64 {
    if is_set { which } else { 0 }
}

fn lower(value: u128, width: usize) -> u64 {
    u64::try_from(value & u128::from(mask(width))).expect("a mask of 8 bytes at most")
}

pub(crate) fn top(value: u64, width: usize) -> bool {
    value >> (width * 8 - 1) & 1 != 0
}

/// The flags that say something of the result alone.
pub(crate) fn of_result(value: u64, width: usize) -> u64 {
    let value = value & mask(width);
    let even = (value & 0xff).count_ones().is_multiple_of(2);
    flag(ZERO, value == 0) | flag(SIGN, top(value, width)) | flag(PARITY, even)
}

const OF_RESULT: u64 = ZERO | SIGN | PARITY;

pub(crate) fn add(left: u64, right: u64, carry: bool, width: usize) -> Outcome {
    let sum = u128::from(left) + u128::from(right) + u128::from(carry);
    let value = lower(sum, width);
    let overflow = top((left ^ value) & (right ^ value), width);
    let flags = of_result(value, width)
        | flag(CARRY, sum > u128::from(mask(width)))
        | flag(ADJUST, (left ^ right ^ value) & 0x10 != 0)
        | flag(OVERFLOW, overflow);
    Outcome { value, flags, which: STATUS }
}

pub(crate) fn subtract(left: u64, right: u64, borrow: bool, width: usize) -> Outcome {
    let value = left.wrapping_sub(right).wrapping_sub(u64::from(borrow)) & mask(width);
    let overflow = top((left ^ right) & (left ^ value), width);
    let flags = of_result(value, width)
        | flag(CARRY, u128::from(left) < u128::from(right) + u128::from(borrow))
        | flag(ADJUST, (left ^ right ^ value) & 0x10 != 0)
        | flag(OVERFLOW, overflow);
    Outcome { value, flags, which: STATUS }
}

/// The flags of AND, OR, XOR and TEST.
pub(crate) fn logic(value: u64, width: usize) -> Outcome {
    Outcome { value, flags: of_result(value, width), which: STATUS & !ADJUST }
}

/// A shift or rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    Right,
    Arithmetic,
    RotateLeft,
    RotateRight,
    CarryLeft,
    CarryRight,
}

/// `value` shifted by the count that the instruction has, of which 5 bits count, or 6 for 8 bytes.
pub(crate) fn shift(kind: Shift, value: u64, count: u64, width: usize, carry: bool) -> Outcome {
    let bits = (width * 8) as u64;
    let count = count & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return Outcome { value, flags: 0, which: 0 };
    }
    let wide = u128::from(value);
    let signed = sign_extended(value, width).cast_signed();
    let (result, out) = match kind {
        Shift::Left => {
            let shifted = wide << count;
            (shifted, shifted >> bits & 1 != 0)
        }
        Shift::Right => (wide >> count, wide >> (count - 1) & 1 != 0),
        Shift::Arithmetic => {
            let below = count.min(63);
            let result = (signed >> below).cast_unsigned();
            (u128::from(result), signed >> (count - 1).min(63) & 1 != 0)
        }
        Shift::RotateLeft => {
            let by = count % bits;
            let result = wide << by | wide >> (bits - by);
            (result, result & 1 != 0)
        }
        Shift::RotateRight => {
            let by = count % bits;
            let result = wide >> by | wide << (bits - by);
            (result, result >> (bits - 1) & 1 != 0)
        }
        Shift::CarryLeft | Shift::CarryRight => {
            through_carry(kind == Shift::CarryLeft, wide | u128::from(carry) << bits, count, bits)
        }
    };
    let result = lower(result, width);
    let sign = top(result, width);
    let overflow = match kind {
        Shift::Left | Shift::RotateLeft | Shift::CarryLeft => sign ^ out,
        Shift::Right => top(value, width),
        Shift::Arithmetic => false,
        Shift::RotateRight | Shift::CarryRight => sign ^ top(result << 1, width),
    };
    let shifts = matches!(kind, Shift::Left | Shift::Right | Shift::Arithmetic);
    let of_result_too = if shifts { OF_RESULT } else { 0 };
    let overflow_too = if count == 1 { OVERFLOW } else { 0 };
    Outcome {
        value: result,
        flags: of_result(result, width) | flag(CARRY, out) | flag(OVERFLOW, overflow),
        which: CARRY | of_result_too | overflow_too,
    }
}

/// Rotates `bits` + 1 bits, of which the highest is the carry.
fn through_carry(left: bool, value: u128, count: u64, bits: u64) -> (u128, bool) {
    let all = bits + 1;
    let by = count % all;
    let by = if left { by } else { (all - by) % all };
    // A 65-bit value shifted by up to 64 needs 129 bits, whose highest is cut off by the mask below
    // anyway.
    let everything = (1_u128 << all) - 1;
    let result = (value << by | value >> (all - by)) & everything;
    (result, result >> bits & 1 != 0)
}

/// SHLD and SHRD: `value` shifted, filled up from `fill`.
pub(crate) fn double_shift(left: bool, value: u64, fill: u64, count: u64, width: usize) -> Outcome {
    let bits = (width * 8) as u64;
    let count = count & if width == 8 { 63 } else { 31 };
    if count == 0 {
        return Outcome { value, flags: 0, which: 0 };
    }
    let (result, out) = if left {
        let both = u128::from(value) << bits | u128::from(fill);
        (both << count >> bits, both >> (2 * bits).saturating_sub(count) & 1 != 0)
    } else {
        let both = u128::from(fill) << bits | u128::from(value);
        (both >> count, both >> (count - 1) & 1 != 0)
    };
    let result = lower(result, width);
    let overflow = top(result ^ value, width);
    Outcome {
        value: result,
        flags: of_result(result, width) | flag(CARRY, out) | flag(OVERFLOW, overflow),
        which: CARRY | OF_RESULT | if count == 1 { OVERFLOW } else { 0 },
    }
}

/// The product of two numbers with their signs: its lower half, its upper half, and whether the
/// upper one says something.
pub(crate) fn multiply_signed(left: u64, right: u64, width: usize) -> (u64, u64, bool) {
    let extended = |value| i128::from(sign_extended(value, width).cast_signed());
    let product = extended(left) * extended(right);
    let low = lower(product.cast_unsigned(), width);
    let high = lower((product >> (width * 8)).cast_unsigned(), width);
    (low, high, product != extended(low))
}

/// The product of two numbers without signs.
pub(crate) fn multiply(left: u64, right: u64, width: usize) -> (u64, u64, bool) {
    let product = u128::from(left) * u128::from(right);
    let low = lower(product, width);
    let high = lower(product >> (width * 8), width);
    (low, high, high != 0)
}

/// What a product leaves.
pub(crate) fn of_product(says_something: bool) -> u64 {
    flag(CARRY | OVERFLOW, says_something)
}
