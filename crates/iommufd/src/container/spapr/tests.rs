//! One rule a test, by the calls a program makes; the order of checks as in Linux's driver.

use std::sync::Arc;

use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::container::{Container, GroupKind, Member};
use crate::tests::rig::{ACCOUNT, ARG, BASE, TestClient, TestMachine};
use crate::{
    Account, Context, Endpoint, Frozen, HwptFlags, Iommu, IommuKind, Iova, Segment, Spapr,
};

mod clients;
mod huge;

const V1: u32 = abi::SPAPR_TCE_IOMMU;
const V2: u32 = abi::SPAPR_TCE_v2_IOMMU;
const R: u32 = abi::DMA_MAP_FLAG_READ;
const RW: u32 = R | abi::DMA_MAP_FLAG_WRITE;
/// Where the second window begins.
const SECOND: u64 = 1 << 59;
/// Pages of the window that is there without being asked for.
const DEFAULT_PAGES: u64 = (2 << 30) / 4096;

struct Fixture {
    machine: TestMachine,
    client: TestClient,
    container: Arc<Container>,
    endpoint: Arc<Endpoint>,
}

fn iommu(spapr: Spapr) -> Iommu {
    Iommu { spapr: Some(spapr), ..Iommu::new(IommuKind::Spapr) }
}

impl Fixture {
    /// A container with one group and no IOMMU yet.
    fn on(spapr: Spapr) -> Self {
        let machine = TestMachine::with(iommu(spapr));
        let endpoint = machine.endpoint();
        let container = Container::new(&machine.machine);
        let fixture = Self { machine, client: TestClient::new(), container, endpoint };
        fixture.add(&fixture.endpoint).unwrap();
        fixture
    }

    fn new(number: u32) -> Self {
        let fixture = Self::on(Spapr::default());
        fixture.set_iommu(number).unwrap();
        fixture
    }

    /// A container of version 1 that is enabled.
    fn enabled() -> Self {
        let fixture = Self::new(V1);
        fixture.ioctl(abi::IOMMU_ENABLE, 0).unwrap();
        fixture
    }

    /// A container of version 2 with the client's first MiB registered.
    fn registered() -> Self {
        let fixture = Self::new(V2);
        assert_eq!(fixture.register(BASE, 1 << 20), Ok(0));
        fixture
    }

    fn add(&self, endpoint: &Arc<Endpoint>) -> Result<()> {
        let member =
            Member::new(GroupKind::Iommu, endpoint.group(), std::slice::from_ref(endpoint));
        self.container.add_group(&self.client.account, member)
    }

    fn ioctl(&self, code: u32, arg: u64) -> Result<i64> {
        self.container.ioctl(&self.client, code, arg)
    }

    fn set_iommu(&self, number: u32) -> Result<i64> {
        self.ioctl(abi::SET_IOMMU, u64::from(number))
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, code: u32, cmd: &mut T) -> Result<i64> {
        self.client.memory.write(ARG, cmd.as_bytes()).unwrap();
        let answer = self.ioctl(code, ARG);
        self.client.memory.read(ARG, cmd.as_mut_bytes()).unwrap();
        answer
    }

