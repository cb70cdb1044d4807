use super::*;
use crate::hw::ops::ViommuCore;
use crate::tests::rig::ARG;
use crate::{Iova, Linux, Segment};

/// Guest memory: what the nest parent maps from 0 is the client's memory.
pub(super) const GUEST: u64 = 0x20_0000;
pub(super) const DATA: u64 = ARG + 0x2000;

pub(super) struct Nest {
    pub(super) fixture: Fixture,
    pub(super) bound: Bound,
    pub(super) ioas: u32,
    pub(super) parent: u32,
}

impl Nest {
    fn new(kind: IommuKind) -> Self {
        Self::on(Iommu::new(kind))
    }

    pub(super) fn on(iommu: Iommu) -> Self {
        Self::of(Linux::default(), iommu)
    }

    pub(super) fn of(linux: Linux, iommu: Iommu) -> Self {
        let fixture = Fixture::on(TestMachine::of(linux, iommu));
        let (bound, ioas) = (fixture.device(), fixture.ioas());
        fixture.map_at(ioas, 0, 0, GUEST).unwrap();
        let mut cmd = abi::HwptAlloc {
            size: 48,
            flags: abi::HWPT_ALLOC_NEST_PARENT,
            dev_id: bound.id(),
            pt_id: ioas,
            ..Default::default()
        };
        fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
        Self { fixture, bound, ioas, parent: cmd.out_hwpt_id }
    }

    /// A VT-d with a device behind tables of the guest's that map IOVA 0x40_0000 to the page at
    /// 0x8000, which begins with 8, as the next begins with 9.
    fn attached() -> (Self, u32) {
        let nest = Self::new(IommuKind::Vtd);
        nest.x86_tables(0x8000);
        nest.fixture.client.memory.write(BASE + 0x8000, &[8]).unwrap();
        nest.fixture.client.memory.write(BASE + 0x9000, &[9]).unwrap();
        let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
        let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
        nest.bound.attach(nested).unwrap();
        (nest, nested)
    }

    /// Puts a word at a guest physical address.
    pub(super) fn word(&self, address: u64, word: u64) {
        self.fixture.client.memory.write(BASE + address, &word.to_le_bytes()).unwrap();
    }

    pub(super) fn alloc<T: IntoBytes + Immutable>(
        &self,
        pt_id: u32,
        data_type: u32,
        data: &T,
    ) -> Result<u32> {
        self.fixture.client.memory.write(DATA, data.as_bytes()).unwrap();
        let mut cmd = abi::HwptAlloc {
            size: 48,
            dev_id: self.bound.id(),
            pt_id,
            data_type,
            data_len: u32::try_from(size_of::<T>()).unwrap(),
            data_uptr: DATA,
            ..Default::default()
        };
        self.fixture.call(abi::HWPT_ALLOC, &mut cmd)?;
        Ok(cmd.out_hwpt_id)
    }

    fn viommu(&self, kind: u32) -> Result<u32> {
        self.viommu_with(kind, 0)
    }

    /// A virtual IOMMU with so many bytes of data.
    pub(super) fn viommu_with(&self, kind: u32, data_len: u32) -> Result<u32> {
        let mut cmd = abi::ViommuAlloc {
            size: 40,
            type_: kind,
            dev_id: self.bound.id(),
            hwpt_id: self.parent,
            data_len,
            data_uptr: DATA,
            ..Default::default()
        };
        self.fixture.call(abi::VIOMMU_ALLOC, &mut cmd)?;
        Ok(cmd.out_viommu_id)
    }

    pub(super) fn vdevice(&self, viommu_id: u32, virt_id: u64) -> Result<u32> {
        let mut cmd = abi::VdeviceAlloc {
            size: 24,
            viommu_id,
            dev_id: self.bound.id(),
            out_vdevice_id: 0,
            virt_id,
        };
        self.fixture.call(abi::VDEVICE_ALLOC, &mut cmd)?;
        Ok(cmd.out_vdevice_id)
    }

