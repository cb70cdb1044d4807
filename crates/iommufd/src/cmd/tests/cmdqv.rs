//! Command queues of a guest on a simulated CMDQ-V.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::viommu::{DATA, GUEST, Nest, STE, arm_tables};
use super::*;
use crate::tests::rig::{ACCOUNT, ARG, Region};
use crate::{
    Cmdqv, Iova, MapRequest, MappableMemory, Memory, Place, Prot, QueueFile, Segment, inject,
};

const CONS: u64 = 0x00;
const PROD: u64 = 0x04;
const CONFIG: u64 = 0x08;
const STATUS: u64 = 0x0c;
const GERROR: u64 = 0x10;
const GERRORN: u64 = 0x14;
/// From one queue's registers to the next one's.
const STRIDE: u64 = 0x80;

/// Guest physical addresses of two queues of [`LENGTH`] bytes.
const QUEUES: [u64; 2] = [0x1_0000, 0x1_1000];
/// Sixteen commands.
const LENGTH: u64 = 0x100;
const STREAM: u64 = 0x18;
const IOVA: u64 = 0x40_0000;

const SYNC: [u64; 2] = [0x46, 0];
const TLBI_VA: [u64; 2] = [0x12, IOVA];

/// A guest with an interface.
struct Guest {
    nest: Nest,
    viommu: u32,
    page: Arc<Region>,
}

fn machine() -> Iommu {
    Iommu { cmdqv: Some(Cmdqv::default()), ..Iommu::new(IommuKind::Smmuv3) }
}

impl Guest {
    fn new() -> Self {
        let nest = Nest::on(machine());
        arm_tables(&nest);
        let viommu = nest.viommu_with(abi::VIOMMU_TYPE_TEGRA241_CMDQV, 16).unwrap();
        let page = nest.fixture.client.regions.borrow().last().cloned().unwrap();
        Self { nest, viommu, page }
    }

    /// The device translates through the guest's own tables.
    fn attach(&self) {
        self.nest.vdevice(self.viommu, STREAM).unwrap();
        let nested = self.nest.alloc(self.viommu, abi::HWPT_DATA_ARM_SMMUV3, &STE).unwrap();
        self.nest.bound.attach(nested).unwrap();
    }

    fn ask(&self) -> abi::HwQueueAlloc {
        abi::HwQueueAlloc {
            size: 40,
            viommu_id: self.viommu,
            type_: abi::HW_QUEUE_TYPE_TEGRA241_CMDQV,
            nesting_parent_iova: QUEUES[0],
            length: LENGTH,
            ..Default::default()
        }
    }

    fn queue(&self, mut ask: abi::HwQueueAlloc) -> Result<u32> {
        self.nest.fixture.call(abi::HW_QUEUE_ALLOC, &mut ask)?;
        Ok(ask.out_hw_queue_id)
    }

    /// Queue `index` at its place.
    fn start(&self, index: u32) -> u32 {
        let base = QUEUES[index as usize];
        self.queue(abi::HwQueueAlloc { index, nesting_parent_iova: base, ..self.ask() }).unwrap()
    }

    fn load(&self, register: u64) -> u32 {
        self.page.load(register).unwrap()
    }

    fn store(&self, register: u64, value: u32) {
        self.page.store(register, value).unwrap();
    }

