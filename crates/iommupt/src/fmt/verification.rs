//! Kani harnesses: what the tests try on random words, for all of them (`cargo kani -p
//! ioasis-iommupt`).

use super::round_trip::round_trip;
use crate::every::for_every_format;
use crate::format::Format;
use crate::{Iova, IovaRange};

/// Any word at any level: no panic, no overflow, and what it says can be said again.
fn any_word<F: Format>() {
    let level: u32 = kani::any();
    kani::assume(level <= F::TOP_LEVEL);
    round_trip::<F>(kani::any(), level);
}

/// Any address falls on an item that the table has.
fn any_address<F: Format>() {
    let level: u32 = kani::any();
    kani::assume(level <= F::TOP_LEVEL);
    let items_lg2 = if level == F::TOP_LEVEL { F::ROOT_ITEMS_LG2 } else { F::ITEMS_LG2 };
    assert!(F::index(kani::any(), level) < 1 << items_lg2);
}

macro_rules! harnesses {
    ($($name:ident: $format:ty;)*) => {$(
        mod $name {
            #[kani::proof]
            fn any_word_is_said_again() {
                super::any_word::<$format>();
            }

            #[kani::proof]
            fn any_address_has_an_item() {
                super::any_address::<$format>();
            }
        }
    )*};
}

for_every_format!(harnesses);

#[kani::proof]
fn a_range_is_made_or_refused_without_overflow() {
    let (start, length): (u64, u64) = (kani::any(), kani::any());
    if let Ok(range) = IovaRange::new(Iova(start), length) {
        assert!(range.start() <= range.last() && range.span() == length - 1);
        let other = IovaRange::closed(Iova(kani::any()), Iova(kani::any()));
        if let Some(shared) = other.ok().and_then(|other| range.intersect(other)) {
            assert!(range.contains(shared));
        }
    }
}