    fn map(&self, flags: u32, iova: u64, vaddr: u64, size: u64) -> Result<i64> {
        self.call(
            abi::IOMMU_MAP_DMA,
            &mut abi::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size },
        )
    }

    fn unmap(&self, flags: u32, iova: u64, size: u64) -> Result<i64> {
        self.call(
            abi::IOMMU_UNMAP_DMA,
            &mut abi::IommuType1DmaUnmap { argsz: 24, flags, iova, size },
        )
    }

    fn range(&self, code: u32, vaddr: u64, size: u64) -> Result<i64> {
        self.call(code, &mut abi::IommuSpaprRegisterMemory { argsz: 24, flags: 0, vaddr, size })
    }

    fn register(&self, vaddr: u64, size: u64) -> Result<i64> {
        self.range(abi::IOMMU_SPAPR_REGISTER_MEMORY, vaddr, size)
    }

    fn unregister(&self, vaddr: u64, size: u64) -> Result<i64> {
        self.range(abi::IOMMU_SPAPR_UNREGISTER_MEMORY, vaddr, size)
    }

    /// Makes a window; where it begins.
    fn create(&self, page_shift: u32, window_size: u64, levels: u32) -> Result<u64> {
        let mut cmd = abi::IommuSpaprTceCreate {
            argsz: 40,
            page_shift,
            window_size,
            levels,
            ..Default::default()
        };
        self.call(abi::IOMMU_SPAPR_TCE_CREATE, &mut cmd).map(|_| cmd.start_addr)
    }

    fn remove(&self, start_addr: u64) -> Result<i64> {
        let size = u32::try_from(size_of::<abi::IommuSpaprTceRemove>()).unwrap();
        let mut cmd = abi::IommuSpaprTceRemove { argsz: size, start_addr, ..Default::default() };
        self.call(abi::IOMMU_SPAPR_TCE_REMOVE, &mut cmd)
    }

    fn eeh(&self, op: u32) -> Result<i64> {
        self.call(abi::EEH_PE_OP, &mut abi::EehPeOp { argsz: 12, op, ..Default::default() })
    }

    /// Whether the device reaches the byte, and that is the client's at `vaddr`.
    fn reaches(&self, iova: u64, vaddr: u64) -> bool {
        let byte = u8::try_from((vaddr >> 12 ^ vaddr) & 0xff).unwrap();
        self.client.memory.write(vaddr, &[byte]).unwrap();
        let mut seen = [!byte];
        let read = self.endpoint.read([Segment { iova: Iova(iova), length: 1 }], &mut seen);
        self.endpoint.group().thaw(Frozen::all());
        read.is_ok() && seen == [byte]
    }

    fn writes(&self, iova: u64) -> bool {
        let wrote = self.endpoint.write([Segment { iova: Iova(iova), length: 1 }], &[1]);
        self.endpoint.group().thaw(Frozen::all());
        wrote.is_ok()
    }

    fn locked(&self) -> u64 {
        self.machine.machine.ledger.process(ACCOUNT.pid).locked
    }

    /// Closes everything; nothing is left.
    fn end(self) {
        let Self { machine, container, .. } = self;
        drop(container);
        machine.assert_clean();
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno
}

#[test]
fn extensions_are_spaprs_alone() {
    let all = |fixture: &Fixture| -> Vec<u64> {
        (0..12).filter(|&number| fixture.ioctl(abi::CHECK_EXTENSION, number) == Ok(1)).collect()
    };
    let fixture = Fixture::on(Spapr::default());
    assert_eq!(all(&fixture), [2, 5, 7]);
    fixture.set_iommu(V2).unwrap();
    assert_eq!(all(&fixture), [2, 5, 7]);
    let fixture = Fixture::on(Spapr { eeh: false, ..Spapr::default() });
    assert_eq!(all(&fixture), [2, 7]);
}

#[test]
fn set_iommu_takes_both_versions_and_nothing_of_type1() {
    let fixture = Fixture::on(Spapr::default());
    for number in [0, 1, 3, 4, 6, 8, 9, 10] {
        assert_eq!(errno(fixture.set_iommu(number)), Errno::ENODEV, "{number}");
    }
    assert_eq!(errno(fixture.set_iommu(abi::EEH)), Errno::EINVAL, "an extension and no type");
    fixture.set_iommu(V1).unwrap();
    assert_eq!(errno(fixture.set_iommu(V2)), Errno::EINVAL);
    let fixture = Fixture::on(Spapr { dynamic_windows: false, ..Spapr::default() });
    assert_eq!(errno(fixture.set_iommu(V2)), Errno::EINVAL, "its windows are fixed");
    fixture.set_iommu(V1).unwrap();
}

#[test]
fn version_1_has_one_group_and_version_2_many() {
    let fixture = Fixture::new(V1);
    let second = fixture.machine.endpoint();
    assert_eq!(errno(fixture.add(&second)), Errno::EBUSY);
    let fixture = Fixture::on(Spapr::default());
    let second = fixture.machine.endpoint();
    fixture.add(&second).unwrap();
    assert_eq!(errno(fixture.set_iommu(V1)), Errno::EBUSY, "there are two before it");
    fixture.set_iommu(V2).unwrap();
    let emulated = Member::new(GroupKind::Emulated, second.group(), &[]);
    assert_eq!(
        errno(fixture.container.add_group(&fixture.client.account, emulated)),
        Errno::EINVAL
    );
}

#[test]
fn each_version_has_its_own_calls() {
    let fixture = Fixture::new(V1);
    let of_v2 = [17, 18, 19, 20].map(|number| 0x3b64 + number);
    for code in of_v2.into_iter().chain([abi::IOMMU_DIRTY_PAGES, 0x1234]) {
        assert_eq!(errno(fixture.ioctl(code, 0)), Errno::ENOTTY, "{code:#x}");
    }
    let fixture = Fixture::new(V2);
    for code in [abi::IOMMU_ENABLE, abi::IOMMU_DISABLE, 0x1234] {
        assert_eq!(errno(fixture.ioctl(code, 0)), Errno::ENOTTY, "{code:#x}");
    }
}