    fn wait(&self, register: u64, value: u32) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.load(register) != value {
            assert!(Instant::now() < deadline, "{register:#x} is {:#x}", self.load(register));
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn enable(&self, index: u64) {
        self.store(STRIDE * index + CONFIG, 1);
        self.wait(STRIDE * index + STATUS, 1);
    }

    /// Puts a command into place `slot` of queue `index`.
    fn put(&self, index: usize, slot: u64, [first, second]: [u64; 2]) {
        self.nest.word(QUEUES[index] + 16 * slot, first);
        self.nest.word(QUEUES[index] + 16 * slot + 8, second);
    }

    /// Sends commands to the empty queue 0 from `from`, and waits for them.
    fn send(&self, from: u32, commands: &[[u64; 2]]) {
        let mut next = from;
        for &command in commands {
            self.put(0, u64::from(next % 16), command);
            next += 1;
        }
        self.store(PROD, next);
        self.wait(CONS, next);
    }

    /// Lets IOVA lead to the page with the 9.
    fn remap(&self) {
        self.nest.word(0x4000, 0x9000 | 1 << 10 | 1 << 6 | 3);
    }

    fn found(&self) -> Option<u8> {
        self.nest.reads(IOVA)
    }

    fn destroy(&self, id: u32) -> std::result::Result<i64, Errno> {
        self.nest.fixture.destroy(id).map_err(|error| error.errno)
    }
}

#[test]
fn only_whoever_has_a_cmdqv_says_so() {
    let info = |iommu: Iommu, wanted| {
        let fixture = Fixture::on(TestMachine::with(iommu));
        let bound = fixture.device();
        let mut cmd = abi::HwInfo {
            size: 32,
            flags: abi::HW_INFO_FLAG_INPUT_TYPE,
            dev_id: bound.id(),
            data_len: 8,
            data_uptr: DATA,
            data_type: wanted,
            ..Default::default()
        };
        let answer = fixture.call(abi::GET_HW_INFO, &mut cmd).map_err(|error| error.errno);
        let mut bytes = [0; 8];
        fixture.client.memory.read(DATA, &mut bytes).unwrap();
        answer.map(|_| (cmd.data_type, cmd.data_len, bytes))
    };
    let cmdqv = abi::HW_INFO_TYPE_TEGRA241_CMDQV;
    // Flags; version, lg2 of queues and of stream ids; reserved.
    assert_eq!(info(machine(), cmdqv), Ok((cmdqv, 8, [0, 0, 0, 0, 1, 1, 4, 0])));
    let smmu = abi::HW_INFO_TYPE_ARM_SMMUV3;
    assert_eq!(info(machine(), smmu).unwrap().0, smmu);
    assert_eq!(info(machine(), abi::HW_INFO_TYPE_DEFAULT).unwrap().0, smmu);
    assert_eq!(info(Iommu::new(IommuKind::Smmuv3), cmdqv), Err(Errno::EOPNOTSUPP));
    let other = Iommu { kind: IommuKind::Vtd, ..machine() };
    assert_eq!(info(other, cmdqv), Err(Errno::EOPNOTSUPP));
}

#[test]
fn an_interface_is_judged_as_linux_does() {
    let cmdqv = abi::VIOMMU_TYPE_TEGRA241_CMDQV;
    let errno = |result: Result<u32>| result.unwrap_err().errno;
    let nest = Nest::on(Iommu::new(IommuKind::Smmuv3));
    assert_eq!(errno(nest.viommu_with(cmdqv, 16)), Errno::EOPNOTSUPP);
    let nest = Nest::on(machine());
    for length in [0, 15, 17] {
        assert_eq!(errno(nest.viommu_with(cmdqv, length)), Errno::EINVAL, "{length}");
    }
    nest.viommu_with(cmdqv, 16).unwrap();
    let mut said = abi::ViommuTegra241Cmdqv::default();
    nest.fixture.client.memory.read(DATA, said.as_mut_bytes()).unwrap();
    let place = abi::ViommuTegra241Cmdqv {
        out_vintf_mmap_offset: 1 << 40,
        out_vintf_mmap_length: 0x1_0000,
    };
    assert_eq!(said, place);
    // One of the 64 is the host's.
    let rest: Vec<_> = (2..64).map(|_| nest.viommu_with(cmdqv, 16).unwrap()).collect();
    assert_eq!(errno(nest.viommu_with(cmdqv, 16)), Errno::ENOSPC);
    nest.fixture.destroy(rest[7]).unwrap();
    nest.viommu_with(cmdqv, 16).unwrap();
}

#[test]
fn an_interface_matches_sixteen_stream_ids_of_twenty_bits() {
    let guest = Guest::new();
    let errno = |result: Result<u32>| result.unwrap_err().errno;
    assert_eq!(errno(guest.nest.vdevice(guest.viommu, 1 << 20)), Errno::EINVAL);
    guest.nest.vdevice(guest.viommu, (1 << 20) - 1).unwrap();
    let bounds: Vec<_> = (0..16).map(|_| guest.nest.fixture.device()).collect();
    let join = |bound: &Bound, virt_id| {
        let mut cmd = abi::VdeviceAlloc {
            size: 24,
            viommu_id: guest.viommu,
            dev_id: bound.id(),
            out_vdevice_id: 0,
            virt_id,
        };
        let answer = guest.nest.fixture.call(abi::VDEVICE_ALLOC, &mut cmd);
        answer.map(|_| cmd.out_vdevice_id).map_err(|error| error.errno)
    };
    let joined: Vec<_> = (0..15).zip(&bounds).map(|(id, bound)| join(bound, id)).collect();
    assert!(joined.iter().all(std::result::Result::is_ok));
    assert_eq!(join(&bounds[15], 3), Err(Errno::EEXIST), "before there is no room");
    assert_eq!(join(&bounds[15], 99), Err(Errno::ENOSPC));
    guest.destroy(joined[4].unwrap()).unwrap();
    join(&bounds[15], 99).unwrap();
}

#[test]
fn a_queue_is_refused_in_linuxs_order() {
    let guest = Guest::new();
    let good = guest.ask();
    let errno = |ask| guest.queue(ask).unwrap_err().errno;
    let refused = [
        (Errno::EOPNOTSUPP, abi::HwQueueAlloc { type_: 2, index: 9, ..good }),
        (Errno::ENOENT, abi::HwQueueAlloc { nesting_parent_iova: 1 << 40, index: 9, ..good }),
        (Errno::EINVAL, abi::HwQueueAlloc { index: 2, ..good }),
        (Errno::EIO, abi::HwQueueAlloc { index: 1, length: 33, ..good }),
        (Errno::EINVAL, abi::HwQueueAlloc { length: 16, ..good }),
        (Errno::EINVAL, abi::HwQueueAlloc { length: 0x180, ..good }),
        (Errno::EINVAL, abi::HwQueueAlloc { nesting_parent_iova: QUEUES[0] + 0x80, ..good }),
        (
            Errno::EINVAL,
            abi::HwQueueAlloc { nesting_parent_iova: QUEUES[0] + 8, length: 32, ..good },
        ),
    ];
    for (expected, ask) in refused {
        assert_eq!(errno(ask), expected, "{ask:?}");
    }
    let first = guest.queue(good).unwrap();
    assert_eq!(errno(abi::HwQueueAlloc { length: 33, ..good }), Errno::EEXIST);
    guest.destroy(first).unwrap();
    // 32 bytes are two commands, and may lie anywhere aligned.
    let base = QUEUES[0] + 0xfe0;
    guest.queue(abi::HwQueueAlloc { nesting_parent_iova: base, length: 32, ..good }).unwrap();
}

#[test]
fn a_virtual_iommu_without_an_interface_has_no_queues() {
    let guest = Guest::new();
    let plain = guest.nest.viommu_with(abi::VIOMMU_TYPE_ARM_SMMUV3, 0).unwrap();
    let ask = abi::HwQueueAlloc { viommu_id: plain, ..guest.ask() };
    assert_eq!(guest.queue(ask).unwrap_err().errno, Errno::EOPNOTSUPP);
}

#[test]
fn a_queue_has_eight_mebibytes_at_most() {
    let guest = Guest::new();
    let (base, length) = (1 << 30, 16 << 20);
    let memory = Arc::new(Memory::new(0, length).unwrap());
    let request = MapRequest {
        space: memory,
        address: 0,
        length: length as u64,
        place: Place::Fixed(Iova(base)),
        prot: Prot::READ | Prot::WRITE,
        account: ACCOUNT,
    };
    guest.nest.fixture.context.map(guest.nest.ioas, request).unwrap();
    let long = |length| {
        guest.queue(abi::HwQueueAlloc { length, nesting_parent_iova: base, ..guest.ask() })
    };
    assert_eq!(long(16 << 20).unwrap_err().errno, Errno::EINVAL);
    long(8 << 20).unwrap();
}

#[test]
fn a_queue_lies_in_one_piece() {
    let guest = Guest::new();
    let Nest { fixture, ioas, .. } = &guest.nest;
    for (page, from) in [(0, 0x5000), (1, 0x4000)] {
        fixture.map_at(*ioas, (1 << 30) + page * 0x1000, from, 0x1000).unwrap();
    }
    let ask = |length| abi::HwQueueAlloc { length, nesting_parent_iova: 1 << 30, ..guest.ask() };
    assert_eq!(guest.queue(ask(0x2000)).unwrap_err().errno, Errno::EFAULT);
    guest.queue(ask(0x1000)).unwrap();
}

#[test]
fn queues_come_in_ascending_order_and_go_in_descending_order() {
    let guest = Guest::new();
    let (first, second) = (guest.start(0), guest.start(1));
    assert_eq!(guest.destroy(first), Err(Errno::EBUSY));
    assert_eq!(guest.destroy(guest.viommu), Err(Errno::EBUSY));
    guest.destroy(second).unwrap();
    guest.destroy(first).unwrap();
    guest.page.mapped.store(true, Ordering::Release);
    assert_eq!(guest.destroy(guest.viommu), Err(Errno::EBUSY), "a program has its page");
    guest.page.mapped.store(false, Ordering::Release);
    guest.destroy(guest.viommu).unwrap();
}

#[test]
fn no_queue_follows_one_that_is_being_destroyed() {
    let guest = Guest::new();
    let first = guest.start(0);
    // DESTROY has taken it out of the table and gets no further.
    let taken = guest.nest.fixture.context.objects().remove(first).unwrap();
    let errno = |index| guest.queue(abi::HwQueueAlloc { index, ..guest.ask() }).unwrap_err().errno;
    assert_eq!((errno(1), errno(0)), (Errno::EIO, Errno::EEXIST));
    taken.retire();
    guest.start(0);
    guest.start(1);
}

#[test]
fn a_queues_memory_cannot_be_unmapped_while_the_hardware_reads_it() {
    let guest = Guest::new();
    let queue = guest.start(0);
    let unmap = || guest.nest.fixture.unmap(guest.nest.ioas, 0, GUEST);
    assert_eq!(unmap().unwrap_err().errno, Errno::EBUSY);
    guest.destroy(queue).unwrap();
    unmap().unwrap();
}

#[test]
fn an_old_translation_stands_until_the_queue_has_carried_out_its_invalidation() {
    let guest = Guest::new();
    guest.attach();
    guest.start(0);
    assert_eq!(guest.found(), Some(8));
    guest.remap();
    guest.put(0, 0, TLBI_VA);
    guest.put(0, 1, SYNC);
    guest.store(PROD, 2);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((guest.found(), guest.load(CONS)), (Some(8), 0), "the queue is not enabled");
    guest.enable(0);
    guest.wait(CONS, 2);
    assert_eq!(guest.found(), Some(9));
}

#[test]
fn a_command_is_done_when_no_dma_uses_what_it_took_away() {
    let guest = Guest::new();
    guest.attach();
    guest.start(0);
    guest.enable(0);
    assert_eq!(guest.found(), Some(8));
    let section = guest.nest.bound.endpoint().section(0);
    section.translate(Iova(IOVA), 1, Prot::READ).unwrap();
    guest.put(0, 0, TLBI_VA);
    guest.store(PROD, 1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(guest.load(CONS), 0, "DMA that has begun may use the old translation");
    drop(section);
    guest.wait(CONS, 1);
}

#[test]
fn commands_reach_what_they_name() {
    let guest = Guest::new();
    guest.attach();
    guest.start(0);
    guest.enable(0);
    let atc = |stream: u64| [0x40 | stream << 32, 0];
    let mut at = 0;
    for (command, reaches) in [
        ([0x12, IOVA + 0x1000], false),
        (SYNC, false),
        (TLBI_VA, true),
        ([0x11 | 7 << 48, 0], true),
        // The VMID is the interface's, not the command's.
        ([0x12 | 0xffff << 32, IOVA], true),
        // Two pages from the one before: 4.4.1.
        ([0x12 | 1 << 12, IOVA - 0x1000], true),
        (atc(STREAM), true),
    ] {
        guest.nest.word(0x4000, 0x8000 | 1 << 10 | 1 << 6 | 3);
        guest.send(at, &[TLBI_VA]);
        assert_eq!(guest.found(), Some(8));
        guest.remap();
        guest.send(at + 1, &[command]);
        assert_eq!(guest.found(), Some(if reaches { 9 } else { 8 }), "{command:x?}");
        at += 2;
    }
}

#[test]
fn a_queue_goes_round_as_often_as_it_is_filled() {
    let guest = Guest::new();
    guest.attach();
    guest.start(0);
    guest.enable(0);
    // CONS and PROD have five bits: the index and the wrap bit.
    let mut prod = 0;
    for count in (1..=16).chain([16; 5]) {
        for slot in 0..count {
            guest.put(0, u64::from((prod + slot) % 16), TLBI_VA);
        }
        prod = (prod + count) % 32;
        guest.store(PROD, prod);
        guest.wait(CONS, prod);
        guest.remap();
    }
    assert_eq!(guest.found(), Some(9));
    guest.store(CONFIG, 0);
    guest.wait(STATUS, 0);
    // Switched off, the guest says where it begins again.
    guest.store(CONS, 3);
    guest.store(PROD, 3);
    guest.enable(0);
    guest.send(3, &[SYNC]);
}

/// Takes what the file of a queue of events has.
fn events(guest: &Guest, file: &dyn QueueFile) -> Vec<u64> {
    let client = &guest.nest.fixture.client;
    let count = file.read(client, ARG, 4096).unwrap();
    let mut words = vec![0_u64; usize::try_from(count).unwrap() / 8];
    client.memory.read(ARG, words.as_mut_bytes()).unwrap();
    words
}

#[test]
fn a_queue_in_error_stops_says_so_and_goes_on_when_the_guest_has_seen_it() {
    let guest = Guest::new();
    guest.attach();
    let mut cmd = abi::VeventqAlloc {
        size: 32,
        viommu_id: guest.viommu,
        type_: abi::VEVENTQ_TYPE_TEGRA241_CMDQV,
        veventq_depth: 8,
        ..Default::default()
    };
    guest.nest.fixture.call(abi::VEVENTQ_ALLOC, &mut cmd).unwrap();
    let file = guest.nest.fixture.client.take_file();
    let file = file.queue().unwrap();
    for index in 0..2 {
        guest.start(index);
        guest.enable(u64::from(index));
    }
    assert_eq!(guest.found(), Some(8));
    guest.remap();
    // A command of the host's, and behind it one that would be carried out.
    let second = STRIDE;
    guest.put(1, 0, SYNC);
    guest.put(1, 1, [0x20, 0]);
    guest.put(1, 2, TLBI_VA);
    guest.store(second + PROD, 3);
    guest.wait(second + GERROR, 1);
    assert_eq!(guest.load(second + CONS), 1 | 1 << 24, "CERROR_ILL, at the command");
    assert_eq!((guest.load(GERROR), guest.found()), (0, Some(8)));
    // The other queue goes on, and into error too.
    guest.send(0, &[SYNC]);
    guest.put(0, 1, [0x40 | (STREAM + 1) << 32, 0]);
    guest.store(PROD, 2);
    guest.wait(GERROR, 1);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut heard = Vec::new();
    while heard.len() < 6 {
        heard.extend(events(&guest, file));
        assert!(Instant::now() < deadline, "{heard:x?}");
    }
    assert_eq!(heard, [0, 0b10, 0, 1 << 32, 0b11, 0]);
    // As Linux's driver: the command becomes a CMD_SYNC, then GERRORN follows GERROR.
    guest.put(1, 1, SYNC);
    guest.store(second + GERRORN, 1);
    guest.wait(second + CONS, 3);
    assert_eq!(guest.found(), Some(9));
    assert_eq!(guest.load(CONS), 1 | 1 << 24, "the other waits");
    assert_eq!(events(&guest, file), []);
}

#[test]
fn commands_that_are_not_a_guests_are_illegal() {
    let guest = Guest::new();
    guest.attach();
    guest.start(0);
    guest.enable(0);
    let mut gerror = 0;
    // CFGI_CD, TLBI_NH_ALL, TLBI_NH_VAA, TLBI_S12_VMALL, TLBI_NSNH_ALL, a reserved CS, nothing.
    for first in [0x05 | STREAM << 32, 0x10, 0x13, 0x28, 0x30, 0x46 | 3 << 12, 0xff] {
        guest.put(0, 0, [first, 0]);
        guest.store(PROD, 1);
        gerror ^= 1;
        guest.wait(GERROR, gerror);
        assert_eq!(guest.load(CONS), 1 << 24, "{first:#x}");
        guest.store(CONFIG, 0);
        guest.wait(STATUS, 0);
        guest.store(CONS, 0);
        guest.store(PROD, 0);
        guest.store(GERRORN, gerror);
        guest.enable(0);
    }
}

#[test]
fn queues_come_and_go_beside_their_guest_and_its_device() {
    let guest = Guest::new();
    guest.attach();
    for slot in 0..16 {
        guest.put(0, slot, if slot % 2 == 0 { TLBI_VA } else { SYNC });
    }
    let (page, endpoint) = (Arc::clone(&guest.page), Arc::clone(guest.nest.bound.endpoint()));
    let (ended, deadline) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(60));
    let running = || !ended.load(Ordering::Acquire) && Instant::now() < deadline;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut prod = 0_u32;
            while running() {
                prod = prod.wrapping_add(5);
                page.store(PROD, prod % 32).unwrap();
                page.store(CONFIG, u32::from(!prod.is_multiple_of(64))).unwrap();
                page.store(GERRORN, page.load(GERROR).unwrap()).unwrap();
            }
        });
        scope.spawn(|| {
            while running() {
                let mut byte = [0];
                endpoint.read([Segment { iova: Iova(IOVA), length: 1 }], &mut byte).unwrap();
                assert!(matches!(byte, [8 | 9]), "{byte:?}");
            }
        });
        for round in 0..200 {
            let queue = guest.start(0);
            guest.nest.word(0x4000, (0x8000 + 0x1000 * (round % 2)) | 1 << 10 | 1 << 6 | 3);
            guest.destroy(queue).unwrap();
        }
        ended.store(true, Ordering::Release);
    });
    guest.start(0);
    guest.enable(0);
    guest.remap();
    guest.send(0, &[TLBI_VA, SYNC]);
    assert_eq!(guest.found(), Some(9));
}

