//! How an ioctl's argument is laid out, and how bytes become values by it.

use super::value::Value;

/// Names of bits or of constants.
pub(super) type Names = &'static [(u64, &'static str)];

/// How a field is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Show {
    Dec,
    Signed,
    Hex,
    Flags(Names),
    Choice(Names),
    /// 64-bit words in hexadecimal.
    Words,
    /// Only when it is not zero, as it ought to be.
    Reserved,
}

/// Who writes a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
    InOut,
}

/// One field of a struct.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) at: usize,
    pub(super) size: usize,
    pub(super) way: Way,
    pub(super) show: Show,
}

/// The size of what `member` leads to.
pub(super) const fn size_of_member<S, M>(_member: fn(&S) -> &M) -> usize {
    size_of::<M>()
}

/// The fields of a struct of `uapi`, in its order: `fields!(IoasAlloc { size: In Dec, .. })`.
macro_rules! fields {
    ($of:ty { $($member:ident: $way:ident $show:expr),* $(,)? }) => {
        &[$($crate::trace::layout::Field {
            name: stringify!($member),
            at: core::mem::offset_of!($of, $member),
            size: $crate::trace::layout::size_of_member(|of: &$of| &of.$member),
            way: $crate::trace::layout::Way::$way,
            show: $show,
        }),*]
    };
}
pub(super) use fields;

/// The little-endian number of `size` bytes at `at`; `None` where `bytes` ends before it does.
pub(super) fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let mut word = [0; 8];
    word.get_mut(..size)?.copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
    Some(u64::from_le_bytes(word))
}

/// A 32-bit word.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at, 4).and_then(|number| u32::try_from(number).ok())
}

/// The argument of a call, before it and after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument<'a> {
    pub(super) before: &'a [u8],
    pub(super) after: &'a [u8],
    /// Whether the call succeeded, so that what it writes is there.
    pub(super) good: bool,
}

/// Shows the fields that lie within the argument, leaving out what is not written and reserved zeros.
pub(super) fn show(fields: &'static [Field], argument: Argument<'_>) -> Vec<(&'static str, Value)> {
    let mut shown = Vec::new();
    for field in fields {
        let before = value(field, argument.before);
        let after = value(field, argument.after);
        let value = match field.way {
            Way::In => before,
            Way::Out if argument.good => after,
            Way::Out => None,
            Way::InOut => match (before, after) {
                (Some(before), Some(after)) if before != after => {
                    Some(Value::Change(Box::new(before), Box::new(after)))
                }
                (before, _) => before,
            },
        };
        shown.extend(value.map(|value| (field.name.trim_end_matches('_'), value)));
    }
    shown
}

fn value(field: &Field, bytes: &[u8]) -> Option<Value> {
    let raw = bytes.get(field.at..field.at + field.size)?;
    let number = || number(raw, 0, field.size);
    Some(match field.show {
        Show::Dec => Value::Dec(number()?),
        Show::Hex => Value::Hex(number()?),
        Show::Signed => Value::Int(signed(number()?, field.size)),
        Show::Flags(names) => flags(number()?, names),
        Show::Choice(names) => choice(number()?, names),
        Show::Words => words(raw),
        Show::Reserved => {
            if raw.iter().all(|&byte| byte == 0) {
                return None;
            }
            number().map_or_else(|| words(raw), Value::Hex)
        }
    })
}

/// Sign-extends a number of `size` bytes.
fn signed(number: u64, size: usize) -> i64 {
    let shift = 64 - 8 * size;
    (number << shift).cast_signed() >> shift
}

/// 64-bit words in hexadecimal.
pub(super) fn words(raw: &[u8]) -> Value {
    let words = raw.chunks(8).map(|chunk| number(chunk, 0, chunk.len()).map_or(0, |word| word));
    Value::List(words.map(Value::Hex).collect(), false)
}

/// The names of the bits of `number`.
pub(super) fn flags(number: u64, names: Names) -> Value {
    let mut rest = number;
    let mut set = Vec::new();
    for &(bit, name) in names {
        if bit != 0 && number & bit == bit {
            set.push(name);
            rest &= !bit;
        }
    }
    Value::Flags(set, rest)
}

/// The name of `number`, or the number.
pub(super) fn choice(number: u64, names: Names) -> Value {
    names
        .iter()
        .find(|(value, _)| *value == number)
        .map_or(Value::Dec(number), |&(_, name)| Value::Name(name))
}