    pub(super) fn invalidate<T: IntoBytes + Immutable>(
        &self,
        id: u32,
        data_type: u32,
        requests: &[T],
    ) -> (Result<i64>, u32) {
        self.fixture.client.memory.write(DATA, requests.as_bytes()).unwrap();
        let mut cmd = abi::HwptInvalidate {
            size: 32,
            hwpt_id: id,
            data_uptr: DATA,
            data_type,
            entry_len: u32::try_from(size_of::<T>()).unwrap(),
            entry_num: u32::try_from(requests.len()).unwrap(),
            __reserved: 0,
        };
        let answer = self.fixture.call(abi::HWPT_INVALIDATE, &mut cmd);
        (answer, cmd.entry_num)
    }

    /// The byte a device reads at `iova`.
    pub(super) fn reads(&self, iova: u64) -> Option<u8> {
        let mut byte = [0];
        let segment = Segment { iova: Iova(iova), length: 1 };
        self.bound.endpoint().read([segment], &mut byte).ok().map(|()| byte[0])
    }

    /// x86-64 tables at 0x1000 that map IOVA 0x40_0000 to the guest physical `page`, writable.
    fn x86_tables(&self, page: u64) {
        for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000)] {
            self.word(table, next | 7);
        }
        self.word(0x3000 + 2 * 8, 0x4000 | 7);
        self.word(0x4000, page | 7);
    }
}

#[test]
fn a_vtd_first_stage_is_walked_in_guest_memory_and_cached_until_invalidated() {
    let (nest, nested) = Nest::attached();
    assert_eq!(nest.reads(0x40_0000), Some(8));
    assert_eq!(nest.reads(0x40_1000), None);
    nest.word(0x4000, 0x9000 | 7);
    assert_eq!(nest.reads(0x40_0000), Some(8), "the old translation is cached");
    let other = abi::HwptVtdS1Invalidate { addr: 0x50_0000, npages: 1, flags: 0, __reserved: 0 };
    let this = abi::HwptVtdS1Invalidate { addr: 0x40_0000, ..other };
    assert_eq!(nest.invalidate(nested, abi::HWPT_INVALIDATE_DATA_VTD_S1, &[other]), (Ok(0), 1));
    assert_eq!(nest.reads(0x40_0000), Some(8));
    assert_eq!(
        nest.invalidate(nested, abi::HWPT_INVALIDATE_DATA_VTD_S1, &[other, this]),
        (Ok(0), 2)
    );
    assert_eq!(nest.reads(0x40_0000), Some(9));
    assert_eq!(nest.fixture.destroy(nest.parent).unwrap_err().errno, Errno::EBUSY);
}

#[test]
fn what_a_guests_table_said_is_forgotten_when_memory_under_it_is_unmapped() {
    let (nest, _) = Nest::attached();
    nest.fixture.map_at(nest.ioas, GUEST, 0, 0x1000).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(8));
    nest.word(0x4000, 0x9000 | 7);
    assert_eq!(nest.reads(0x40_0000), Some(8), "it is remembered");
    nest.fixture.unmap(nest.ioas, GUEST, 0x1000).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(9), "as in Linux, whatever was unmapped");
    nest.fixture.unmap(nest.ioas, 0, GUEST).unwrap();
    assert_eq!(nest.reads(0x40_0000), None);
}