#[test]
fn info_tells_version_2_of_dynamic_windows_as_far_as_there_is_room() {
    let info = |fixture: &Fixture, argsz: u32| {
        let mut info = abi::IommuSpaprTceInfo { argsz, ..Default::default() };
        info.ddw.levels = 77;
        fixture.call(abi::IOMMU_SPAPR_TCE_GET_INFO, &mut info).map(|_| info)
    };
    let fixture = Fixture::new(V2);
    assert_eq!(errno(info(&fixture, 15)), Errno::EINVAL);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_SPAPR_TCE_GET_INFO, 0)), Errno::EFAULT);
    let whole = info(&fixture, 32).unwrap();
    assert_eq!((whole.flags, whole.dma32_window_start, whole.dma32_window_size), (1, 0, 2 << 30));
    let sizes = 1 << 12 | 1 << 16 | 1 << 21 | 1 << 30;
    assert_eq!((whole.ddw.pgsizes, whole.ddw.max_dynamic_windows_supported), (sizes, 2));
    assert_eq!(whole.ddw.levels, 5);
    assert_eq!(info(&fixture, 31).unwrap().ddw.levels, 77, "not written");
    let fixture = Fixture::new(V1);
    let whole = info(&fixture, 32).unwrap();
    assert_eq!((whole.flags, whole.ddw), (0, abi::IommuSpaprTceDdwInfo::default()));
}

#[test]
fn enable_charges_the_whole_window_and_disable_takes_it_back() {
    let fixture = Fixture::new(V1);
    assert_eq!(fixture.ioctl(abi::IOMMU_DISABLE, 0), Ok(0), "nothing to disable");
    assert_eq!(errno(fixture.map(RW, 0, BASE, 4096)), Errno::EPERM);
    assert_eq!(errno(fixture.unmap(0, 0, 4096)), Errno::EPERM);
    fixture.ioctl(abi::IOMMU_ENABLE, 0).unwrap();
    assert_eq!(fixture.locked(), DEFAULT_PAGES);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_ENABLE, 0)), Errno::EBUSY);
    fixture.map(RW, 0, BASE, 4096).unwrap();
    assert_eq!(fixture.locked(), DEFAULT_PAGES + 2048, "and the table, with its copy");
    fixture.ioctl(abi::IOMMU_DISABLE, 0).unwrap();
    assert_eq!(fixture.locked(), 2048);
    assert!(fixture.reaches(0, BASE), "what is mapped stays");
    fixture.end();
}

#[test]
fn enable_is_refused_over_the_limit_and_without_a_window() {
    let mut fixture = Fixture::new(V1);
    fixture.client.account = Account { memlock_pages: Some(DEFAULT_PAGES - 1), ..ACCOUNT };
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_ENABLE, 0)), Errno::ENOMEM);
    fixture.client.account = Account { memlock_pages: Some(DEFAULT_PAGES), ..ACCOUNT };
    fixture.ioctl(abi::IOMMU_ENABLE, 0).unwrap();
    assert_eq!(errno(fixture.map(RW, 0, BASE, 4096)), Errno::ENOMEM, "the table is over it");
    fixture.end();
    let fixture = Fixture::on(Spapr { window: 0, ..Spapr::default() });
    fixture.set_iommu(V1).unwrap();
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_ENABLE, 0)), Errno::EPERM);
}

#[test]
fn another_process_is_refused_once_the_container_is_about_one() {
    let fixture = Fixture::new(V1);
    let other = TestClient::new();
    let info =
        |client: &TestClient| fixture.container.ioctl(client, abi::IOMMU_SPAPR_TCE_GET_INFO, 0);
    assert_eq!(errno(info(&other)), Errno::EFAULT);
    fixture.ioctl(abi::IOMMU_ENABLE, 0).unwrap();
    assert_eq!(errno(info(&other)), Errno::EPERM);
    assert_eq!(errno(fixture.container.ioctl(&other, 0x1234, 0)), Errno::EPERM);
    assert_eq!(fixture.container.ioctl(&other, abi::CHECK_EXTENSION, 7), Ok(1));
    assert_eq!(errno(info(&fixture.client)), Errno::EFAULT);
}

