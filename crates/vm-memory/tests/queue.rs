//! A virtio queue of the rust-vmm crates, whose device reaches memory through an IOMMU only.

use std::sync::Arc;

use ioasis_iommufd::{
    Account, Bound, Context, Dirty, Endpoint, EndpointConfig, Group, HwptFlags, Iommu, IommuKind,
    Iova, IovaRange, Machine, MapRequest, Place, Prot,
};
use ioasis_vm_memory::{DeviceIommu, GuestRam};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, IommuMemory, Permissions};

type Ram = GuestMemoryMmap<()>;

/// The guest's memory has two regions with a hole between them.
const REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0x10_0000), (GuestAddress(0x20_0000), 0x10_0000)];

const PAGE: u64 = 4096;
const RING: u64 = 0x4000;
const BUFFERS: u64 = 0x20_1000;
/// Where the device finds the ring, and the buffers: page by page in the opposite order.
const RING_IOVA: u64 = 0x1000_0000;
const BUFFERS_IOVA: u64 = 0x2000_0000;

const ACCOUNT: Account = Account {
    pid: 1,
    uid: 0,
    memlock_pages: None,
    ipc_lock: false,
    sys_resource: false,
    sys_rawio: false,
};

struct Vmm {
    memory: Ram,
    context: Arc<Context>,
    machine: Arc<Machine>,
    ioas: u32,
    table: u32,
    bound: Bound,
    device: IommuMemory<Ram, DeviceIommu>,
    ram: GuestRam<Ram>,
}

impl Vmm {
    fn new(kind: IommuKind) -> Self {
        let memory = Ram::from_ranges(&REGIONS).unwrap();
        let ram = GuestRam::new(memory.clone());
        let machine = Machine::new();
        let iommu = Arc::new(Iommu::new(kind));
        let config = EndpointConfig {
            name: "0000:00:03.0".into(),
            requester_id: 0x18,
            reserved: iommu.reserved(),
            ..EndpointConfig::default()
        };
        let endpoint = Endpoint::new(&Group::new(&machine, &iommu, 0), config);
        let context = Context::new(&machine);
        let ioas = context.alloc_ioas().unwrap();
        context.set_huge_pages(ioas, false).unwrap();
        let bound = context.bind(&endpoint).unwrap();
        let table = context.alloc_hwpt(ioas, &bound, HwptFlags::DIRTY_TRACKING).unwrap();
        bound.attach(table).unwrap();
        let iommu = DeviceIommu::new(&endpoint, &ram);
        let device = IommuMemory::new(memory.clone(), iommu, true, ());
        Self { memory, context, machine, ioas, table, bound, device, ram }
    }

    fn map(&self, iova: u64, address: u64, length: u64, prot: Prot) -> ioasis_uapi::Result<Iova> {
        let request = MapRequest {
            space: Arc::new(self.ram.clone()),
            address,
            length,
            place: Place::Fixed(Iova(iova)),
            prot,
            account: ACCOUNT,
        };
        self.context.map(self.ioas, request)
    }

    fn dirty(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        let all = IovaRange::ALL;
        self.context
            .read_dirty(self.table, all, Dirty::Clear, &mut |range| {
                pages.extend((range.start().0..=range.last().0).step_by(4096));
            })
            .unwrap();
        pages
    }

    /// As a driver does: a descriptor for the device to write to, of two pages, made available.
    fn offer(&self) {
        let words = |at: u64, bytes: &[u8]| {
            self.memory.write_slice(bytes, GuestAddress(RING + at)).unwrap();
        };
        // Virtio 1.2, 2.7.5: address, length, flags (WRITE), next.
        words(0, &BUFFERS_IOVA.to_le_bytes());
        words(8, &(2 * 4096_u32).to_le_bytes());
        words(12, &2_u16.to_le_bytes());
        // 2.7.6: the ring's first entry is descriptor 0; index 1.
        words(PAGE + 4, &0_u16.to_le_bytes());
        words(PAGE + 2, &1_u16.to_le_bytes());
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(16).unwrap();
        let low = |at: u64| Some(u32::try_from(RING_IOVA + at).unwrap());
        queue.set_desc_table_address(low(0), Some(0));
        queue.set_avail_ring_address(low(PAGE), Some(0));
        queue.set_used_ring_address(low(2 * PAGE), Some(0));
        queue.set_ready(true);
        queue
    }
}

const RW: Prot = Prot::READ.union(Prot::WRITE);