/// A device that walks a guest's table whose page is not there keeps only those waiting who take
/// that page away.
#[test]
fn an_unmap_does_not_wait_for_a_guests_table_that_is_not_there() {
    let nest = Nest::new(IommuKind::Vtd);
    nest.x86_tables(0x8000);
    nest.fixture.client.memory.write(BASE + 0x8000, &[8]).unwrap();
    let slow = crate::tests::rig::Slow::new(0x2000, true);
    let table = |iova: u64| crate::MapRequest {
        space: Arc::new(slow.clone()),
        address: iova - GUEST,
        length: 0x1000,
        place: crate::Place::Fixed(Iova(iova)),
        prot: crate::tests::rig::RW,
        account: crate::tests::rig::ACCOUNT,
    };
    for iova in [GUEST, GUEST + 0x1000] {
        nest.fixture.context.map(nest.ioas, table(iova)).unwrap();
    }
    slow.memory().write(0, &(0x2000_u64 | 7).to_le_bytes()).unwrap();
    let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: GUEST, addr_width: 48, __reserved: 0 };
    let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
    nest.bound.attach(nested).unwrap();
    slow.hold();
    let (endpoint, context) =
        (Arc::clone(nest.bound.endpoint()), Arc::clone(&nest.fixture.context));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut byte = [0];
            let segment = Segment { iova: Iova(0x40_0000), length: 1 };
            endpoint.read([segment], &mut byte).map(|()| byte[0])
        });
        slow.until_somebody_waits();
        assert_eq!(nest.fixture.unmap(nest.ioas, GUEST + 0x1000, 0x1000).unwrap(), 0x1000);
        let unmapped = scope.spawn(|| {
            let range = crate::IovaRange::new(Iova(GUEST), 0x1000).unwrap();
            context.unmap(nest.ioas, range, 1).unwrap().bytes
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!unmapped.is_finished(), "the table is being read");
        slow.give();
        assert_eq!(unmapped.join().unwrap(), 0x1000);
        assert!(reader.join().unwrap().is_err(), "what was walked counts no more");
    });
}

#[test]
fn a_vtd_first_stage_grants_what_both_stages_grant() {
    let nest = Nest::new(IommuKind::Vtd);
    nest.x86_tables(0x8000);
    nest.word(0x4000, 0x8000 | 5);
    // Beyond what the parent maps.
    nest.word(0x4008, GUEST | 7);
    let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
    let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
    nest.bound.attach(nested).unwrap();
    assert!(nest.reads(0x40_0000).is_some());
    // VT-d 3.6: addresses of a first stage are canonical; the upper half has its own entries.
    nest.word(0x1000 + 511 * 8, 0x2000 | 7);
    assert!(nest.reads(0xffff_ff80_0040_0000).is_some());
    assert_eq!(nest.reads(0x8000_0040_0000), None);
    let segment = Segment { iova: Iova(0x40_0000), length: 1 };
    assert!(nest.bound.endpoint().write([segment], &[1]).is_err(), "read-only in the first stage");
    assert_eq!(nest.reads(0x40_1000), None);
}

#[test]
fn nested_page_tables_are_refused_in_linuxs_order() {
    let nest = Nest::new(IommuKind::Vtd);
    let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
    let errno = |result: Result<u32>| result.unwrap_err().errno;
    assert_eq!(
        errno(nest.alloc(nest.parent, abi::HWPT_DATA_ARM_SMMUV3, &table)),
        Errno::EOPNOTSUPP
    );
    assert_eq!(
        errno(nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &0_u64)),
        Errno::EINVAL,
        "too short"
    );
    assert_eq!(
        errno(nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &[table.pgtbl_addr; 4])),
        Errno::EINVAL,
        "longer than the struct, whatever it holds (include/linux/iommu.h)"
    );
    let odd = abi::HwptVtdS1 { addr_width: 39, ..table };
    assert_eq!(errno(nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &odd)), Errno::EINVAL);
    let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
    assert_eq!(
        errno(nest.alloc(nested, abi::HWPT_DATA_VTD_S1, &table)),
        Errno::EINVAL,
        "a parent is no child"
    );
    let mut plain = abi::HwptAlloc {
        size: 48,
        dev_id: nest.bound.id(),
        pt_id: nest.parent,
        ..Default::default()
    };
    assert_eq!(nest.fixture.errno(abi::HWPT_ALLOC, &mut plain), Errno::EOPNOTSUPP, "no data");
    let flat = nest.fixture.ioas();
    let mut flat =
        abi::HwptAlloc { size: 48, dev_id: nest.bound.id(), pt_id: flat, ..Default::default() };
    nest.fixture.call(abi::HWPT_ALLOC, &mut flat).unwrap();
    assert_eq!(
        errno(nest.alloc(flat.out_hwpt_id, abi::HWPT_DATA_VTD_S1, &table)),
        Errno::EINVAL,
        "no nest parent"
    );
    assert_eq!(errno(nest.viommu(abi::VIOMMU_TYPE_ARM_SMMUV3)), Errno::EOPNOTSUPP);
}

