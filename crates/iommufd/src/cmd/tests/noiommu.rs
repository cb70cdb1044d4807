//! Devices without an IOMMU: `drivers/iommu/iommufd/hwpt_noiommu.c`, `iommufd_ioas_noiommu_get_pa`.

use std::sync::Arc;

use super::*;
use crate::tests::rig::{ACCOUNT, RW as READ_WRITE};
use crate::{
    Account, AddressSpace, Extents, IovaRange, Kind, Linux, MapRequest, Memory, PAGE_SIZE, Place,
    Prot, Segment,
};
use ioasis_iommupt::Iova;
use proptest::prelude::*;

/// A machine whose devices have no IOMMU, used by somebody who may see physical addresses.
fn fixture() -> Fixture {
    let mut fixture = Fixture::on(TestMachine::with(Iommu::none()));
    fixture.client.account = Account { sys_rawio: true, ..ACCOUNT };
    fixture
}

fn get(ioas_id: u32, iova: u64, length: u64) -> abi::IoasNoiommuGetPa {
    abi::IoasNoiommuGetPa { size: 40, ioas_id, iova, length, ..Default::default() }
}

fn phys(fixture: &Fixture, ioas: u32, iova: u64, length: u64) -> Result<(u64, u64)> {
    let mut cmd = get(ioas, iova, length);
    fixture.call(abi::IOAS_NOIOMMU_GET_PA, &mut cmd)?;
    Ok((cmd.out_phys, cmd.length))
}

fn hwpt(fixture: &Fixture, device: u32, pt_id: u32, flags: u32) -> Result<u32> {
    let mut cmd = abi::HwptAlloc { size: 48, flags, dev_id: device, pt_id, ..Default::default() };
    fixture.call(abi::HWPT_ALLOC, &mut cmd)?;
    Ok(cmd.out_hwpt_id)
}

#[test]
fn physical_addresses_are_refused_in_linuxs_order() {
    let mut fixture = fixture();
    let (ioas, bound) = (fixture.ioas(), fixture.device());
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();
    let mut refused = vec![
        (Errno::EOPNOTSUPP, abi::IoasNoiommuGetPa { flags: 1, ..get(99, u64::MAX, 0) }),
        (Errno::EOPNOTSUPP, abi::IoasNoiommuGetPa { __reserved: 1, ..get(99, u64::MAX, 0) }),
        (Errno::EINVAL, get(99, u64::MAX, 0)),
        (Errno::EOVERFLOW, get(99, u64::MAX, 1)),
        (Errno::ENOENT, get(99, u64::MAX - 1, 1)),
        (Errno::ENOENT, get(bound.id(), 0x1000, 1)),
        (Errno::ENOENT, get(ioas, 0x2000, 1)),
        (Errno::EOPNOTSUPP, get(ioas, 0x1000, 1)),
    ];
    for (errno, cmd) in &mut refused {
        let shown = *cmd;
        assert_eq!(fixture.errno(abi::IOAS_NOIOMMU_GET_PA, cmd), *errno, "{shown:x?}");
    }
    bound.attach(ioas).unwrap();
    phys(&fixture, ioas, 0x1000, 1).unwrap();
    fixture.client.account.sys_rawio = false;
    let mut worst = abi::IoasNoiommuGetPa { flags: 1, ..get(99, u64::MAX, 0) };
    assert_eq!(fixture.errno(abi::IOAS_NOIOMMU_GET_PA, &mut worst), Errno::EPERM);
}

/// Pages of memory in the order of `pages`, which follow each other nowhere else.
#[derive(Debug)]
struct Shuffled {
    memory: Memory,
    pages: Vec<u64>,
}

impl AddressSpace for Shuffled {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.memory)
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        let mut extents = Extents::new();
        for index in address / PAGE_SIZE..(address + length) / PAGE_SIZE {
            let page = self.pages[usize::try_from(index).unwrap()];
            extents.extend(self.memory.pin(page * PAGE_SIZE, PAGE_SIZE, need)?);
        }
        Ok(extents)
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

