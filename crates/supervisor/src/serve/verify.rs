//! What the kernel checks before it calls a driver's read, write or mmap: `fs/read_write.c`, `lib/iov_iter.c` and `mm/mmap.c`
//! of Linux. The driver's own checks come after these, in `ioasis_vfio`.

use std::sync::OnceLock;

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::OFlags;

use super::client::Caller;
use super::regions::Wanted;
use crate::trace::Way;

/// Longest read or write (`MAX_RW_COUNT`, linux/fs.h).
pub(super) const MAX_RW_COUNT: u64 = 0x7fff_f000;
/// Most pieces of a vectored call (`UIO_MAXIOV`, linux/uio.h).
const MAX_PIECES: u64 = 1024;
/// The only flag of preadv2 and pwritev2 that a driver without `read_iter` takes (`do_loop_readv_writev`).
const RWF_HIPRI: u32 = 1;

const PAGE: u64 = 4096;
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
/// linux/mman.h and asm-generic/mman-common.h.
const MAP_TYPE: u32 = 0xf;
const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_SHARED_VALIDATE: u32 = 3;
const MAP_HUGETLB: u32 = 0x4_0000;
/// `LEGACY_MAP_MASK`: what MAP_SHARED_VALIDATE takes on a file without MAP_SYNC.
const LEGACY_FLAGS: u32 = 0x7_f9f3 | 21 << 26 | 30 << 26;

/// Which way an open file may be used: the access mode of its open (`OPEN_FMODE`, linux/fs.h), which all its duplicates
/// share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    reads: bool,
    writes: bool,
}

impl Mode {
    pub(super) fn of(flags: OFlags) -> Self {
        // Access mode 3 is neither.
        let access = flags & OFlags::ACCMODE;
        Self {
            reads: access == OFlags::RDONLY || access == OFlags::RDWR,
            writes: access == OFlags::WRONLY || access == OFlags::RDWR,
        }
    }

    /// # Errors
    ///
    /// `EBADF` (`vfs_read`, `vfs_write`, fs/read_write.c).
    pub(super) fn admit(self, way: Way) -> Result<()> {
        match way {
            Way::Read if !self.reads => Err(Error::new(Errno::EBADF, "not open for reading")),
            Way::Write if !self.writes => Err(Error::new(Errno::EBADF, "not open for writing")),
            Way::Read | Way::Write => Ok(()),
        }
    }
}

/// The last byte of a program's address space, and one more (`USER_PTR_MAX`, arch/x86/kernel/cpu/common.c).
fn user_end() -> u64 {
    static END: OnceLock<u64> = OnceLock::new();
    *END.get_or_init(|| {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        // The kernel takes the flag away where it does not use five levels.
        let bits = if flags.split_ascii_whitespace().any(|flag| flag == "la57") { 56 } else { 47 };
        (1 << bits) - PAGE
    })
}

/// `access_ok`: whether a stretch of memory can be a program's at all.
///
/// # Errors
///
/// `EFAULT`.
pub(super) fn access_ok(address: u64, length: u64) -> Result<()> {
    match address.checked_add(length) {
        Some(end) if end <= user_end() => Ok(()),
        _ => Err(Error::at(Errno::EFAULT, "not an address of a program's", address)),
    }
}

/// `rw_verify_area`: whether a stretch of a file with signed offsets can be.
///
/// # Errors
///
/// `EINVAL`.
fn area_ok(offset: u64, length: u64) -> Result<()> {
    let is_positive = |number: u64| number.cast_signed() >= 0;
    if is_positive(length) && is_positive(offset) && is_positive(offset.wrapping_add(length)) {
        return Ok(());
    }
    Err(Error::at(Errno::EINVAL, "length or offset is negative", length))
}

/// The bytes that a read or write of one piece moves at most (`vfs_read`, `vfs_write`).
///
/// # Errors
///
/// `EFAULT`, `EINVAL`.
pub(super) fn one(address: u64, length: u64, offset: u64) -> Result<u64> {
    access_ok(address, length)?;
    area_ok(offset, length)?;
    Ok(length.min(MAX_RW_COUNT))
}