#[test]
fn every_failed_step_of_an_interface_and_of_its_queue_leaves_nothing() {
    let nest = Nest::on(machine());
    let call = |nest: &mut Nest| nest.viommu_with(abi::VIOMMU_TYPE_TEGRA241_CMDQV, 16);
    let regions = |nest: &Nest| nest.fixture.client.regions.borrow().len();
    let failed = |nest: &mut Nest, nth, answer: Result<u32>| {
        assert_eq!(answer.unwrap_err().errno, Errno::ENOMEM, "step {nth}");
        let held = nest.fixture.client.regions.borrow();
        assert!(held.iter().all(|region| Arc::strong_count(region) == 1), "step {nth}");
        Ok::<_, ()>(())
    };
    let mut nest = nest;
    let (viommu, steps) = inject::fail_each(&mut nest, call, failed).unwrap();
    assert!(steps >= 2, "{steps}");
    assert!(regions(&nest) > 0);
    // All interfaces that a guest can have are still there.
    for _ in 1..63 {
        call(&mut nest).unwrap();
    }
    let page = nest.fixture.client.regions.borrow().last().cloned().unwrap();
    let mut guest = Guest { nest, viommu: viommu.unwrap(), page };
    let queue = |guest: &mut Guest| guest.queue(guest.ask());
    let failed = |guest: &mut Guest, nth, answer: Result<u32>| {
        assert_eq!(answer.unwrap_err().errno, Errno::ENOMEM, "step {nth}");
        let other = abi::HwQueueAlloc { index: 1, ..guest.ask() };
        let errno = guest.queue(other).unwrap_err().errno;
        assert_eq!(errno, Errno::EIO, "step {nth}: the first is not in use");
        Ok::<_, ()>(())
    };
    let (first, steps) = inject::fail_each(&mut guest, queue, failed).unwrap();
    assert!(steps >= 2, "{steps}");
    guest.destroy(first.unwrap()).unwrap();
    guest.nest.fixture.unmap(guest.nest.ioas, 0, GUEST).unwrap();
}

