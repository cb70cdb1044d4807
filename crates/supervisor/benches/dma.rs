//! P12: DMA into client memory, through an IOAS and its page table, beside what the bytes alone cost.
//!
//! The client is a forked copy of this program. Shared memory is a memfd it has mapped; the peer is libc's memcpy to or
//! from the same memfd, mapped by vm-memory. Private memory is its heap; the peer is one `process_vm_writev` (or `_readv`)
//! of the same bytes. Both go through 64 MiB, page by page in a scattered order and half of it apart, for a device does not
//! write one page over and over. Samples alternate, and so does which comes first; medians are compared. Lines with `#` say
//! nanoseconds, and what the same costs when it is always the one page that is in the nearest cache.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ioasis_iommufd::{
    Account, AddressSpace, Bound, Context, Endpoint, EndpointConfig, Group, Iommu, IommuKind, Iova,
    Machine, MapRequest, Place, Prot, Segment,
};
use ioasis_supervisor::memory::Memory;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::process::Thread;
use ioasis_sys::spawn::{self, Child};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

const SIZES: [(&str, usize); 4] =
    [("4k", 4 << 10), ("16k", 16 << 10), ("64k", 64 << 10), ("2m", 2 << 20)];
/// How many times as fast as the peer shared memory is at least to be.
const SHARED: f64 = 0.9;

/// The same for private memory. Bytes go to and from an open /proc/PID/mem through a page of the kernel's, those of
/// process_vm_* do not; but only a handle on the memory itself can never lead to another process.
fn private_bound(size: usize) -> f64 {
    if size <= 16 << 10 { 0.8 } else { 0.5 }
}

/// Bytes of client memory.
const REGION: usize = 64 << 20;
const SAMPLES: usize = 101;
/// Bytes a sample moves, so that all samples take about as long.
const SAMPLE_BYTES: usize = 4 << 20;

/// A device behind an IOMMU with one mapping of client memory at IOVA `AT`.
struct Device {
    endpoint: Arc<Endpoint>,
    _bound: Bound,
}

const AT: u64 = 0x1_0000_0000;

impl Device {
    fn new(space: Arc<dyn AddressSpace>, address: u64) -> Self {
        let machine = Machine::new();
        let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
        let group = Group::new(&machine, &iommu, 1);
        let config = EndpointConfig {
            name: "0000:01:00.0".into(),
            requester_id: 0x100,
            reserved: iommu.reserved(),
            ..EndpointConfig::default()
        };
        let endpoint = Endpoint::new(&group, config);
        let context = Context::new(&machine);
        let ioas = context.alloc_ioas().expect("an IOAS");
        let bound = context.bind(&endpoint).expect("bound");
        bound.attach(ioas).expect("attached");
        let request = MapRequest {
            space,
            address,
            length: REGION as u64,
            place: Place::Fixed(Iova(AT)),
            prot: Prot::READ | Prot::WRITE,
            account: Account {
                pid: std::process::id(),
                uid: 0,
                memlock_pages: None,
                ipc_lock: true,
                sys_resource: true,
                sys_rawio: true,
            },
        };
        context.map(ioas, request).expect("mapped");
        Self { endpoint, _bound: bound }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let segment = Segment { iova: Iova(AT + offset as u64), length: bytes.len() };
        self.endpoint.write([segment], bytes).expect("DMA");
    }

    fn read(&self, offset: usize, buf: &mut [u8]) {
        let segment = Segment { iova: Iova(AT + offset as u64), length: buf.len() };
        self.endpoint.read([segment], buf).expect("DMA");
    }
}

/// Offsets of transfers of one size, page by page, far apart.
struct Walk {
    offset: usize,
    step: usize,
    last: usize,
}

impl Walk {
    fn new(size: usize, region: usize, offset: usize) -> Self {
        let step = if region > size { (size * 7).next_multiple_of(4096) + 4096 } else { 0 };
        Self { offset, step, last: region - size }
    }

    fn next(&mut self) -> usize {
        let now = self.offset;
        self.offset += self.step;
        if self.offset > self.last {
            self.offset %= 8 * 4096;
        }
        now
    }
}

/// Nanoseconds this thread has run: on a busy machine wall time says more about the neighbours.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("not negative").as_secs_f64() * 1e9
}

