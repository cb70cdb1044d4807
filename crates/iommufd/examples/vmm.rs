//! A VMM with an IOMMU of its own: guest memory is mapped, a device model does DMA through the page
//! table, and the guest migrates while the device goes on writing: what it wrote is found and
//! moved, until the device is stopped and goes on at the destination.
//!
//! `cargo run -p ioasis-iommufd --example vmm`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_iommufd::{
    Account, Bound, Context, Dirty, Endpoint, EndpointConfig, Group, HwptFlags, Iommu, IommuKind,
    Iova, IovaRange, Machine, MapRequest, Memory, PAGE_SIZE, Place, Prot, Segment,
};
use ioasis_uapi::Result;

/// Guest memory: 16 MiB at address 0.
const RAM: u64 = 16 << 20;

/// One side of a migration: a machine with one device, whose IOVAs are the guest's addresses.
struct Side {
    memory: Arc<Memory>,
    context: Arc<Context>,
    device: Arc<Endpoint>,
    bound: Bound,
    /// The device's page table, which keeps dirty bits.
    table: u32,
}

impl Side {
    fn new(kind: IommuKind) -> Result<Self> {
        let machine = Machine::new();
        let iommu = Arc::new(Iommu::new(kind));
        let group = Group::new(&machine, &iommu, 0);
        let config = EndpointConfig {
            name: "0000:00:03.0".into(),
            requester_id: 0x18,
            // This guest has no interrupts in the way of its memory.
            ..EndpointConfig::default()
        };
        let device = Endpoint::new(&group, config);
        let memory = Arc::new(Memory::new(0, usize::try_from(RAM).expect("a 64-bit machine"))?);
        let context = Context::new(&machine);
        let ioas = context.alloc_ioas()?;
        // A leaf has one dirty bit: small leaves, small copies.
        context.set_huge_pages(ioas, false)?;
        context.map(ioas, all_of(&memory))?;
        let bound = context.bind(&device)?;
        let table = context.alloc_hwpt(ioas, &bound, HwptFlags::DIRTY_TRACKING)?;
        bound.attach(table)?;
        Ok(Self { memory, context, device, bound, table })
    }

    /// What the device wrote since the last call.
    fn dirty(&self) -> Result<Vec<IovaRange>> {
        let (mut dirty, all) = (Vec::new(), IovaRange::new(Iova(0), RAM)?);
        self.context.read_dirty(self.table, all, Dirty::Clear, &mut |range| dirty.push(range))?;
        Ok(dirty)
    }
}

/// What a guest without a virtual IOMMU has: all of its memory at its own addresses.
fn all_of(memory: &Arc<Memory>) -> MapRequest {
    MapRequest {
        space: Arc::clone(memory) as _,
        address: 0,
        length: RAM,
        place: Place::Fixed(Iova(0)),
        prot: Prot::READ | Prot::WRITE,
        account: Account {
            pid: std::process::id(),
            uid: 0,
            memlock_pages: None,
            ipc_lock: false,
            sys_resource: false,
            sys_rawio: false,
        },
    }
}

fn main() -> Result<()> {
    let source = Side::new(IommuKind::Vtd)?;
    source.device.write([segment(0x5000, 5)], b"hello").expect("mapped");
    let mut seen = [0; 5];
    source.memory.read(0x5000, &mut seen)?;
    println!("the guest reads {:?} at 0x5000", String::from_utf8_lossy(&seen));

    // The destination's IOMMU may be another's.
    let destination = Side::new(IommuKind::Amd)?;
    source.context.start_dirty_tracking(source.table)?;
    let moving = AtomicBool::new(true);
    let rounds = std::thread::scope(|scope| -> Result<u32> {
        // The device does not know that it migrates.
        let device = scope.spawn(|| {
            let mut sent = 0_u64;
            while moving.load(Ordering::Acquire) {
                let page = 0x10_0000 + sent % 64 * PAGE_SIZE;
                source.device.write([segment(page, 8)], &sent.to_le_bytes()).expect("mapped");
                sent += 1;
            }
            sent
        });
        move_range(&source.memory, &destination.memory, IovaRange::new(Iova(0), RAM)?)?;
        let mut rounds = 0;
        while rounds < 8 {
            // A network would take its time.
            std::thread::sleep(std::time::Duration::from_millis(1));
            let dirty = source.dirty()?;
            let pages: u64 =
                dirty.iter().map(|range| (range.last().0 - range.start().0) / PAGE_SIZE + 1).sum();
            println!("round {rounds}: {pages} pages were written meanwhile");
            dirty
                .iter()
                .try_for_each(|&range| move_range(&source.memory, &destination.memory, range))?;
            rounds += 1;
        }
        moving.store(false, Ordering::Release);
        println!("the device wrote {} times", device.join().expect("it does not panic"));
        Ok(rounds)
    })?;

    // The device is stopped: what it wrote last, and no more, is moved.
    source.bound.detach();
    source.device.write([segment(0x5000, 1)], &[0]).expect_err("detached");
    for range in source.dirty()? {
        move_range(&source.memory, &destination.memory, range)?;
    }
    println!("stopped after {rounds} rounds; the device goes on at the destination");
    let (mut here, mut there) = ([0; 4096], [0; 4096]);
    for at in (0..RAM).step_by(4096) {
        source.memory.read(at, &mut here)?;
        destination.device.read([segment(at, 4096)], &mut there).expect("mapped");
        assert!(here == there, "the page at {at:#x} was not moved as it is");
    }
    Ok(())
}

fn segment(iova: u64, length: usize) -> Segment {
    Segment { iova: Iova(iova), length }
}

/// Copies guest memory, whose addresses are its IOVAs.
fn move_range(from: &Memory, to: &Memory, range: IovaRange) -> Result<()> {
    let mut page = [0; 4096];
    let mut at = range.start().0;
    while at <= range.last().0 {
        from.read(at, &mut page)?;
        to.write(at, &page)?;
        at += PAGE_SIZE;
    }
    Ok(())
}
