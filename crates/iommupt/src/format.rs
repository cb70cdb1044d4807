//! What a hardware page table format is: constants and pure functions on words.

use core::fmt::Debug;

use crate::{Field, Prot};
use ioasis_uapi::Result;

/// What a word in a table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped.
    Empty,
    /// The table of the next lower level lies at this address.
    Table(u64),
    /// The word translates by itself.
    Leaf,
}

bitflags::bitflags! {
    /// What the context of a table says of requests: the fields that stand beside its address, in a
    /// PASID table entry, a context descriptor or a process context.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Context: u32 {
        /// Privileged requests may read and write what unprivileged ones may: SUM of a RISC-V
        /// process context, PAN clear in an SMMUv3 context descriptor. x86-64 knows no other way.
        const OPEN = 1 << 0;
        /// Privileged requests, too, do not write what is read-only: WPE of a VT-d PASID table
        /// entry. Only x86-64 knows another way.
        const WRITE_PROTECT = 1 << 1;
        /// The IOMMU sets accessed flags: SADE of a RISC-V process context, HA or AFFD of an SMMUv3
        /// context descriptor. x86-64 knows no other way.
        const ACCESSED = 1 << 2;
        /// The IOMMU sets dirty state: SADE, and HD of an SMMUv3 context descriptor. x86-64 knows
        /// no other way.
        const DIRTY = 1 << 3;
    }
}

/// What a request can ask for; [`Prot::PRIVILEGED`] beside it says who asks.
pub(crate) const RWX: Prot = Prot::READ.union(Prot::WRITE).union(Prot::EXEC);

/// A page table format. Level 0 holds only leaves; the root is at [`TOP_LEVEL`](Self::TOP_LEVEL).
///
/// A leaf may span several items of one table (AMD's page sizes, Arm's contiguous hint, Svnapot):
/// each of them is then a word that tells the whole leaf's address and size, and has dirty state of
/// its own.
pub trait Format: Debug + Send + Sync + 'static {
    /// For people and file names.
    const NAME: &'static str;
    /// lg2 of the bytes that a level 0 item maps.
    const GRANULE_LG2: u32;
    /// lg2 of the items in a table. An item is 8 bytes.
    const ITEMS_LG2: u32;
    /// Level of the root.
    const TOP_LEVEL: u32;
    /// lg2 of the items in the root, where it differs.
    const ROOT_ITEMS_LG2: u32 = Self::ITEMS_LG2;
    /// lg2 of the input addresses, from 0, that this table translates.
    const IOVA_LG2: u32;
    /// Whether an input address repeats its top bit upwards, so that a second half exists at the
    /// very top.
    const SIGN_EXTENDED: bool = false;
    /// lg2 of the output addresses that fit a word.
    const OA_LG2: u32;
    /// Whether the manual demands that a leaf is made invalid before leaves of another size replace
    /// it.
    const BREAK_BEFORE_MAKE: bool = false;

    /// Bit `n` set: a leaf of `1 << n` bytes can stand at `level`.
    fn sizes(level: u32) -> u64;

    /// Classifies `word`, found at `level`.
    fn decode(word: u64, level: u32) -> Entry;

    /// First output address of a leaf, as a multiple of its whole size.
    fn oa(word: u64, level: u32) -> u64;

    /// lg2 of the bytes that a leaf maps.
    #[must_use]
    #[inline]
    fn leaf_lg2(word: u64, level: u32) -> u32 {
        let _ = word;
        Self::item_lg2(level)
    }

    /// The permission and type bits of a leaf.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for what the format cannot say.
    fn attrs(prot: Prot) -> Result<u64>;

    /// The word of an item that maps `oa`, in a leaf of `1 << lg2` bytes with these bits.
    fn leaf(oa: u64, level: u32, lg2: u32, attrs: u64) -> u64;

    /// The `attrs` that would make this leaf again, dirty state included.
    fn attrs_of(word: u64, level: u32) -> u64;

    /// What a leaf grants.
    fn prot(word: u64, level: u32) -> Prot;

    /// A pointer, held at `level`, to a table at `address`. It restricts nothing.
    fn table(address: u64, level: u32) -> u64;

    /// The word of a leaf with what a pointer above it takes away.
    #[must_use]
    #[inline]
    fn under(leaf: u64, pointer: u64) -> u64 {
        let _ = pointer;
        leaf
    }

    /// What of `need` a leaf does not grant; empty lets the request pass. A `need` with
    /// [`Prot::PRIVILEGED`] is that of a privileged request, and [`Prot::PRIVILEGED`] in the answer
    /// says that it would have to be one. Memory types in `need` are not looked at. Formats without
    /// privileges take all requests for the same.
    #[must_use]
    #[inline]
    fn missing(word: u64, level: u32, need: Prot, context: Context) -> Prot {
        let _ = context;
        (need & RWX).difference(Self::prot(word, level))
    }

    /// Whether a request for `need` faults, whatever is granted, because the leaf's accessed or
    /// dirty flag is clear and the IOMMU is not to set it.
    #[must_use]
    #[inline]
    fn is_flagless(word: u64, need: Prot, context: Context) -> bool {
        let _ = (word, need, context);
        false
    }

    /// Whether a present word sets bits that the manual reserves.
    #[must_use]
    #[inline]
    fn reserved(word: u64, level: u32) -> bool {
        let _ = (word, level);
        false
    }

    /// What the manual calls an entry of a table at `level`.
    #[must_use]
    fn entry_name(level: u32) -> &'static str {
        if level == 0 { "leaf entry" } else { "entry" }
    }

    /// The fields of `word`, found at `level`, from bit 0 up.
    #[must_use]
    fn fields(word: u64, level: u32) -> &'static [Field] {
        let _ = (word, level);
        &[]
    }

    /// Whether a leaf was written through.
    fn is_dirty(word: u64) -> bool;

    /// The leaf after a write through it.
    fn make_dirty(word: u64) -> u64;

    /// The leaf before any write through it.
    fn make_clean(word: u64) -> u64;

    /// lg2 of the bytes that an item at `level` maps.
    #[must_use]
    #[inline]
    fn item_lg2(level: u32) -> u32 {
        Self::GRANULE_LG2 + Self::ITEMS_LG2 * level
    }

    /// Where `iova` falls in a table of `level`.
    #[must_use]
    #[inline]
    fn index(iova: u64, level: u32) -> usize {
        let items_lg2 =
            if level == Self::TOP_LEVEL { Self::ROOT_ITEMS_LG2 } else { Self::ITEMS_LG2 };
        #[expect(clippy::cast_possible_truncation, reason = "a table has at most 2^16 items")]
        let slot = ((iova >> Self::item_lg2(level)) & low_bits(items_lg2)) as usize;
        slot
    }
}

/// The lowest `lg2` bits; all of them from 64 on.
#[must_use]
#[inline]
pub(crate) const fn low_bits(lg2: u32) -> u64 {
    if lg2 >= 64 { u64::MAX } else { (1 << lg2) - 1 }
}

/// The bits from `first` to `last`, both included.
#[must_use]
#[inline]
pub(crate) const fn bits(last: u32, first: u32) -> u64 {
    low_bits(last + 1) & !low_bits(first)
}

/// Every leaf size of `F`, whatever its level.
#[must_use]
pub(crate) fn all_sizes<F: Format>() -> u64 {
    (0..=F::TOP_LEVEL).map(F::sizes).fold(0, |all, sizes| all | sizes)
}