/// Nanoseconds per turn of `ours` and of `peer` on `region` bytes, medians of samples that alternate.
fn compare(
    size: usize,
    region: usize,
    ours: &mut dyn FnMut(usize),
    peer: &mut dyn FnMut(usize),
) -> (f64, f64) {
    let turns = u32::try_from(SAMPLE_BYTES / size).expect("few");
    let sample = |walk: &mut Walk, turn: &mut dyn FnMut(usize)| {
        let begun = processor_time();
        for _ in 0..turns {
            turn(walk.next());
        }
        (processor_time() - begun) / f64::from(turns)
    };
    let mut walks = [Walk::new(size, region, 0), Walk::new(size, region, (region - size) / 2)];
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..SAMPLES {
        if round % 2 == 0 {
            first.push(sample(&mut walks[0], ours));
        }
        second.push(sample(&mut walks[1], peer));
        if round % 2 == 1 {
            first.push(sample(&mut walks[0], ours));
        }
    }
    let median = |samples: &mut Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    (median(&mut first), median(&mut second))
}

fn report(
    goal: &str,
    (size, bound): (usize, f64),
    mut ours: impl FnMut(usize),
    mut peer: impl FnMut(usize),
) {
    let (our_time, peer_time) = compare(size, REGION, &mut ours, &mut peer);
    let ratio = peer_time / our_time;
    let verdict = if ratio >= bound { "met" } else { "missed" };
    println!("P12.{goal} {ratio:.2} >={bound} {verdict}");
    let (our_near, peer_near) = compare(size, size, &mut ours, &mut peer);
    println!(
        "# {goal}: {our_time:.0} ns, peer {peer_time:.0} ns; one page {our_near:.0} ns, peer {peer_near:.0} ns"
    );
}

fn shared(thread: &Arc<Thread>, memory: &Arc<Memory>, fd: impl AsFd) {
    let stat = rustix::fs::fstat(&fd).expect("fstat");
    let vmas = thread.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
    let vma = vmas.iter().find(|vma| vma.inode == stat.st_ino && vma.shared);
    let start = vma.expect("the client maps it").start;
    let device = Device::new(memory.of(thread).expect("memory"), start);
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().expect("a duplicate"));
    let own = MmapRegion::<()>::from_file(FileOffset::new(file, 0), REGION).expect("mapped");
    for (name, size) in SIZES {
        let (mut buffer, mut other) = (vec![1_u8; size], vec![2_u8; size]);
        let source = vec![3_u8; size];
        let slice = |at| own.get_slice(at, size).expect("inside");
        let write = |at| device.write(at, black_box(&source));
        let peer = |at| slice(at).copy_from(black_box(&source));
        report(&format!("shared_write_{name}"), (size, SHARED), write, peer);
        let read = |at| device.read(at, black_box(&mut buffer));
        let peer = |at| assert_eq!(slice(at).copy_to(black_box(&mut other)), size);
        report(&format!("shared_read_{name}"), (size, SHARED), read, peer);
    }
}

fn private(child: &Child, thread: &Arc<Thread>, memory: &Arc<Memory>, address: u64) {
    let device = Device::new(memory.of(thread).expect("memory"), address);
    for (name, size) in SIZES {
        let (mut buffer, mut other) = (vec![1_u8; size], vec![2_u8; size]);
        let source = vec![3_u8; size];
        let write = |at| device.write(at, black_box(&source));
        let peer = |at| {
            child.write_memory(address + at as u64, black_box(&source)).expect("process_vm_writev")
        };
        report(&format!("private_write_{name}"), (size, private_bound(size)), write, peer);
        let read = |at| device.read(at, black_box(&mut buffer));
        let peer = |at| {
            child.read_memory(address + at as u64, black_box(&mut other)).expect("process_vm_readv")
        };
        report(&format!("private_read_{name}"), (size, private_bound(size)), read, peer);
    }
}

fn main() {
    let fd =
        rustix::fs::memfd_create("dma-bench", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, REGION as u64).expect("a size");
    let mapping = Mapping::file(fd.as_fd(), 0, REGION, Access::ReadWrite).expect("mapped");
    mapping.fill(0, REGION, 1).expect("touched");
    let mut heap = vec![1_u8; REGION + 4096];
    let address = (heap.as_ptr().addr() as u64).next_multiple_of(4096);
    let child: Child = spawn::fork_with(|| {
        heap.fill(2);
        std::thread::sleep(Duration::from_secs(600));
        0
    })
    .expect("a client");
    std::thread::sleep(Duration::from_millis(100));
    let thread = Arc::new(Thread::open(child.id()).expect("the client"));
    let memory = Memory::new(None);
    drop(mapping);
    shared(&thread, &memory, &fd);
    private(&child, &thread, &memory, address);
    child.kill();
    child.wait().expect("wait");
}
