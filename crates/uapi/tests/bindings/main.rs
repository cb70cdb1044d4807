//! Layouts and values against the machine-made bindings of the same headers, where they overlap.
//!
//! `cargo xtask uapi-check` compares everything with the header itself; this needs no C compiler.

mod iommufd;
mod vfio;

/// Asserts that size and field offsets of `ours::X` and `theirs::Y` are equal.
macro_rules! same_layout {
    ($($ours:ident = $theirs:ident { $($field:ident),* };)*) => {$(
        assert_eq!(size_of::<ours::$ours>(), size_of::<theirs::$theirs>(), stringify!($theirs));
        $(assert_eq!(
            std::mem::offset_of!(ours::$ours, $field),
            std::mem::offset_of!(theirs::$theirs, $field),
            "{}.{}", stringify!($theirs), stringify!($field),
        );)*
    )*};
}

/// Asserts that `ours::X` and `theirs::Y` are equal.
macro_rules! same_value {
    ($($ours:ident = $theirs:ident;)*) => {$(
        assert_eq!(u64::from(ours::$ours), u64::from(theirs::$theirs), stringify!($theirs));
    )*};
}

use {same_layout, same_value};