#[test]
fn a_map_is_refused_in_the_drivers_order() {
    let fixture = Fixture::enabled();
    let mut cmd = abi::IommuType1DmaMap { argsz: 31, flags: 8, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::IOMMU_MAP_DMA, &mut cmd)), Errno::EINVAL);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_MAP_DMA, 0)), Errno::EFAULT);
    let beyond = 2 << 30;
    let refused = [
        (4 | RW, beyond, BASE, 4096, Errno::EINVAL),
        (0, beyond, BASE + 1, 4095, Errno::ENXIO),
        (RW, SECOND, BASE, 4096, Errno::ENXIO),
        (RW, 0, BASE, 4095, Errno::EINVAL),
        (RW, 0, BASE + 1, 4096, Errno::EINVAL),
        (0, 1, BASE, 4096, Errno::EINVAL),
        (RW, 0, 0x1000, 4096, Errno::EFAULT),
        (RW, 0, 0_u64.wrapping_sub(0x1000), 0x2000, Errno::EFAULT),
        (RW, beyond - 4096, BASE, 8192, Errno::EINVAL),
    ];
    for (flags, iova, vaddr, size, expected) in refused {
        assert_eq!(errno(fixture.map(flags, iova, vaddr, size)), expected, "{iova:#x} {size:#x}");
    }
    // The driver answers the truth of its condition.
    assert_eq!(fixture.map(RW, 1, BASE, 4096), Ok(1));
    assert_eq!(fixture.map(RW, 0, BASE, 0), Ok(0), "nothing to map");
    assert!(!fixture.reaches(0, BASE));
    fixture.end();
}

#[test]
fn an_unmap_is_refused_in_the_drivers_order() {
    let fixture = Fixture::enabled();
    let mut cmd = abi::IommuType1DmaUnmap { argsz: 23, flags: 8, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::IOMMU_UNMAP_DMA, &mut cmd)), Errno::EINVAL);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_UNMAP_DMA, 0)), Errno::EFAULT);
    assert_eq!(errno(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, SECOND, 1)), Errno::EINVAL);
    assert_eq!(errno(fixture.unmap(0, SECOND, 1)), Errno::ENXIO);
    assert_eq!(errno(fixture.unmap(0, 1, 1)), Errno::EINVAL);
    assert_eq!(fixture.unmap(0, 1, 4096), Ok(1));
    assert_eq!(fixture.unmap(0, (2 << 30) - 4096, 8192), Ok(1));
    assert_eq!(fixture.unmap(0, 0, 2 << 30), Ok(0), "nothing is there, and that is no error");
    assert_eq!(fixture.unmap(0, 0, 0), Ok(0));
    fixture.end();
}

#[test]
fn what_is_mapped_is_reached_as_it_was_asked_for() {
    let fixture = Fixture::enabled();
    fixture.map(R, 0x1000, BASE + 0x3000, 0x2000).unwrap();
    assert!(fixture.reaches(0x1008, BASE + 0x3008) && fixture.reaches(0x2fff, BASE + 0x4fff));
    assert!(!fixture.writes(0x1000) && !fixture.reaches(0x3000, BASE + 0x5000));
    fixture.map(abi::DMA_MAP_FLAG_WRITE, 0x5000, BASE, 0x1000).unwrap();
    assert!(fixture.writes(0x5000) && fixture.reaches(0x5000, BASE), "who may write may read");
    fixture.end();
}

#[test]
fn a_map_replaces_what_is_there_and_an_unmap_cuts_it() {
    let fixture = Fixture::enabled();
    fixture.map(RW, 0, BASE, 0x8000).unwrap();
    fixture.map(RW, 0x2000, BASE + 0x10_0000, 0x2000).unwrap();
    let reached = |page: u64| {
        let same = fixture.reaches(page << 12, BASE + (page << 12));
        let other = fixture.reaches(page << 12, BASE + 0x10_0000 + ((page - 2) << 12));
        (same, other)
    };
    assert!(fixture.reaches(0x1000, BASE + 0x1000));
    assert_eq!((reached(2), reached(3), reached(4)), ((false, true), (false, true), (true, false)));
    fixture.unmap(0, 0x3000, 0x2000).unwrap();
    assert_eq!((reached(2), reached(3)), ((false, true), (false, false)));
    assert_eq!((reached(4), reached(5)), ((false, false), (true, false)));
    fixture.end();
}

#[test]
fn a_map_that_fails_half_way_empties_what_it_wrote() {
    let fixture = Fixture::enabled();
    let last = crate::tests::rig::SIZE as u64 - 0x1000;
    fixture.map(RW, 0, BASE, 0x4000).unwrap();
    // Its first page can be pinned, its second is outside of the client's memory.
    assert_eq!(errno(fixture.map(RW, 0x1000, BASE + last, 0x2000)), Errno::EFAULT);
    assert!(fixture.reaches(0, BASE));
    assert!(!fixture.reaches(0x1000, BASE + 0x1000), "it was replaced, and emptied");
    assert!(fixture.reaches(0x2000, BASE + 0x2000), "the page that failed stays what it was");
    fixture.end();
}