#[test]
fn a_run_ends_with_what_was_asked_the_area_and_what_follows_physically() {
    let fixture = fixture();
    let (ioas, bound) = (fixture.ioas(), fixture.device());
    bound.attach(ioas).unwrap();
    let memory = Memory::new(0, 0x8000).unwrap();
    let space = Shuffled { memory, pages: vec![4, 5, 6, 2, 3, 0] };
    let request = MapRequest {
        space: Arc::new(space),
        address: 0,
        length: 0x6000,
        place: Place::Fixed(Iova(0x10_0000)),
        prot: READ_WRITE,
        account: ACCOUNT,
    };
    fixture.context.map(ioas, request).unwrap();
    let base = phys(&fixture, ioas, 0x10_5000, 1).unwrap().0;
    for (iova, length, expected) in [
        (0x10_0000, u64::MAX, (0x4000, 0x3000)),
        (0x10_0000, 1, (0x4000, 1)),
        (0x10_0ff8, 0x10, (0x4ff8, 0x10)),
        (0x10_1234, 0x1_0000, (0x5234, 0x1dcc)),
        (0x10_3000, 0x1_0000, (0x2000, 0x2000)),
        (0x10_5fff, 0x1_0000, (0xfff, 1)),
    ] {
        let (out, run) = phys(&fixture, ioas, iova, length).unwrap();
        assert_eq!((out - base, run), expected, "{iova:#x}");
    }
    // What follows physically in another area is another question.
    fixture.map_at(ioas, 0x20_0000, 0, 0x1000).unwrap();
    fixture.map_at(ioas, 0x20_1000, 0x1000, 0x1000).unwrap();
    let first = phys(&fixture, ioas, 0x20_0000, 0x2000).unwrap();
    let second = phys(&fixture, ioas, 0x20_1000, 0x2000).unwrap();
    assert_eq!((first.1, second.0 - first.0), (0x1000, 0x1000));
    fixture.unmap(ioas, 0x20_0000, 0x1000).unwrap();
    assert_eq!(phys(&fixture, ioas, 0x20_0000, 1).unwrap_err().errno, Errno::ENOENT);
}

/// How far a run goes that begins at `iova`, as `iopt_get_phys` counts: page by page, while each
/// lies behind the one before.
fn walked(fixture: &Fixture, ioas: u32, iova: u64, last: u64, length: u64) -> (u64, u64) {
    let page = |iova| phys(fixture, ioas, iova, 1).unwrap().0;
    let start = page(iova);
    let mut run = PAGE_SIZE - iova % PAGE_SIZE;
    while run < length && iova + run <= last && page(iova + run) == start + run {
        run += PAGE_SIZE;
    }
    (start, run.min(length))
}

proptest! {
    #[test]
    fn a_run_is_as_long_as_a_walk_page_by_page_says(
        breaks in proptest::collection::vec(0_u64..3, 1..80),
        questions in proptest::collection::vec((0_u64..80 * 4096, 1_u64..90 * 4096), 1..20),
        huge in any::<bool>(),
    ) {
        let fixture = fixture();
        let (ioas, bound) = (fixture.ioas(), fixture.device());
        fixture.context.ioas(ioas).unwrap().set_huge_pages(huge).unwrap();
        bound.attach(ioas).unwrap();
        // Each page lies behind the one before, or after a gap.
        let pages: Vec<u64> = breaks
            .iter()
            .scan(0, |next, gap| {
                let page = *next + gap;
                *next = page + 1;
                Some(page)
            })
            .collect();
        let (first, length) = (0x10_0000, pages.len() as u64 * PAGE_SIZE);
        let request = MapRequest {
            space: Arc::new(Shuffled { memory: Memory::new(0, 0x40_0000).unwrap(), pages }),
            address: 0,
            length,
            place: Place::Fixed(Iova(first)),
            prot: READ_WRITE,
            account: ACCOUNT,
        };
        fixture.context.map(ioas, request).unwrap();
        for (at, wanted) in questions {
            let iova = first + at % length;
            let expected = walked(&fixture, ioas, iova, first + length - 1, wanted);
            prop_assert_eq!(phys(&fixture, ioas, iova, wanted).unwrap(), expected);
        }
    }
}

#[test]
fn a_buffer_that_was_revoked_has_no_physical_address() {
    let fixture = fixture();
    let (ioas, bound) = (fixture.ioas(), fixture.device());
    let buffer = crate::tests::rig::Buffer::new(&fixture.client.memory);
    let request = MapRequest {
        space: Arc::<crate::tests::rig::Buffer>::clone(&buffer),
        address: 0,
        length: 0x1000,
        place: Place::Fixed(Iova(0)),
        prot: READ_WRITE,
        account: ACCOUNT,
    };
    fixture.context.map(ioas, request).unwrap();
    buffer.revoke();
    let errno = || phys(&fixture, ioas, 0, 1).unwrap_err().errno;
    assert_eq!(errno(), Errno::EINVAL, "before it is asked whose pages they are");
    bound.attach(ioas).unwrap();
    assert_eq!(errno(), Errno::EINVAL);
}