#[test]
fn a_virtio_device_finds_ring_and_buffers_by_iova_on_every_format() {
    for kind in [IommuKind::Vtd, IommuKind::Amd, IommuKind::Smmuv3, IommuKind::Riscv] {
        let vmm = Vmm::new(kind);
        vmm.map(RING_IOVA, RING, 3 * PAGE, RW).unwrap();
        vmm.map(BUFFERS_IOVA, BUFFERS + PAGE, PAGE, RW).unwrap();
        vmm.map(BUFFERS_IOVA + PAGE, BUFFERS, PAGE, RW).unwrap();
        vmm.offer();
        let mut queue = vmm.queue();
        assert!(queue.is_valid(&vmm.device));
        let mut chain = queue.pop_descriptor_chain(&vmm.device).expect("one is available");
        let descriptor = chain.next().expect("it has a descriptor");
        let data: Vec<u8> = (0..2 * 4096_usize).map(|at| (at / 7).to_le_bytes()[0]).collect();
        vmm.device.write_slice(&data, descriptor.addr()).unwrap();
        queue.add_used(&vmm.device, chain.head_index(), descriptor.len()).unwrap();

        let mut seen = vec![0; 2 * 4096];
        vmm.memory.read_slice(&mut seen, GuestAddress(BUFFERS)).unwrap();
        assert!(seen[..4096] == data[4096..] && seen[4096..] == data[..4096], "{kind:?}");
        let used: u16 = vmm.memory.read_obj(GuestAddress(RING + 2 * PAGE + 2)).unwrap();
        assert_eq!(used, 1, "{kind:?}");
        assert_eq!(
            vmm.dirty(),
            [RING_IOVA + 2 * PAGE, BUFFERS_IOVA, BUFFERS_IOVA + PAGE],
            "{kind:?}: the used ring and the buffers were written, nothing else"
        );
    }
}

#[test]
fn what_is_not_mapped_or_read_only_is_refused_and_logged() {
    let vmm = Vmm::new(IommuKind::Vtd);
    vmm.map(0x1000, 0x5000, PAGE, Prot::READ).unwrap();
    let mut byte = [0];
    vmm.device.read_slice(&mut byte, GuestAddress(0x1fff)).unwrap();
    assert!(vmm.device.write_slice(&byte, GuestAddress(0x1fff)).is_err(), "read-only");
    assert!(vmm.device.read_slice(&mut [0; 2], GuestAddress(0x1fff)).is_err(), "half of it");
    assert!(vmm.device.read_slice(&mut byte, GuestAddress(0x5000)).is_err(), "a guest address");
    assert!(vmm.device.read_slice(&mut [0; 2], GuestAddress(u64::MAX)).is_err(), "it wraps");
    let check = |at, length| vmm.device.check_range(GuestAddress(at), length, Permissions::Read);
    assert!(check(0x1000, 4096) && !check(0x1000, 4097) && check(0x1000, 0));
    let faults: Vec<_> = vmm.machine.faults.take().iter().map(|fault| fault.iova.0).collect();
    assert_eq!(faults, [0x1fff, 0x2000, 0x5000, 0x2000]);
}

#[test]
fn an_address_that_is_unmapped_leads_nowhere() {
    let vmm = Vmm::new(IommuKind::Amd);
    vmm.map(0x1000, 0x5000, PAGE, RW).unwrap();
    vmm.device.write_slice(&[1], GuestAddress(0x1000)).unwrap();
    let range = IovaRange::new(Iova(0x1000), PAGE).unwrap();
    vmm.context.unmap(vmm.ioas, range, 1).unwrap().result.unwrap();
    assert!(vmm.device.write_slice(&[2], GuestAddress(0x1000)).is_err());
    vmm.map(0x1000, 0x6000, PAGE, RW).unwrap();
    vmm.device.write_slice(&[3], GuestAddress(0x1000)).unwrap();
    let at = |address| vmm.memory.read_obj::<u8>(GuestAddress(address)).unwrap();
    assert_eq!((at(0x5000), at(0x6000)), (1, 3));
    vmm.bound.detach();
    assert!(vmm.device.write_slice(&[4], GuestAddress(0x1000)).is_err(), "detached");
}

#[test]
fn a_hole_in_the_guests_memory_cannot_be_mapped() {
    let vmm = Vmm::new(IommuKind::Vtd);
    let refused = vmm.map(0x1000, 0xf_f000, 2 * PAGE, RW).unwrap_err();
    assert_eq!(refused.errno, ioasis_uapi::Errno::EFAULT);
    vmm.map(0x1000, 0xf_f000, PAGE, RW).unwrap();
}
