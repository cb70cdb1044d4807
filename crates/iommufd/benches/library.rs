//! Goals P11 (library) and P14: what one call of the library costs.
//!
//! P11 is time, beside one bare system call (FIONREAD on a pipe) in the same run, in turns, the
//! median of nine. P14 is instructions, counted by callgrind where it is installed: this program
//! runs itself under it twice and takes the difference. The memory is local: nothing is pinned in
//! another process. The line with `#` says what it costs a transfer of 64 bytes that its memory may
//! keep it waiting.

#[path = "callgrind/mod.rs"]
mod callgrind;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use callgrind::{asked, instructions, line};
use ioasis_iommufd::{
    AccessHandle, AccessKind, Account, AddressSpace, Backing, Bound, Context, CopyRequest, Dirty,
    Endpoint, EndpointConfig, Extent, Extents, Group, HwptFlags, Iommu, IommuKind, Iova, IovaRange,
    Kind, Machine, MapRequest, Memory, Piece, Place, Prot, Segment,
};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const ACCOUNT: Account = Account {
    pid: 1,
    uid: 1,
    memlock_pages: None,
    ipc_lock: false,
    sys_resource: false,
    sys_rawio: false,
};
const ROUNDS: usize = 9;
/// Bytes an access reads.
const ACCESS: usize = 64 << 10;

/// One IOAS, a device attached or not, and 1 GiB to map.
struct Rig {
    context: Arc<Context>,
    ioas: u32,
    hwpt: u32,
    memory: Arc<Memory>,
    bound: Bound,
    access: AccessHandle,
}

impl Rig {
    fn new(attach: bool) -> Self {
        let machine = Machine::new();
        let context = Context::new(&machine);
        let ioas = context.alloc_ioas().expect("an IOAS");
        let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
        let config = EndpointConfig {
            name: "0000:01:00.0".into(),
            requester_id: 0x100,
            reserved: iommu.reserved(),
            ..EndpointConfig::default()
        };
        let group = Group::new(&machine, &iommu, 0);
        let bound = context.bind(&Endpoint::new(&group, config)).expect("bound");
        let mut hwpt = 0;
        if attach {
            hwpt =
                context.alloc_hwpt(ioas, &bound, HwptFlags::DIRTY_TRACKING).expect("a page table");
            bound.attach(hwpt).expect("attached");
        }
        let access = context.create_access(AccessKind::ReadWrite).expect("an access");
        access.attach(ioas).expect("attached");
        let memory =
            Arc::new(Memory::new(0, usize::try_from(GIB).expect("64 bits")).expect("memory"));
        Self { context, ioas, hwpt, memory, bound, access }
    }

    fn map(&self, iova: u64, address: u64, length: u64) {
        self.map_of(Arc::clone(&self.memory) as _, iova, address, length);
    }

    fn map_of(&self, space: Arc<dyn AddressSpace>, iova: u64, address: u64, length: u64) {
        let request = MapRequest {
            space,
            address,
            length,
            place: Place::Fixed(Iova(iova)),
            prot: RW,
            account: ACCOUNT,
        };
        self.context.map(self.ioas, black_box(request)).expect("mapped");
    }

    fn unmap(&self, iova: u64, length: u64) {
        let range = IovaRange::new(Iova(iova), length).expect("a range");
        self.context
            .unmap(self.ioas, black_box(range), 1)
            .expect("an IOAS")
            .result
            .expect("unmapped");
    }
}

/// What is counted, `times` over.
fn counted(name: &str, times: u64) {
    let rig = Rig::new(true);
    let place = |n: u64| GIB * 4 + n * PAGE;
    match name {
        "maps" => (0..times).for_each(|n| rig.map(place(n), (n % 1000) * PAGE, PAGE)),
        "maps_unmaps" => {
            (0..times).for_each(|n| rig.map(place(n), (n % 1000) * PAGE, PAGE));
            (0..times).for_each(|n| rig.unmap(place(n), PAGE));
        }
        "maps_unmap_all" => {
            (0..times).for_each(|n| rig.map(place(n), (n % 1000) * PAGE, PAGE));
            rig.unmap(GIB * 4, times * PAGE);
        }
        "map_unmap" => (0..times).for_each(|_| {
            rig.map(GIB * 4, 0, PAGE);
            rig.unmap(GIB * 4, PAGE);
        }),
        "map_unmap_gib" => (0..times).for_each(|_| {
            rig.map(GIB * 4, 0, GIB);
            rig.unmap(GIB * 4, GIB);
        }),
        "copies" => {
            rig.map(GIB * 2, 0, GIB);
            for n in 0..times {
                let range =
                    IovaRange::new(Iova(GIB * 2 + (n % 1000) * PAGE), PAGE).expect("a range");
                let place = Place::Fixed(Iova(place(n)));
                let request = CopyRequest { source: rig.ioas, range, place, prot: RW };
                rig.context.copy(rig.ioas, black_box(request)).expect("copied");
            }
        }
        "dirty" => {
            // As 4 KiB leaves.
            (0..64 << 8).for_each(|n| rig.map(place(n), (n % 1000) * PAGE, PAGE));
            let range = IovaRange::new(Iova(place(0)), 64 << 20).expect("a range");
            for _ in 0..times {
                let mut ranges = 0_u64;
                let count = &mut |_| ranges += 1;
                rig.context
                    .read_dirty(rig.hwpt, black_box(range), Dirty::Clear, count)
                    .expect("read");
                assert_eq!(ranges, 0);
            }
        }
        "access" | "access_half" => {
            rig.map(GIB * 4, 0, 1 << 20);
            let mut buf = vec![0; if name == "access" { ACCESS } else { ACCESS / 2 }];
            (0..times)
                .for_each(|_| rig.access.read(Iova(black_box(GIB * 4)), &mut buf).expect("read"));
        }
        _ => panic!("{name} is not counted"),
    }
    // Giving everything back is not what is counted.
    std::process::exit(0);
}