#[test]
fn version_2_maps_only_what_is_registered() {
    let fixture = Fixture::new(V2);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 4096)), Errno::EPERM, "nothing is registered");
    assert_eq!(errno(fixture.unregister(BASE, 4096)), Errno::EPERM);
    assert_eq!(fixture.register(BASE, 0x4000), Ok(0));
    assert_eq!(fixture.locked(), 4);
    fixture.map(RW, 0, BASE + 0x1000, 0x3000).unwrap();
    assert_eq!(fixture.locked(), 4 + 2048, "the window, and no page twice");
    assert_eq!(errno(fixture.map(RW, 0x8000, BASE + 0x3000, 0x2000)), Errno::EINVAL);
    assert!(!fixture.reaches(0x8000, BASE + 0x3000), "the first page is empty again");
    assert!(fixture.reaches(0x2fff, BASE + 0x3fff));
    // Two regions that touch serve one map.
    assert_eq!(fixture.register(BASE + 0x4000, 0x1000), Ok(0));
    fixture.map(RW, 0x8000, BASE + 0x3000, 0x2000).unwrap();
    assert!(fixture.reaches(0x9000, BASE + 0x4000));
    fixture.end();
}

#[test]
fn a_range_is_registered_once_whole_and_alone() {
    let fixture = Fixture::registered();
    let mut bad = abi::IommuSpaprRegisterMemory { argsz: 23, flags: 1, vaddr: 1, size: 1 };
    for code in [abi::IOMMU_SPAPR_REGISTER_MEMORY, abi::IOMMU_SPAPR_UNREGISTER_MEMORY] {
        bad.argsz = 23;
        assert_eq!(errno(fixture.call(code, &mut bad)), Errno::EINVAL);
        bad.argsz = 24;
        assert_eq!(errno(fixture.call(code, &mut bad)), Errno::EINVAL);
        assert_eq!(errno(fixture.ioctl(code, 0)), Errno::EFAULT);
    }
    let (page, end) = (0x1000, 1 << 20);
    for (vaddr, size, expected) in [
        (BASE + 1, page, Errno::EINVAL),
        (BASE, page + 1, Errno::EINVAL),
        (0_u64.wrapping_sub(page), page, Errno::EINVAL),
        (BASE, end, Errno::EBUSY),
        (BASE, page, Errno::EINVAL),
        (BASE + end - page, 2 * page, Errno::EINVAL),
        (BASE + end, 0, Errno::ENOMEM),
        (0x1000, page, Errno::EFAULT),
    ] {
        assert_eq!(errno(fixture.register(vaddr, size)), expected, "{vaddr:#x} {size:#x}");
    }
    for (vaddr, size) in [(BASE, page), (BASE + page, end - page), (BASE, 2 * end), (BASE, 0)] {
        assert_eq!(errno(fixture.unregister(vaddr, size)), Errno::ENOENT);
    }
    assert_eq!(fixture.locked(), 256, "what was refused is not charged");
    assert_eq!(fixture.unregister(BASE, end), Ok(0));
    assert_eq!(errno(fixture.unregister(BASE, end)), Errno::ENOENT);
    fixture.end();
}

#[test]
fn a_range_that_cannot_be_pinned_whole_answers_how_much_of_it_can() {
    let fixture = Fixture::registered();
    let last = BASE + crate::tests::rig::SIZE as u64 - 0x3000;
    assert_eq!(fixture.register(last, 0x8000), Ok(3));
    assert_eq!(fixture.locked(), 256);
    assert_eq!(errno(fixture.unregister(last, 0x8000)), Errno::ENOENT, "nothing is registered");
    fixture.end();
}

#[test]
fn a_region_over_the_limit_is_refused() {
    let mut fixture = Fixture::new(V2);
    fixture.client.account = Account { memlock_pages: Some(3), ..ACCOUNT };
    assert_eq!(errno(fixture.register(BASE, 0x4000)), Errno::ENOMEM);
    assert_eq!(errno(fixture.register(0x1000, 0x4000)), Errno::ENOMEM, "before it is looked at");
    assert_eq!(fixture.register(BASE, 0x3000), Ok(0));
    fixture.end();
}