#[test]
fn a_device_without_an_iommu_has_64_bits_no_reserved_ranges_and_no_flags() {
    let fixture = fixture();
    let (ioas, bound) = (fixture.ioas(), fixture.device());
    let table = hwpt(&fixture, bound.id(), ioas, 0).unwrap();
    bound.attach(table).unwrap();
    assert_eq!(fixture.context.ioas(ioas).unwrap().iova_ranges(), (vec![IovaRange::ALL], 0x1000));
    for flags in [
        abi::HWPT_ALLOC_NEST_PARENT,
        abi::HWPT_ALLOC_DIRTY_TRACKING,
        abi::HWPT_ALLOC_PASID,
        1 << 31,
    ] {
        let errno = hwpt(&fixture, bound.id(), ioas, flags).unwrap_err().errno;
        assert_eq!(errno, Errno::EOPNOTSUPP, "{flags:#x}");
    }
    let mut info = abi::HwInfo { size: 40, dev_id: bound.id(), ..Default::default() };
    assert_eq!(fixture.errno(abi::GET_HW_INFO, &mut info), Errno::EOPNOTSUPP);
    let mut viommu = abi::ViommuAlloc {
        size: 40,
        type_: abi::VIOMMU_TYPE_ARM_SMMUV3,
        dev_id: bound.id(),
        hwpt_id: table,
        ..Default::default()
    };
    assert_eq!(fixture.errno(abi::VIOMMU_ALLOC, &mut viommu), Errno::EOPNOTSUPP);
    let pasid = |pt_id| bound.attach_pasid(1, pt_id).unwrap_err().errno;
    assert_eq!((pasid(table), pasid(ioas)), (Errno::EINVAL, Errno::EINVAL));
    // Its DMA reaches nothing, also where the IOAS maps something.
    fixture.map_at(ioas, 0, 0, 0x1000).unwrap();
    let segment = Segment { iova: Iova(0), length: 1 };
    assert!(bound.endpoint().read([segment], &mut [0]).is_err());
}

#[test]
fn a_device_without_an_iommu_takes_any_page_table_and_its_own_is_no_others() {
    let mut fixture = Fixture::new();
    fixture.client.account.sys_rawio = true;
    let none = Arc::new(Iommu::none());
    let group = crate::Group::new(&fixture.machine.machine, &none, 77);
    let unguarded = fixture.context.bind(&fixture.machine.endpoint_in(&group)).unwrap();
    let guarded = fixture.device();
    let (first, second) = (fixture.ioas(), fixture.ioas());
    fixture.map_at(first, 0, 0, 0x1000).unwrap();
    // The page table that is there will do, and then pages are held for a device with an IOMMU.
    let shared = guarded.attach(first).unwrap();
    assert_eq!(unguarded.attach(first), Ok(shared));
    assert_eq!(phys(&fixture, first, 0, 1).unwrap_err().errno, Errno::EOPNOTSUPP);
    // Its own is not for hardware: the other device gets another one.
    let own = unguarded.replace(second).unwrap();
    assert_ne!(guarded.replace(second).unwrap(), own);
    let table = hwpt(&fixture, unguarded.id(), second, 0).unwrap();
    assert_eq!(guarded.replace(table).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(unguarded.replace(table), Ok(table));
    unguarded.detach();
    assert!(!fixture.context.has_group(&group), "nobody owns the group");
}

#[test]
fn two_users_may_bind_a_device_that_nobody_owns_and_leave_nothing() {
    let fixture = fixture();
    let endpoint = fixture.machine.endpoint();
    let other = Context::new(&fixture.machine.machine);
    let bound = [fixture.context.bind(&endpoint).unwrap(), other.bind(&endpoint).unwrap()];
    let ioas = fixture.ioas();
    fixture.map_at(ioas, 0, 0, 0x1000).unwrap();
    bound[0].attach(ioas).unwrap();
    assert!(!bound[1].is_attached());
    drop(bound);
    drop((other, fixture.context));
    fixture.machine.assert_clean();
}

#[test]
fn linux_7_2_knows_no_physical_addresses() {
    let fixture = Fixture::on(TestMachine::of(Linux::V7_2, Iommu::none()));
    assert_eq!(fixture.errno(abi::IOAS_NOIOMMU_GET_PA, &mut get(1, 0, 1)), Errno::ENOTTY);
}