#[test]
fn invalidations_count_what_was_carried_out() {
    let nest = Nest::new(IommuKind::Vtd);
    let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
    let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
    let good = abi::HwptVtdS1Invalidate { addr: 0, npages: u64::MAX, flags: 1, __reserved: 0 };
    let kind = abi::HWPT_INVALIDATE_DATA_VTD_S1;
    let errno = |(answer, done): (Result<i64>, u32)| (answer.unwrap_err().errno, done);
    let bad = abi::HwptVtdS1Invalidate { flags: 2, ..good };
    assert_eq!(errno(nest.invalidate(nested, kind, &[good, bad, good])), (Errno::EOPNOTSUPP, 1));
    let bad = abi::HwptVtdS1Invalidate { addr: 0x1000, ..good };
    assert_eq!(errno(nest.invalidate(nested, kind, &[bad])), (Errno::EINVAL, 0));
    assert_eq!(errno(nest.invalidate(nested, 77, &[good])), (Errno::EINVAL, 0));
    assert_eq!(errno(nest.invalidate(99, kind, &[good])), (Errno::ENOENT, 0));
    assert_eq!(errno(nest.invalidate(nest.parent, kind, &[good])), (Errno::EINVAL, 0));
    assert_eq!(
        nest.invalidate::<abi::HwptVtdS1Invalidate>(nested, kind, &[]),
        (Ok(0), 0),
        "a probe"
    );
}

/// A valid stream table entry with one context descriptor at 0x5000.
pub(super) const STE: abi::HwptArmSmmuv3 = abi::HwptArmSmmuv3 { ste: [1 | 5 << 1 | 0x5000, 0] };

/// Tables for [`STE`] that map IOVA 0x40_0000 to 0x8000, where the guest's memory has an 8; at
/// 0x9000 it has a 9.
pub(super) fn arm_tables(nest: &Nest) {
    // 5.4: valid, AArch64, 48 bits, 4 KiB; TTB0 at 0x1000.
    nest.word(0x5000, 1 << 31 | 1 << 41 | 16);
    nest.word(0x5008, 0x1000);
    for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000)] {
        nest.word(table, next | 3);
    }
    nest.word(0x3000 + 2 * 8, 0x4000 | 3);
    nest.word(0x4000, 0x8000 | 1 << 10 | 1 << 6 | 3);
    nest.fixture.client.memory.write(BASE + 0x8000, &[8]).unwrap();
    nest.fixture.client.memory.write(BASE + 0x9000, &[9]).unwrap();
}

fn smmu() -> (Nest, u32) {
    let nest = Nest::new(IommuKind::Smmuv3);
    arm_tables(&nest);
    let viommu = nest.viommu(abi::VIOMMU_TYPE_ARM_SMMUV3).unwrap();
    (nest, viommu)
}

#[test]
fn an_smmu_guest_translates_through_its_context_descriptor() {
    let (nest, viommu) = smmu();
    let nested = nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &STE).unwrap();
    assert_eq!(
        nest.bound.attach(nested).unwrap_err().errno,
        Errno::ENOENT,
        "it has no virtual id yet"
    );
    nest.vdevice(viommu, 0x18).unwrap();
    nest.bound.attach(nested).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(8));
    nest.word(0x4000, 0x9000 | 1 << 10 | 1 << 6 | 3);
    assert_eq!(nest.reads(0x40_0000), Some(8));
    let kind = abi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
    let by_address = abi::ViommuArmSmmuv3Invalidate { cmd: [0x12, 0x40_0000] };
    let forbidden = abi::ViommuArmSmmuv3Invalidate { cmd: [0x20, 0] };
    let (answer, done) = nest.invalidate(viommu, kind, &[by_address, forbidden]);
    assert_eq!((answer.unwrap_err().errno, done), (Errno::EIO, 1));
    assert_eq!(nest.reads(0x40_0000), Some(9));
    let stranger = abi::ViommuArmSmmuv3Invalidate { cmd: [0x05 | 0x19 << 32, 0] };
    assert_eq!(nest.invalidate(viommu, kind, &[stranger]).0.unwrap_err().errno, Errno::EIO);
    let known = abi::ViommuArmSmmuv3Invalidate { cmd: [0x05 | 0x18 << 32, 0] };
    assert_eq!(nest.invalidate(viommu, kind, &[known]), (Ok(0), 1));
}