/// How long a `struct iovec` is, and each of its two fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Of a program with 64-bit pointers.
    Long,
    /// Of one with 32-bit pointers (`struct compat_iovec`).
    Compat,
}

impl Words {
    const fn size(self) -> usize {
        match self {
            Self::Long => 8,
            Self::Compat => 4,
        }
    }

    fn read(self, bytes: &[u8]) -> u64 {
        let mut word = [0; 8];
        word[..self.size()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }

    /// A length as the kernel's `ssize_t` or `compat_ssize_t` has it.
    fn is_negative(self, length: u64) -> bool {
        length >> (8 * self.size() - 1) != 0
    }
}

/// Address and length of each `struct iovec`, all together no more than one call moves (`import_iovec`).
///
/// # Errors
///
/// `EINVAL`, `EFAULT`.
pub(super) fn pieces(
    caller: &Caller<'_>,
    vector: u64,
    count: u64,
    words: Words,
) -> Result<Vec<(u64, u64)>> {
    if count > MAX_PIECES {
        return Err(Error::at(Errno::EINVAL, "too many pieces", count));
    }
    let size = words.size();
    let mut bytes = vec![0; usize::try_from(count).expect("at most 1024") * 2 * size];
    let readable = caller.task.thread.read_prefix(vector, &mut bytes)?;
    import(&bytes, readable, words)
}

/// The same of bytes of which only the first `readable` could be read: what is wrong with an earlier piece is told
/// before (`copy_iovec_from_user`).
fn import(bytes: &[u8], readable: usize, words: Words) -> Result<Vec<(u64, u64)>> {
    let size = words.size();
    let mut pieces = Vec::with_capacity(bytes.len() / (2 * size));
    for (nth, piece) in bytes.chunks_exact(2 * size).enumerate() {
        if (nth + 1) * 2 * size > readable {
            return Err(Error::new(Errno::EFAULT, "a piece cannot be read"));
        }
        let (address, length) = (words.read(&piece[..size]), words.read(&piece[size..]));
        if words.is_negative(length) {
            return Err(Error::at(Errno::EINVAL, "the length of a piece is negative", length));
        }
        pieces.push((address, length));
    }
    // A single piece is cut before it is looked at (`import_ubuf`), several are after.
    let is_single = pieces.len() == 1;
    let mut left = MAX_RW_COUNT;
    for (address, length) in &mut pieces {
        if is_single {
            *length = (*length).min(left);
        }
        access_ok(*address, *length)?;
        *length = (*length).min(left);
        left -= *length;
    }
    Ok(pieces)
}

/// The bytes of all `pieces`, which begin at `offset` of the file, on a file whose driver has neither `read_iter` nor
/// `write_iter` (`vfs_readv`, `do_loop_readv_writev`).
///
/// # Errors
///
/// `EINVAL`, `EOPNOTSUPP`.
pub(super) fn several(pieces: &[(u64, u64)], offset: u64, flags: u32) -> Result<u64> {
    let total = pieces.iter().map(|piece| piece.1).sum();
    if total == 0 {
        return Ok(0);
    }
    area_ok(offset, total)?;
    if flags & !RWF_HIPRI != 0 {
        return Err(Error::at(Errno::EOPNOTSUPP, "flags need a read_iter", flags.into()));
    }
    Ok(total)
}

/// Whether a file has mmap at all, and whether it may hold code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maps {
    /// It has none.
    No,
    /// It has, by the file system of its node.
    Yes,
    /// It has, and is an anonymous inode, of which nothing is executed (`SB_I_NOEXEC`, `init_pseudo`, fs/libfs.c).
    NoCode,
}

/// What a mapping of a file is to be, once its arguments are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shares {
    /// `VM_SHARED`.
    Yes,
    /// Private, or shared by a descriptor that cannot write.
    No,
}

