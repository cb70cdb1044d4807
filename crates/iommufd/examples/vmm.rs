//! A VMM with an IOMMU of its own: guest memory is mapped, a device model does DMA through the page table, and what it
//! wrote is found and moved while it goes on writing.
//!
//! `cargo run -p ioasis-iommufd --example vmm`

use std::sync::Arc;

use ioasis_iommufd::{
    Account, Context, Dirty, Endpoint, EndpointConfig, Group, HwptFlags, Iommu, IommuKind, Iova,
    IovaRange, Machine, MapRequest, Memory, PAGE_SIZE, Place, Prot, Segment,
};
use ioasis_uapi::Result;

/// Guest memory: 16 MiB at address 0.
const RAM: u64 = 16 << 20;

fn main() -> Result<()> {
    // The machine: one IOMMU, one device in a group of its own.
    let machine = Machine::new();
    let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
    let group = Group::new(&machine, &iommu, 0);
    let device = Endpoint::new(
        &group,
        EndpointConfig {
            name: "0000:00:03.0".into(),
            requester_id: 0x18,
            reserved: iommu.reserved(),
            pasid_bits: 0,
            pasid_exec: false,
            pasid_privileged: false,
            ats: false,
            pri: false,
        },
    );

    // What a guest without a virtual IOMMU has: all of its memory at its own addresses.
    let memory = Arc::new(Memory::new(0, usize::try_from(RAM).expect("a 64-bit machine"))?);
    let context = Context::new(&machine);
    let ioas = context.alloc_ioas()?;
    // A leaf has one dirty bit: small leaves, small copies.
    context.set_huge_pages(ioas, false)?;
    context.map(
        ioas,
        MapRequest {
            space: Arc::clone(&memory) as _,
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
        },
    )?;

    // The device translates through a page table that keeps dirty bits.
    let bound = context.bind(&device)?;
    let table = context.alloc_hwpt(ioas, &bound, HwptFlags::DIRTY_TRACKING)?;
    bound.attach(table)?;
    device.write([segment(0x5000, 5)], b"hello").expect("mapped");
    let mut seen = [0; 5];
    memory.read(0x5000, &mut seen)?;
    println!("the guest reads {:?} at 0x5000", String::from_utf8_lossy(&seen));

    // Migration: everything once, then what was written since, until little is left.
    let copy = Memory::new(0, usize::try_from(RAM).expect("a 64-bit machine"))?;
    context.start_dirty_tracking(table)?;
    move_range(&memory, &copy, IovaRange::new(Iova(0), RAM)?)?;
    for round in 0_u8..3 {
        device
            .write([segment(0x10_0000 + u64::from(round) * PAGE_SIZE, 1)], &[round])
            .expect("mapped");
        let mut dirty = Vec::new();
        let all = IovaRange::new(Iova(0), RAM)?;
        context.read_dirty(table, all, Dirty::Clear, &mut |range| dirty.push(range))?;
        println!("round {round}: {dirty:x?} were written");
        dirty.iter().try_for_each(|&range| move_range(&memory, &copy, range))?;
    }

    // Detached, the device reaches nothing; the copy holds what it wrote.
    bound.detach();
    let refused = device.write([segment(0x5000, 1)], &[0]).expect_err("detached");
    println!("after the detach, DMA faults at {:?}", refused.iova);
    let mut moved = [0];
    copy.read(0x10_2000, &mut moved)?;
    assert_eq!(moved, [2], "the last round was moved");
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