#[test]
fn a_guest_with_context_descriptors_has_every_pasid_of_its_device() {
    let (nest, viommu) = smmu();
    // A second descriptor, whose tables end at another page.
    nest.word(0x5040, 1 << 31 | 1 << 41 | 16);
    nest.word(0x5048, 0xa000);
    for (table, next) in [(0xa000, 0xb000), (0xb000, 0xc000)] {
        nest.word(table, next | 3);
    }
    nest.word(0xc000 + 2 * 8, 0xd000 | 3);
    nest.word(0xd000, 0x9000 | 1 << 10 | 1 << 6 | 3);
    let two = abi::HwptArmSmmuv3 { ste: [STE.ste[0] | 1 << 59, 0] };
    let nested = nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &two).unwrap();
    nest.vdevice(viommu, 0x18).unwrap();
    let read = |pasid| {
        let segment = Segment { iova: Iova(0x40_0000), length: 1 };
        let mut byte = [0];
        let done = nest.bound.endpoint().with_pasid(pasid).read([segment], &mut byte);
        done.ok().map(|()| byte[0])
    };
    assert_eq!(read(1), None, "nothing is attached");
    nest.bound.attach(nested).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(8));
    assert_eq!(read(1), Some(9));
    assert_eq!(read(2), None, "beyond the table");
    nest.bound.detach();
    assert_eq!(read(1), None);
}

/// VT-d 3.6.1: U/S is bit 2, in every level.
#[test]
fn a_device_is_kept_off_what_a_guest_keeps_for_the_privileged() {
    for (entry, word) in [(0x4000, 0x8000 | 3), (0x2000, 0x3000 | 3)] {
        let nest = Nest::new(IommuKind::Vtd);
        nest.x86_tables(0x8000);
        nest.word(entry, word);
        let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
        let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
        nest.bound.attach(nested).unwrap();
        assert_eq!(nest.reads(0x40_0000), None, "U/S is clear at {entry:#x}");
    }
}

/// SMMUv3 5.4: AFFD is bit 35 of a context descriptor, HA bit 43; AF is bit 10 of a leaf.
#[test]
fn an_smmu_leaf_without_its_access_flag_faults_unless_the_context_says_otherwise() {
    for (context, expected) in [(0, None), (1 << 35, Some(8)), (1 << 43, Some(8))] {
        let (nest, viommu) = smmu();
        nest.word(0x5000, 1 << 31 | 1 << 41 | 16 | context);
        nest.word(0x4000, 0x8000 | 1 << 6 | 3);
        let nested = nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &STE).unwrap();
        nest.vdevice(viommu, 0x18).unwrap();
        nest.bound.attach(nested).unwrap();
        assert_eq!(nest.reads(0x40_0000), expected, "context {context:#x}");
        nest.word(0x4000, 0x8000 | 1 << 10 | 1 << 6 | 3);
        assert_eq!(nest.reads(0x40_0000), Some(8), "the guest has set it");
    }
}

#[test]
fn a_table_that_is_attached_again_is_walked_again() {
    let nest = Nest::new(IommuKind::Vtd);
    nest.x86_tables(0x8000);
    nest.fixture.client.memory.write(BASE + 0x9000, &[9]).unwrap();
    let table = abi::HwptVtdS1 { flags: 0, pgtbl_addr: 0x1000, addr_width: 48, __reserved: 0 };
    let nested = nest.alloc(nest.parent, abi::HWPT_DATA_VTD_S1, &table).unwrap();
    nest.bound.attach(nested).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(0));
    nest.word(0x4000, 0x9000 | 7);
    assert_eq!(nest.reads(0x40_0000), Some(0));
    nest.bound.detach();
    nest.bound.attach(nested).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(9));
}