/// Instructions of one access. Callgrind counts a string move once a byte, a processor once: where
/// half the bytes say that one was counted so, its bytes are taken off.
fn access_instructions() -> Option<f64> {
    let (whole, half) = (instructions("access", 10, 110)?, instructions("access_half", 10, 110)?);
    let bytes = f64::from(u32::try_from(ACCESS / 2).expect("few"));
    let once_a_byte = (whole - half) / bytes > 0.9;
    Some(if once_a_byte { whole - (whole - half) * 2.0 } else { whole })
}

/// P14, and its figures' difference where a call cannot be counted alone.
fn count() -> Option<()> {
    let maps = instructions("maps", 1_000, 11_000)?;
    line("P14.map_4k", maps, 700.0);
    let unmaps = instructions("maps_unmaps", 1_000, 11_000)?;
    line("P14.unmap_4k", unmaps - maps, 700.0);
    let gib = instructions("map_unmap_gib", 100, 1_100)?;
    line("P14.map_and_unmap_1g", gib, 6_000.0);
    line("P14.copy_4k", instructions("copies", 1_000, 11_000)?, 700.0);
    line("P14.dirty_64m_clean", instructions("dirty", 10, 60)?, 60_000.0);
    line("P14.access_read_64k", access_instructions()?, 5_000.0);
    let many = instructions("maps", 0, 100_000)?;
    line("P14.map_100k_each", many, 900.0);
    let all = instructions("maps_unmap_all", 1, 100_000)?;
    line("P14.unmap_all_each", all - many, 300.0);
    Some(())
}

/// P11: one MAP and one UNMAP without a device, beside FIONREAD twice.
fn race() {
    const TURNS: u32 = 20_000;
    let rig = Rig::new(false);
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..TURNS {
                rig.map(GIB * 4, 0, PAGE);
                rig.unmap(GIB * 4, PAGE);
            }
            let ours = begun.elapsed();
            let begun = Instant::now();
            for _ in 0..TURNS * 2 {
                black_box(rustix::io::ioctl_fionread(&reader).expect("a length"));
            }
            ours.as_secs_f64() / begun.elapsed().as_secs_f64()
        })
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    line("P11.library_map_unmap", ratios[ROUNDS / 2], 1.0);
}

/// Memory without bytes, which says of itself that it may wait.
#[derive(Clone, Debug)]
struct Void {
    may_wait: bool,
}

impl Backing for Void {
    fn key(&self) -> u128 {
        7 + u128::from(self.may_wait)
    }

    fn may_wait(&self) -> bool {
        self.may_wait
    }

    fn read(&self, _pieces: &[Piece], _buf: &mut [u8]) -> ioasis_uapi::Result<()> {
        Ok(())
    }

    fn write(&self, _pieces: &[Piece], _buf: &[u8]) -> ioasis_uapi::Result<()> {
        Ok(())
    }
}

impl AddressSpace for Void {
    fn key(&self) -> u128 {
        Backing::key(self)
    }

    fn pin(&self, offset: u64, length: u64, _need: Prot) -> ioasis_uapi::Result<Extents> {
        let backing: Arc<dyn Backing> = Arc::new(self.clone());
        Ok(Extents::from_buf([Extent { backing, offset, length }]))
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

/// Nanoseconds this thread has run.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("not negative").as_secs_f64() * 1e9
}

/// What a transfer costs beside its bytes, where the memory may wait and where not.
fn transfer() {
    const TURNS: u32 = 1_000_000;
    let figures = [false, true].map(|may_wait| {
        let rig = Rig::new(true);
        rig.map_of(Arc::new(Void { may_wait }), GIB * 4, 0, PAGE);
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let begun = processor_time();
                for _ in 0..TURNS {
                    let segment = Segment { iova: Iova(GIB * 4), length: 64 };
                    let written = rig.bound.endpoint().write([segment], black_box(&[0; 64]));
                    written.expect("written");
                }
                (processor_time() - begun) / f64::from(TURNS)
            })
            .collect();
        rounds.sort_unstable_by(f64::total_cmp);
        rounds[ROUNDS / 2]
    });
    let [never, may] = figures;
    println!("# a transfer beside its bytes: {never:.1} ns; {may:.1} ns where it may wait");
}

fn main() {
    if let Some((name, times)) = asked() {
        counted(&name, times);
        return;
    }
    race();
    transfer();
    if count().is_none() {
        println!("P14: callgrind is not installed, nothing was counted");
    }
}
