//! A client that sends anything.
//!
//! [`run`] turns bytes into opens, ioctls with hostile pointers and sizes, region accesses, stores
//! into BAR pages and closes on a machine with an NVMe controller and two test devices behind an
//! IOMMU of any kind, and then checks that nothing is left: no pinned page, no charge, no stretch
//! of physical space. The SMMUv3 has command queues for guests. [`run_spapr`] does the same on a
//! machine of POWER's, whose container is another one. The fuzz targets and the tests share them.

mod calls;
mod client;
mod input;
mod setup;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_iommufd::type1::GroupKind;
use ioasis_iommufd::{
    self as iommufd, Cmdqv, Endpoint, EndpointConfig, Group, Iommu, IommuKind, Spapr,
};
use ioasis_pci::{Bdf, Function, Windows};
use ioasis_vfio::Placement;

use client::Hostile;
use input::Input;

/// Bytes of the image behind the NVMe controller.
const IMAGE: u64 = 1 << 20;

/// What the devices can be behind.
const KINDS: [IommuKind; 4] = [IommuKind::Vtd, IommuKind::Amd, IommuKind::Smmuv3, IommuKind::Riscv];

/// A whole machine.
#[derive(Debug)]
struct Machine {
    kind: IommuKind,
    iommu: Arc<iommufd::Machine>,
    vfio: ioasis_vfio::Machine,
}

impl Machine {
    /// NVMe in group 1, two test devices that share group 2, an emulated one in group 3.
    fn new(kind: IommuKind) -> Self {
        let image = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
        let image = image.expect("a file in memory");
        rustix::fs::ftruncate(&image, IMAGE).expect("room for the image");
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let nvme = [("image".to_owned(), path), ("queues".to_owned(), "2".to_owned())];

        let machine = iommufd::Machine::new();
        let cmdqv = (kind == IommuKind::Smmuv3).then(Cmdqv::default);
        let spapr =
            (kind == IommuKind::Spapr).then(|| Spapr { window: 1 << 29, ..Spapr::default() });
        let hardware = Arc::new(Iommu { cmdqv, spapr, ..Iommu::new(kind) });
        let groups = [1, 2, 3].map(|number| Group::new(&machine, &hardware, number));
        let mut windows = Windows::default();
        let places =
            [("nvme", &nvme[..], 0), ("testdev", &[], 1), ("testdev", &[], 1), ("testdev", &[], 2)];
        let placements = (1..).zip(places).map(|(bus, (model, options, group))| {
            let address = Bdf::new(0, bus, 0, 0).expect("a bus of its own");
            let model = ioasis_pci::create(model, options).expect("its options are right");
            let config = EndpointConfig {
                name: address.to_string().into(),
                requester_id: address.requester_id(),
                reserved: hardware.reserved(),
                pasid_bits: 20,
                pasid_exec: true,
                pasid_privileged: true,
                ats: true,
                pri: true,
                private: None,
            };
            Placement {
                function: Function::new(address, model, &mut windows),
                endpoint: Endpoint::new(&groups[group], config),
                kind: if group == 2 { GroupKind::Emulated } else { GroupKind::Iommu },
            }
        });
        let vfio = ioasis_vfio::Machine::new(placements.collect());
        Self { kind, iommu: machine, vfio }
    }
}

/// Does what `input` says, closes everything, and returns how many things were done.
///
/// # Panics
///
/// If anything is left behind.
pub fn run(input: &[u8]) -> u64 {
    let mut input = Input(input);
    let kind = *input.pick(&KINDS);
    run_on(kind, input)
}

/// [`run`] on a machine of POWER's: windows, registered memory, error handling.
///
/// # Panics
///
/// If anything is left behind.
pub fn run_spapr(input: &[u8]) -> u64 {
    run_on(IommuKind::Spapr, Input(input))
}

fn run_on(kind: IommuKind, mut input: Input<'_>) -> u64 {
    let machine = Machine::new(kind);
    // On POWER a whole window is charged ahead.
    let client = Hostile::new(if kind == IommuKind::Spapr { 1 << 18 } else { 200 });
    let mut steps = 0;
    while !input.is_empty() {
        calls::step(&machine, &client, &mut input);
        steps += 1;
    }
    loop {
        let last = client.files.lock().pop();
        let Some(file) = last else { break };
        calls::release(&client, &file);
    }
    assert_eq!(machine.iommu.ledger.pinned(), 0, "a page is still pinned");
    assert_eq!(machine.iommu.ledger.user(1), 0, "a charge is left");
    assert_eq!(machine.iommu.ledger.processes(), [], "a process still pays");
    assert_eq!(machine.iommu.phys.windows(), 0, "a stretch of physical space is still taken");
    steps
}

/// Adds `calls` to what this process has done. Every so often the sum is written to the file that
/// `IOASIS_CALLS` names, so that whoever counts calls across processes misses few of them.
pub fn count(calls: u64) {
    static DONE: AtomicU64 = AtomicU64::new(0);
    static INPUTS: AtomicU64 = AtomicU64::new(0);
    let done = DONE.fetch_add(calls, Ordering::Relaxed) + calls;
    if INPUTS.fetch_add(1, Ordering::Relaxed) % 64 == 63
        && let Some(file) = std::env::var_os("IOASIS_CALLS")
    {
        // Not being able to write it is no failure of what is fuzzed.
        let _ = std::fs::write(file, format!("{done}\n"));
    }
}