#[test]
fn an_smmu_stream_can_bypass_or_abort_without_a_virtual_id() {
    let (nest, viommu) = smmu();
    let bypass = abi::HwptArmSmmuv3 { ste: [1 | 4 << 1, 0] };
    let bypass = nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &bypass).unwrap();
    nest.bound.attach(bypass).unwrap();
    assert_eq!(nest.reads(0x8000), Some(8));
    let abort =
        nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &abi::HwptArmSmmuv3::default()).unwrap();
    nest.bound.replace(abort).unwrap();
    assert_eq!(nest.reads(0x8000), None);
    let foreign = abi::HwptArmSmmuv3 { ste: [1 | 7 << 1, 0] };
    assert_eq!(
        nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &foreign).unwrap_err().errno,
        Errno::EIO
    );
}

#[test]
fn a_guest_hears_of_what_its_device_was_refused() {
    let (nest, viommu) = smmu();
    nest.vdevice(viommu, 0x18).unwrap();
    let mut cmd = abi::VeventqAlloc {
        size: 32,
        viommu_id: viommu,
        type_: abi::VEVENTQ_TYPE_ARM_SMMUV3,
        veventq_depth: 2,
        ..Default::default()
    };
    nest.fixture.call(abi::VEVENTQ_ALLOC, &mut cmd).unwrap();
    let queue = cmd.out_veventq_id;
    assert_eq!(nest.fixture.errno(abi::VEVENTQ_ALLOC, &mut cmd), Errno::EEXIST);
    assert_eq!(nest.fixture.destroy(queue).unwrap_err().errno, Errno::EBUSY);
    let nested = nest.alloc(viommu, abi::HWPT_DATA_ARM_SMMUV3, &STE).unwrap();
    nest.bound.attach(nested).unwrap();
    // What is there and not for devices comes first: AP[1], bit 6, is clear.
    nest.word(0x4008, 0x9000 | 1 << 10 | 3);
    for page in 1..6 {
        assert_eq!(nest.reads(0x40_0000 + page * 0x1000), None);
    }
    let made = nest.fixture.client.take_file();
    let file = made.queue().unwrap();
    let client = &nest.fixture.client;
    assert_eq!(file.read(client, ARG, 7).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(
        file.read(client, ARG, 39).unwrap_err().errno,
        Errno::EINVAL,
        "the first does not fit"
    );
    assert_eq!(file.read(client, ARG, 4096), Ok(40 + 40 + 8));
    let mut words = [0_u64; 11];
    client.memory.read(ARG, words.as_mut_bytes()).unwrap();
    let read = 2 << 40 | 1 << 35;
    assert_eq!(words[..5], [0, 0x13 | 0x18 << 32, read, 0x40_1000, 0], "F_PERMISSION");
    let second = [1 << 32, 0x10 | 0x18 << 32, read, 0x40_2000, 0];
    assert_eq!(words[5..10], second, "F_TRANSLATION");
    assert_eq!(words[10], 4 << 32 | 1, "three were lost; the last has sequence 4");
    assert_eq!(file.read(client, ARG, 4096), Ok(0));
    made.close();
    nest.fixture.destroy(queue).unwrap();
}

#[test]
fn amd_guest_tables_hang_below_a_gcr3_table() {
    let nest = Nest::new(IommuKind::Amd);
    nest.x86_tables(0x8000);
    nest.fixture.client.memory.write(BASE + 0x8000, &[8]).unwrap();
    // GCR3 table at 0x6000: its first entry points at the root.
    nest.word(0x6000, 0x1000 | 1);
    let viommu = nest.viommu(7).unwrap();
    let dte = [1 | 1 << 1 | 1 << 55 | (0x6_u64 & 7) << 58, 0, 0, 0];
    let nested = nest.alloc(viommu, abi::HWPT_DATA_AMD_GUEST, &abi::HwptAmdGuest { dte }).unwrap();
    nest.bound.attach(nested).unwrap();
    assert_eq!(nest.reads(0x40_0000), Some(8));
    nest.fixture.client.memory.write(BASE + 0x9000, &[9]).unwrap();
    nest.word(0x4000, 0x9000 | 7);
    assert_eq!(nest.reads(0x40_0000), Some(9), "no command would invalidate what was remembered");
    let no_root = abi::HwptAmdGuest { dte: [1 | 1 << 55, 0, 0, 0] };
    assert_eq!(
        nest.alloc(viommu, abi::HWPT_DATA_AMD_GUEST, &no_root).unwrap_err().errno,
        Errno::EINVAL
    );
}

#[test]
fn virtual_ids_are_unique_and_unbinding_keeps_their_object_id() {
    let (nest, viommu) = smmu();
    let vdevice = nest.vdevice(viommu, 5).unwrap();
    assert_eq!(nest.vdevice(viommu, 6).unwrap_err().errno, Errno::EEXIST, "the device has one");
    nest.fixture.destroy(vdevice).unwrap();
    let vdevice = nest.vdevice(viommu, 5).unwrap();
    let Nest { fixture, bound, parent, .. } = nest;
    let other = fixture.device();
    let mut cmd = abi::VdeviceAlloc {
        size: 24,
        viommu_id: viommu,
        dev_id: other.id(),
        out_vdevice_id: 0,
        virt_id: 5,
    };
    assert_eq!(fixture.errno(abi::VDEVICE_ALLOC, &mut cmd), Errno::EEXIST, "the id is taken");
    drop(bound);
    assert_eq!(fixture.destroy(vdevice).unwrap_err().errno, Errno::ENOENT);
    fixture.call(abi::VDEVICE_ALLOC, &mut cmd).unwrap();
    assert_ne!(cmd.out_vdevice_id, vdevice);
    fixture.destroy(cmd.out_vdevice_id).unwrap();
    fixture.destroy(viommu).unwrap();
    fixture.destroy(parent).unwrap();
}

#[test]
fn hardware_queues_are_judged_and_not_there() {
    let (nest, viommu) = smmu();
    let good = abi::HwQueueAlloc {
        size: 40,
        viommu_id: viommu,
        type_: 1,
        length: 0x1000,
        ..Default::default()
    };
    let mut refused = [
        (Errno::EOPNOTSUPP, abi::HwQueueAlloc { type_: 0, length: 0, ..good }),
        (Errno::EINVAL, abi::HwQueueAlloc { length: 0, nesting_parent_iova: u64::MAX, ..good }),
        (
            Errno::EOVERFLOW,
            abi::HwQueueAlloc { nesting_parent_iova: u64::MAX, viommu_id: 99, ..good },
        ),
        (Errno::ENOENT, abi::HwQueueAlloc { viommu_id: 99, ..good }),
        (Errno::EOPNOTSUPP, good),
    ];
    for (errno, cmd) in &mut refused {
        assert_eq!(nest.fixture.errno(abi::HW_QUEUE_ALLOC, cmd), *errno);
    }
}

#[test]
fn unbinding_takes_no_other_object_for_the_virtual_device_that_is_being_destroyed() {
    let (nest, viommu) = smmu();
    let vdevice = nest.vdevice(viommu, 5).unwrap();
    let Nest { fixture, bound, .. } = nest;
    // DESTROY has taken it out of the table and gets no further; its id is somebody else's by now.
    let taken = fixture.context.objects().remove(vdevice).unwrap();
    assert_eq!(fixture.ioas(), vdevice);
    drop(bound);
    taken.retire();
    fixture.destroy(vdevice).unwrap();
}

#[test]
fn unbinding_meets_a_virtual_device_that_is_being_made() {
    let (nest, viommu) = smmu();
    let Nest { fixture, bound, .. } = nest;
    let objects = fixture.context.objects();
    let reservation = objects.reserve().unwrap();
    let (head, viommu) = (crate::object::Head::new(reservation.id()), objects.get(viommu).unwrap());
    let device = objects.get::<crate::device::Device>(bound.id()).unwrap();
    let made = crate::device::vdevice::Vdevice::new(head, &viommu, device.arc(), 5).unwrap();
    drop(bound);
    made.take_id_back();
    assert!(!viommu.with_device(5, &mut |_| ()), "nobody has the id");
}
