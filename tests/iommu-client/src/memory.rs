//! Memory of the program that devices reach: private, in pages that stay where they are.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// Bytes.
pub(crate) const LENGTH: usize = 0x4_0000;
/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

#[repr(align(4096))]
struct Pages([AtomicU8; LENGTH]);

static PAGES: Pages = Pages([const { AtomicU8::new(0) }; LENGTH]);

/// Where it lies in the program.
pub(crate) fn address() -> u64 {
    PAGES.0.as_ptr().addr() as u64
}

/// Fills the page at `offset` with `byte`.
pub(crate) fn fill(offset: usize, byte: u8) {
    PAGES.0[offset..offset + PAGE].iter().for_each(|place| place.store(byte, Ordering::Release));
}

/// The byte at `offset`.
pub(crate) fn byte(offset: usize) -> u8 {
    PAGES.0[offset].load(Ordering::Acquire)
}

/// Stores a little-endian word at `offset`.
pub(crate) fn word(offset: u64, word: u64) {
    let at = usize::try_from(offset).expect("an offset in memory");
    for (place, byte) in PAGES.0[at..].iter().zip(word.to_le_bytes()) {
        place.store(byte, Ordering::Release);
    }
}

/// A page that can go away, by its address.
#[expect(unsafe_code, reason = "mmap is")]
pub(crate) fn losable() -> io::Result<u64> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a place where nothing is.
    let at =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE, prot, MapFlags::PRIVATE) }?;
    Ok(at.addr() as u64)
}

/// Takes the page away that [`losable`] made at `address`.
#[expect(unsafe_code, reason = "munmap is")]
pub(crate) fn lose(address: u64) {
    let at = usize::try_from(address).expect("an address");
    // SAFETY: the page was mapped by losable, and nothing of ours points into it.
    unsafe { rustix::mm::munmap(std::ptr::without_provenance_mut(at), PAGE) }.expect("it is there");
}