#[test]
fn two_containers_of_a_process_share_a_region_and_one_charge() {
    let fixture = Fixture::registered();
    let other = Container::new(&fixture.machine.machine);
    let endpoint = fixture.machine.endpoint();
    let member = Member::new(GroupKind::Iommu, endpoint.group(), std::slice::from_ref(&endpoint));
    other.add_group(&fixture.client.account, member).unwrap();
    other.ioctl(&fixture.client, abi::SET_IOMMU, V2.into()).unwrap();
    let range = abi::IommuSpaprRegisterMemory { argsz: 24, flags: 0, vaddr: BASE, size: 1 << 20 };
    let call = |code| {
        fixture.client.memory.write(ARG, range.as_bytes()).unwrap();
        other.ioctl(&fixture.client, code, ARG)
    };
    assert_eq!(call(abi::IOMMU_SPAPR_REGISTER_MEMORY), Ok(0));
    assert_eq!(fixture.locked(), 256);
    fixture.unregister(BASE, 1 << 20).unwrap();
    assert_eq!(fixture.locked(), 256, "the other one has it still");
    assert_eq!(errno(fixture.unregister(BASE, 1 << 20)), Errno::ENOENT);
    assert_eq!(call(abi::IOMMU_SPAPR_UNREGISTER_MEMORY), Ok(0));
    assert_eq!(fixture.locked(), 0);
    drop(other);
    fixture.end();
}

#[test]
fn a_region_that_is_mapped_goes_with_its_last_tce() {
    let fixture = Fixture::registered();
    fixture.map(RW, 0, BASE, 0x2000).unwrap();
    assert_eq!(fixture.unregister(BASE, 1 << 20), Ok(0));
    assert!(fixture.reaches(0x1000, BASE + 0x1000), "it is pinned as long as it is mapped");
    fixture.map(RW, 0x8000, BASE + 0x5000, 0x1000).unwrap();
    assert_eq!(errno(fixture.register(BASE, 0x1000)), Errno::EINVAL, "and in the way");
    fixture.unmap(0, 0, 0x2000).unwrap();
    assert_eq!(fixture.locked(), 256 + 2048);
    fixture.unmap(0, 0x8000, 0x1000).unwrap();
    assert_eq!(fixture.locked(), 2048);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 0x1000)), Errno::EINVAL);
    fixture.end();
}

#[test]
fn windows_are_made_removed_and_two_at_most() {
    let fixture = Fixture::registered();
    // The one that is there without being asked for is made first, and this is the second.
    assert_eq!(fixture.create(12, 1 << 21, 1), Ok(SECOND));
    assert_eq!(errno(fixture.create(12, 1 << 21, 1)), Errno::ENOSPC);
    fixture.map(RW, SECOND + 0xf_f000, BASE, 0x1000).unwrap();
    assert!(fixture.reaches(SECOND + 0xf_f008, BASE + 8));
    assert_eq!(errno(fixture.remove(SECOND + (1 << 21))), Errno::EINVAL);
    assert_eq!(fixture.remove(SECOND + 0x5_0000), Ok(0), "any address of it names it");
    assert!(!fixture.reaches(SECOND + 0xf_f008, BASE + 8));
    assert_eq!(errno(fixture.map(RW, SECOND, BASE, 0x1000)), Errno::ENXIO);
    assert_eq!(fixture.remove(0), Ok(0));
    assert_eq!(errno(fixture.remove(0)), Errno::EINVAL);
    assert_eq!(fixture.locked(), 256);
    // The place of the first is free now.
    assert_eq!(fixture.create(12, 1 << 38, 2), Ok(0));
    fixture.map(RW, (1 << 38) - 0x1000, BASE, 0x1000).unwrap();
    assert!(fixture.reaches((1 << 38) - 1, BASE + 0xfff));
    fixture.end();
}

#[test]
fn the_window_that_is_there_without_being_asked_for_can_go_before_it_is_made() {
    let fixture = Fixture::registered();
    assert_eq!(fixture.remove(0), Ok(0));
    assert_eq!(fixture.locked(), 256);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 0x1000)), Errno::ENXIO);
    assert_eq!(fixture.create(12, 1 << 30, 1), Ok(0));
    fixture.map(RW, 0, BASE, 0x1000).unwrap();
    fixture.end();
}