#[test]
fn a_full_queue_is_emptied_up_to_the_command_in_error() {
    let guest = Guest::new();
    let (base, commands) = (QUEUES[0], 0x1000 / 16);
    guest.queue(abi::HwQueueAlloc { length: 0x1000, ..guest.ask() }).unwrap();
    for slot in 0..commands {
        guest.put(0, slot, SYNC);
    }
    let at = 150;
    guest.nest.word(base + at * 16, 0x30);
    // The index is 0 and the wrap bit says that it has gone round.
    guest.store(PROD, 0x100);
    guest.enable(0);
    guest.wait(GERROR, 1);
    assert_eq!(guest.load(CONS), 150 | 1 << 24);
    guest.put(0, at, SYNC);
    guest.store(GERRORN, 1);
    guest.wait(CONS, 0x100);
}

#[test]
fn what_a_guest_scribbles_into_its_page_hurts_nobody_else() {
    let guest = Guest::new();
    guest.attach();
    let queue = guest.start(0);
    guest.enable(0);
    let mut random = 0x1234_5678_u32;
    for round in 0..3000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let register = u64::from(random >> 8) % 0x4000 * 4;
        guest.store(if round % 4 == 0 { register } else { register % 0x100 }, random);
    }
    guest.destroy(queue).unwrap();
    assert_eq!([CONS, PROD, CONFIG, STATUS].map(|register| guest.load(register)), [0; 4]);
    assert_eq!(guest.load(GERROR), guest.load(GERRORN));
    let queue = guest.start(0);
    guest.enable(0);
    guest.remap();
    guest.send(0, &[TLBI_VA, SYNC]);
    assert_eq!(guest.found(), Some(9));
    guest.destroy(queue).unwrap();
}

#[test]
fn a_guest_that_goes_leaves_no_thread_and_no_page() {
    let guest = Guest::new();
    guest.start(0);
    guest.start(1);
    guest.enable(1);
    let (machine, page) = (Arc::clone(&guest.nest.fixture.machine.machine), guest.page);
    guest.nest.fixture.client.regions.borrow_mut().clear();
    let Nest { fixture, bound, .. } = guest.nest;
    drop(bound);
    let Fixture { context, .. } = fixture;
    drop(context);
    assert_eq!(Arc::strong_count(&page), 1, "who looks at the page has ended");
    assert_eq!(machine.phys.windows(), 0);
    assert_eq!(machine.ledger.processes(), []);
}
