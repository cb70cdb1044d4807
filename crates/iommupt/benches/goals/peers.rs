//! What is measured, and the crates beside it, set up alike.

use std::cell::RefCell;
use std::sync::Arc;

use ioasis_iommupt::{
    Config, Counted, Format, Iova, Pa, PageTable, Prot, Reader, Run, TableWriter, Writer,
};
use memory_addr::{PhysAddr, VirtAddr};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};

pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);
pub(crate) const PAGE: u64 = 4096;
pub(crate) const LARGE: u64 = 1 << 21;

/// An empty table of ours.
pub(crate) fn ours<F: Format>(page_sizes: u64) -> (Writer<F>, Arc<Reader<F>>) {
    let config = Config { page_sizes, ..Config::new(Arc::new(Counted::default())) };
    PageTable::new(config).expect("an empty table")
}

/// One of ours with `count` leaves of `size` bytes, scattered in the output space.
pub(crate) fn filled<F: Format>(count: u64, size: u64) -> (Writer<F>, Arc<Reader<F>>) {
    let (mut writer, reader) = ours::<F>(u64::MAX);
    for n in 0..count {
        let run = Run { pa: Pa(target(n, count, size)), length: size };
        writer.map(Iova(n * size), &[run], RW).expect("mapped");
    }
    assert!(writer.page_sizes() & size != 0, "the format has this size");
    (writer, reader)
}

/// Where the nth leaf leads: somewhere else than its neighbours.
pub(crate) const fn target(n: u64, count: u64, size: u64) -> u64 {
    (n.wrapping_mul(0x9e37_79b1) % count) * 2 * size
}

/// Page tables of page_table_multiarch without a TLB.
#[derive(Debug)]
pub(crate) struct NoTlb;

impl PagingMetaData for NoTlb {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = VirtAddr;
    fn flush_tlb(_vaddr: Option<VirtAddr>) {}
}

thread_local! {
    static FRAMES: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

#[repr(align(4096))]
struct Frame([u64; 512]);

/// Frames from a pool.
#[derive(Debug)]
pub(crate) struct Pool;

impl PagingHandler for Pool {
    fn alloc_frames(_num: usize, _align: usize) -> Option<PhysAddr> {
        let frame = FRAMES.with_borrow_mut(Vec::pop).unwrap_or_else(|| {
            let frame = Box::leak(Box::new(Frame([0; 512])));
            std::ptr::from_mut(&mut frame.0).expose_provenance()
        });
        Some(PhysAddr::from(frame))
    }

    fn dealloc_frames(paddr: PhysAddr, _num: usize) {
        FRAMES.with_borrow_mut(|frames| frames.push(paddr.as_usize()));
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        VirtAddr::from(paddr.as_usize())
    }
}

/// The peer.
pub(crate) type Multiarch = PageTable64<NoTlb, X64PTE, Pool>;

pub(crate) const FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

/// An empty table of the peer.
pub(crate) fn multiarch() -> Multiarch {
    Multiarch::try_new().expect("an empty table")
}

/// Maps one page in the peer.
#[inline]
pub(crate) fn multiarch_map(table: &mut Multiarch, iova: u64, pa: u64) {
    let (iova, pa) = (VirtAddr::from(iova as usize), PhysAddr::from(pa as usize));
    table.cursor().map(iova, pa, PageSize::Size4K, FLAGS).expect("mapped");
}