#[test]
fn a_window_is_refused_in_the_drivers_order() {
    let mut fixture = Fixture::registered();
    let size = u32::try_from(size_of::<abi::IommuSpaprTceCreate>()).unwrap();
    let mut cmd = abi::IommuSpaprTceCreate { argsz: size - 1, flags: 1, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::IOMMU_SPAPR_TCE_CREATE, &mut cmd)), Errno::EINVAL);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_SPAPR_TCE_CREATE, 0)), Errno::EFAULT);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_SPAPR_TCE_REMOVE, 0)), Errno::EFAULT);
    cmd.argsz = size;
    assert_eq!(errno(fixture.call(abi::IOMMU_SPAPR_TCE_CREATE, &mut cmd)), Errno::EINVAL);
    for (page_shift, size, levels, expected) in [
        (13, 1 << 30, 1, Errno::EINVAL),
        (64, 1 << 30, 1, Errno::EINVAL),
        (24, 1 << 30, 1, Errno::EINVAL),
        (12, 3 << 30, 1, Errno::EINVAL),
        (12, 0, 1, Errno::EINVAL),
        (16, 1 << 15, 1, Errno::EINVAL),
        (12, 1 << 30, 0, Errno::EINVAL),
        (12, 1 << 30, 6, Errno::EINVAL),
        // 16 MiB are the most that a level's table has.
        (12, 1 << 34, 1, Errno::ENOMEM),
    ] {
        let created = fixture.create(page_shift, size, levels);
        assert_eq!(errno(created), expected, "{page_shift} {size:#x} {levels}");
    }
    fixture.client.account.ipc_lock = true;
    assert_eq!(errno(fixture.create(12, 1 << 58, 5)), Errno::EINVAL, "more bits than there are");
    let before = fixture.locked();
    fixture.client.account = Account { memlock_pages: Some(before), ..ACCOUNT };
    assert_eq!(errno(fixture.create(12, 1 << 30, 1)), Errno::ENOMEM);
    assert_eq!(fixture.locked(), before, "what failed is not charged");
    fixture.end();
}

#[test]
fn pages_of_a_window_are_no_larger_than_those_of_the_memory() {
    let fixture = Fixture::registered();
    assert_eq!(fixture.create(16, 1 << 30, 1), Ok(SECOND));
    assert_eq!(errno(fixture.map(RW, SECOND, BASE, 0x1000)), Errno::EINVAL, "no whole page");
    assert_eq!(errno(fixture.map(RW, SECOND, BASE + 0x1000, 0x1_0000)), Errno::EINVAL);
    assert_eq!(fixture.map(RW, SECOND + 0x1000, BASE, 0x1_0000), Ok(1));
    assert_eq!(errno(fixture.map(RW, SECOND, BASE, 0x1_0000)), Errno::EINVAL, "pages of 4 KiB");
    fixture.end();
}

#[test]
fn an_iommufd_binds_nothing_there_and_makes_no_page_table() {
    let fixture = Fixture::on(Spapr::default());
    let machine = &fixture.machine.machine;
    let context = Context::new(machine);
    let endpoint = fixture.machine.endpoint();
    assert_eq!(errno(context.bind(&endpoint)), Errno::EPERM, "no interrupt is isolated");
    let allowed = &machine.params.iommufd_allow_unsafe_interrupts;
    allowed.store(true, std::sync::atomic::Ordering::Relaxed);
    let bound = context.bind(&endpoint).unwrap();
    let ioas = context.alloc_ioas().unwrap();
    assert_eq!(errno(bound.attach(ioas)), Errno::EOPNOTSUPP);
    assert_eq!(errno(context.alloc_hwpt(ioas, &bound, HwptFlags::NONE)), Errno::EOPNOTSUPP);
}

#[test]
fn a_group_that_leaves_empties_the_windows_of_all() {
    let fixture = Fixture::registered();
    let second = fixture.machine.endpoint();
    fixture.add(&second).unwrap();
    fixture.map(RW, 0, BASE, 0x1000).unwrap();
    let both = [&fixture.endpoint, &second];
    let reach = |endpoint: &Arc<Endpoint>| {
        let segment = Segment { iova: Iova(0), length: 1 };
        let read = endpoint.read([segment], &mut [0]).is_ok();
        endpoint.group().thaw(Frozen::all());
        read
    };
    assert_eq!(both.map(reach), [true, true]);
    fixture.container.remove_group(second.group());
    assert_eq!(both.map(reach), [false, false]);
    fixture.map(RW, 0, BASE, 0x1000).unwrap();
    assert_eq!(both.map(reach), [true, false]);
    fixture.container.remove_group(fixture.endpoint.group());
    assert_eq!(fixture.locked(), 0);
    assert_eq!(errno(fixture.map(RW, 0, BASE, 0x1000)), Errno::EINVAL, "the driver is gone");
    fixture.end();
}