/// Checks the arguments of an mmap (`ksys_mmap_pgoff`, `do_mmap`).
///
/// # Errors
///
/// `EINVAL`, `ENOMEM`, `EOVERFLOW`, `EOPNOTSUPP`, `EACCES`, `EPERM`, `ENODEV`.
pub(super) fn mmap(wanted: Wanted, mode: Mode, maps: Maps) -> Result<Shares> {
    let Wanted { offset, length, protection, flags } = wanted;
    let refused = |errno, why, at| Err(Error::at(errno, why, at));
    if !offset.is_multiple_of(PAGE) {
        return refused(Errno::EINVAL, "the offset is inside a page", offset);
    }
    if flags & MAP_HUGETLB != 0 {
        return refused(Errno::EINVAL, "not a file of huge pages", flags.into());
    }
    if length == 0 {
        return refused(Errno::EINVAL, "the length is zero", length);
    }
    let Some(pages) = length.checked_next_multiple_of(PAGE).filter(|&end| end <= user_end()) else {
        return refused(Errno::ENOMEM, "longer than an address space", length);
    };
    if offset.checked_add(pages).is_none() {
        return refused(Errno::EOVERFLOW, "the range wraps", offset);
    }
    let kind = flags & MAP_TYPE;
    match kind {
        MAP_SHARED_VALIDATE if flags & !LEGACY_FLAGS != 0 => {
            return refused(Errno::EOPNOTSUPP, "unknown flags", flags.into());
        }
        MAP_SHARED | MAP_SHARED_VALIDATE if protection & PROT_WRITE != 0 && !mode.writes => {
            return refused(Errno::EACCES, "not open for writing", protection);
        }
        MAP_SHARED | MAP_SHARED_VALIDATE | MAP_PRIVATE => {}
        _ => return refused(Errno::EINVAL, "neither shared nor private", flags.into()),
    }
    if !mode.reads {
        return refused(Errno::EACCES, "not open for reading", protection);
    }
    if maps == Maps::NoCode && protection & PROT_EXEC != 0 {
        return refused(Errno::EPERM, "an anonymous file holds no code", protection);
    }
    if maps == Maps::No {
        return refused(Errno::ENODEV, "the file has no mmap", offset);
    }
    Ok(if kind != MAP_PRIVATE && mode.writes { Shares::Yes } else { Shares::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Mode = Mode { reads: true, writes: true };

    fn bytes(pieces: &[(u64, u64)]) -> Vec<u8> {
        pieces
            .iter()
            .flat_map(|&(at, length)| [at.to_le_bytes(), length.to_le_bytes()])
            .flatten()
            .collect()
    }

    fn imported(pieces: &[(u64, u64)]) -> std::result::Result<Vec<(u64, u64)>, Errno> {
        let bytes = bytes(pieces);
        import(&bytes, bytes.len(), Words::Long).map_err(|error| error.errno)
    }

    #[test]
    fn an_access_mode_of_three_allows_neither_way() {
        let mode = |flags| Mode::of(OFlags::from_bits_retain(flags));
        for (flags, reads, writes) in
            [(0, true, false), (1, false, true), (2, true, true), (3, false, false)]
        {
            let mode = mode(flags | 0o2000);
            assert_eq!(
                (mode.admit(Way::Read).is_ok(), mode.admit(Way::Write).is_ok()),
                (reads, writes)
            );
        }
    }

    #[test]
    fn all_pieces_together_are_no_longer_than_one_call() {
        let half = MAX_RW_COUNT / 2 + 1;
        assert_eq!(
            imported(&[(0x1000, half), (0x2000, half), (0x3000, 9)]),
            Ok(vec![(0x1000, half), (0x2000, MAX_RW_COUNT - half), (0x3000, 0)])
        );
        assert_eq!(imported(&[(0x1000, MAX_RW_COUNT + 9)]), Ok(vec![(0x1000, MAX_RW_COUNT)]));
    }

    #[test]
    fn one_piece_is_cut_before_its_address_is_looked_at() {
        let at = user_end() - MAX_RW_COUNT;
        assert_eq!(imported(&[(at, MAX_RW_COUNT + 1)]), Ok(vec![(at, MAX_RW_COUNT)]));
        assert_eq!(imported(&[(at, MAX_RW_COUNT + 1), (at, 0)]), Err(Errno::EFAULT));
    }

    #[test]
    fn a_negative_length_is_told_before_an_address_that_can_be_nobodys() {
        assert_eq!(imported(&[(u64::MAX, 1), (0, u64::MAX)]), Err(Errno::EINVAL));
        assert_eq!(imported(&[(u64::MAX, 1), (0, 1)]), Err(Errno::EFAULT));
        let cut = bytes(&[(0, 1), (0, u64::MAX)]);
        let of_prefix = |readable| import(&cut, readable, Words::Long).map_err(|error| error.errno);
        assert_eq!(of_prefix(31), Err(Errno::EFAULT));
        assert_eq!(of_prefix(32), Err(Errno::EINVAL));
        let compat = [0, 0x10, 0, 0, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(import(&compat, 8, Words::Compat).unwrap(), [(0x1000, MAX_RW_COUNT)]);
        let negative = [0, 0x10, 0, 0, 0, 0, 0, 0x80];
        assert_eq!(import(&negative, 8, Words::Compat).unwrap_err().errno, Errno::EINVAL);
    }

    #[test]
    fn flags_of_a_vectored_call_count_only_where_bytes_move() {
        let answer = |length, flags| several(&[(0, length)], 0, flags).map_err(|error| error.errno);
        assert_eq!(answer(0, 8), Ok(0));
        assert_eq!(answer(3, RWF_HIPRI), Ok(3));
        assert_eq!(answer(3, RWF_HIPRI | 2), Err(Errno::EOPNOTSUPP));
        let past = several(&[(0, 2)], i64::MAX as u64, 8);
        assert_eq!(past.unwrap_err().errno, Errno::EINVAL, "the place is looked at first");
    }

    #[test]
    fn the_arguments_of_a_mapping_are_checked_in_the_kernels_order() {
        let wanted = Wanted { offset: 0, length: PAGE, protection: PROT_WRITE, flags: MAP_SHARED };
        let reads = Mode { writes: false, ..BOTH };
        let none = Mode { reads: false, writes: false };
        for (wanted, mode, maps, answer) in [
            (wanted, BOTH, Maps::Yes, Ok(Shares::Yes)),
            (Wanted { flags: MAP_PRIVATE, ..wanted }, BOTH, Maps::Yes, Ok(Shares::No)),
            (Wanted { protection: 1, ..wanted }, reads, Maps::Yes, Ok(Shares::No)),
            (wanted, reads, Maps::No, Err(Errno::EACCES)),
            (Wanted { flags: MAP_PRIVATE, ..wanted }, none, Maps::No, Err(Errno::EACCES)),
            (Wanted { length: 0, ..wanted }, none, Maps::No, Err(Errno::EINVAL)),
            (Wanted { length: 0, offset: 1, ..wanted }, BOTH, Maps::Yes, Err(Errno::EINVAL)),
            (Wanted { length: u64::MAX, ..wanted }, none, Maps::No, Err(Errno::ENOMEM)),
            (wanted, BOTH, Maps::No, Err(Errno::ENODEV)),
            (Wanted { protection: PROT_EXEC, ..wanted }, BOTH, Maps::NoCode, Err(Errno::EPERM)),
            (Wanted { protection: PROT_EXEC, ..wanted }, BOTH, Maps::Yes, Ok(Shares::Yes)),
            (Wanted { flags: MAP_TYPE, ..wanted }, BOTH, Maps::No, Err(Errno::EINVAL)),
        ] {
            let given = mmap(wanted, mode, maps).map_err(|error| error.errno);
            assert_eq!(given, answer, "{wanted:?} {mode:?} {maps:?}");
        }
    }
}