#[test]
fn an_access_that_is_refused_freezes_the_group_until_it_is_recovered() {
    let fixture = Fixture::enabled();
    fixture.map(RW, 0, BASE, 0x1000).unwrap();
    let read = |iova| fixture.endpoint.read([Segment { iova: Iova(iova), length: 1 }], &mut [0]);
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(0));
    assert!(read(0).is_ok() && read(0x1000).is_err());
    assert!(read(0).is_err(), "frozen");
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(2));
    let reasons: Vec<_> =
        fixture.machine.machine.faults.take().iter().map(|fault| fault.reason).collect();
    assert_eq!(reasons, [crate::faultlog::Reason::NotMapped, crate::faultlog::Reason::Frozen]);
    assert_eq!(fixture.eeh(abi::EEH_PE_UNFREEZE_IO), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(4));
    assert!(read(0).is_err());
    assert_eq!(fixture.eeh(abi::EEH_PE_UNFREEZE_DMA), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(0));
    assert!(read(0).is_ok());
    fixture.end();
}

#[test]
fn error_handling_has_linuxs_states_and_errors() {
    let fixture = Fixture::enabled();
    let inject = |argsz, type_, func| {
        let err = abi::EehPeErr { type_, func, addr: 0, mask: 0 };
        let op = abi::EEH_PE_INJECT_ERR;
        fixture.call(abi::EEH_PE_OP, &mut abi::EehPeOp { argsz, op, err, ..Default::default() })
    };
    assert_eq!(errno(fixture.ioctl(abi::EEH_PE_OP, 0)), Errno::EFAULT);
    assert_eq!(errno(fixture.eeh(10)), Errno::EINVAL);
    let mut cmd = abi::EehPeOp { argsz: 11, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::EEH_PE_OP, &mut cmd)), Errno::EINVAL);
    cmd = abi::EehPeOp { argsz: 12, flags: 1, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::EEH_PE_OP, &mut cmd)), Errno::EINVAL);
    assert_eq!(errno(inject(39, 9, 99)), Errno::EINVAL);
    assert_eq!(errno(inject(40, 9, 20)), Errno::EINVAL);
    assert_eq!(errno(inject(40, 2, 19)), Errno::ERANGE);
    for op in [abi::EEH_PE_DISABLE, abi::EEH_PE_ENABLE, abi::EEH_PE_CONFIGURE] {
        assert_eq!(fixture.eeh(op), Ok(0));
    }
    assert_eq!(inject(40, 1, 12), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(2));
    assert_eq!(fixture.eeh(abi::EEH_PE_DISABLE), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_UNFREEZE_DMA), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(5), "I/O alone is stopped");
    assert_eq!(fixture.eeh(abi::EEH_PE_ENABLE), Ok(0));
    assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(0), "its new owner finds it recovered");
    for reset in [abi::EEH_PE_RESET_HOT, abi::EEH_PE_RESET_FUNDAMENTAL] {
        assert_eq!(fixture.eeh(reset), Ok(0));
        assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(2), "until it is over");
        assert_eq!(fixture.eeh(abi::EEH_PE_RESET_DEACTIVATE), Ok(0));
        assert_eq!(fixture.eeh(abi::EEH_PE_GET_STATE), Ok(0));
    }
    let fixture = Fixture::on(Spapr { eeh: false, ..Spapr::default() });
    fixture.set_iommu(V1).unwrap();
    assert_eq!(errno(fixture.ioctl(abi::EEH_PE_OP, 0)), Errno::ENODEV);
}

#[test]
fn every_failed_step_leaves_what_was_there() {
    let fixture = Fixture::registered();
    fixture.map(RW, 0, BASE, 0x4000).unwrap();
    fixture.create(12, 1 << 20, 1).unwrap();
    let before = fixture.locked();
    type Call = fn(&Fixture) -> Result<i64>;
    let undo: [(&str, Call, Call); 3] = [
        (
            "register",
            |f| f.register(BASE + (1 << 20), 0x4000),
            |f| f.unregister(BASE + (1 << 20), 0x4000),
        ),
        ("window", |f| f.create(12, 1 << 20, 1).map(|_| 0), |f| f.remove(SECOND)),
        ("map", |f| f.map(RW, SECOND + 0x1000, BASE, 0x2000), |f| f.unmap(0, SECOND, 0x8000)),
    ];
    fixture.remove(SECOND).unwrap();
    let without = fixture.locked();
    for (what, call, back) in undo {
        let mut failed = 0;
        let done = crate::inject::fail_each(
            &mut (),
            |()| call(&fixture),
            |(), _, answer| {
                failed += 1;
                assert_eq!(errno(answer), Errno::ENOMEM, "{what}");
                Ok::<_, ioasis_uapi::Error>(())
            },
        );
        assert_eq!(done, Ok((Ok(0), failed)), "{what}");
        assert!(failed > 0, "{what} has steps that can fail");
        if what != "window" {
            back(&fixture).unwrap();
        }
    }
    assert!(fixture.locked() == before && before > without);
    assert!(fixture.reaches(0x3000, BASE + 0x3000));
    fixture.end();
}
