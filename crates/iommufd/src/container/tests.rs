use super::*;
use crate::tests::rig::{ARG, BASE, TestClient, TestMachine};
use crate::{Endpoint, Iommu, IommuKind, Iova, IovaRange, Segment};
use ioasis_uapi::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

struct Fixture {
    machine: TestMachine,
    client: TestClient,
    container: Arc<Container>,
    endpoint: Arc<Endpoint>,
}

impl Fixture {
    /// A container with one group and no IOMMU yet.
    fn bare() -> Self {
        let machine = TestMachine::new();
        let endpoint = machine.endpoint();
        let container = Container::new(&machine.machine);
        let fixture = Self { machine, client: TestClient::new(), container, endpoint };
        fixture.add(&fixture.endpoint).unwrap();
        fixture
    }

    fn with_iommu(number: u32) -> Self {
        let fixture = Self::bare();
        fixture.set_iommu(number).unwrap();
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

    /// Maps the memory at `BASE + iova` at `iova`.
    fn map_same(&self, iova: u64, size: u64) -> Result<i64> {
        self.map(RW, iova, BASE + iova, size)
    }

    fn unmap(&self, flags: u32, iova: u64, size: u64) -> Result<u64> {
        let mut cmd = abi::IommuType1DmaUnmap { argsz: 24, flags, iova, size };
        let answer = self.call(abi::IOMMU_UNMAP_DMA, &mut cmd);
        if answer.is_err() {
            assert_eq!(cmd.size, size, "a refused unmap writes nothing back");
        }
        answer.map(|_| cmd.size)
    }

    /// The chain of capabilities as ids, and the struct.
    fn info(&self, argsz: u32) -> (abi::IommuType1Info, Vec<u16>) {
        let mut bytes = [0_u8; 512];
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        self.call(abi::IOMMU_GET_INFO, &mut bytes).unwrap();
        let info = abi::IommuType1Info::read_from_prefix(&bytes).unwrap().0;
        let mut ids = Vec::new();
        let mut at = if argsz >= 24 { info.cap_offset as usize } else { 0 };
        while at != 0 {
            let header = abi::InfoCapHeader::read_from_prefix(&bytes[at..]).unwrap().0;
            ids.push(header.id);
            at = header.next as usize;
        }
        (info, ids)
    }
}

const RW: u32 = abi::DMA_MAP_FLAG_READ | abi::DMA_MAP_FLAG_WRITE;

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno
}

#[test]
fn before_set_iommu_everything_else_is_einval() {
    let fixture = Fixture::bare();
    for code in [abi::IOMMU_GET_INFO, abi::IOMMU_MAP_DMA, abi::IOMMU_UNMAP_DMA, 0x3b81, 0x1234] {
        assert_eq!(errno(fixture.ioctl(code, 0)), Errno::EINVAL);
    }
    assert_eq!(fixture.ioctl(abi::GET_API_VERSION, 0), Ok(0));
    fixture.set_iommu(abi::TYPE1v2_IOMMU).unwrap();
    for code in [0x3b81, 0x1234, abi::IOMMU_ENABLE] {
        assert_eq!(errno(fixture.ioctl(code, 0)), Errno::ENOTTY);
    }
}

#[test]
fn set_iommu_wants_a_group_a_known_type_and_to_be_the_only_one() {
    let fixture = Fixture::bare();
    let empty = Container::new(&fixture.machine.machine);
    assert_eq!(errno(empty.ioctl(&fixture.client, abi::SET_IOMMU, 1)), Errno::EINVAL);
    for number in [0, 2, 4, 6, 7, 8, 10, 99] {
        assert_eq!(errno(fixture.set_iommu(number)), Errno::ENODEV, "{number}");
    }
    assert_eq!(errno(fixture.set_iommu(abi::UNMAP_ALL)), Errno::EINVAL, "an extension and no type");
    fixture.set_iommu(1).unwrap();
    assert_eq!(errno(fixture.set_iommu(1)), Errno::EINVAL);
}

#[test]
fn extensions_are_those_of_the_moment() {
    let fixture = Fixture::bare();
    let all = |fixture: &Fixture| -> Vec<u64> {
        (0..12).filter(|&number| fixture.ioctl(abi::CHECK_EXTENSION, number) == Ok(1)).collect()
    };
    assert_eq!(all(&fixture), [1, 3, 9]);
    fixture.set_iommu(3).unwrap();
    assert_eq!(all(&fixture), [1, 3, 4, 9, 10]);
}

#[test]
fn a_map_is_refused_in_type1s_order() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    let mut cmd = abi::IommuType1DmaMap { argsz: 31, flags: RW, ..Default::default() };
    assert_eq!(errno(fixture.call(abi::IOMMU_MAP_DMA, &mut cmd)), Errno::EINVAL);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_MAP_DMA, 0)), Errno::EFAULT);
    fixture.map_same(0x1000, 0x1000).unwrap();
    let refused = [
        (Errno::EINVAL, (RW | 1 << 31, u64::MAX, 0, 2)),
        (Errno::EINVAL, (RW, u64::MAX, u64::MAX, 0)),
        (Errno::EOVERFLOW, (0, u64::MAX - 0xfff, BASE, 0x2000)),
        (Errno::EOVERFLOW, (RW, 0, u64::MAX - 0xfff, 0x2000)),
        (Errno::EINVAL, (0, 0x1000, BASE, 0x1000)),
        (Errno::EINVAL, (RW, 0x1000, BASE, 0x800)),
        (Errno::EINVAL, (RW, 0x1800, BASE, 0x1000)),
        (Errno::EINVAL, (RW, 0x1000, BASE + 0x800, 0x1000)),
        (Errno::EEXIST, (RW, 0x1000, 0x1000, 0x1000)),
        (Errno::EINVAL, (RW, 0xfee0_0000, 0x1000, 0x1000)),
        (Errno::EINVAL, (RW, 1 << 48, 0x1000, 0x1000)),
        (Errno::EFAULT, (RW, 0x2000, 0x1000, 0x1000)),
        // The last byte is an address, where iommufd looks one further.
        (Errno::EFAULT, (RW, 0x2000, u64::MAX - 0xfff, 0x1000)),
        (Errno::EEXIST, (RW, 0x1000, u64::MAX - 0xfff, 0x1000)),
    ];
    for (expected, (flags, iova, vaddr, size)) in refused {
        assert_eq!(
            errno(fixture.map(flags, iova, vaddr, size)),
            expected,
            "{flags:#x} {iova:#x} {vaddr:#x} {size:#x}"
        );
    }
    assert_eq!(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0), Ok(0x1000));
}

#[test]
fn an_unmap_is_refused_in_type1s_order() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    fixture.map_same(0x1000, 0x2000).unwrap();
    let refused = [
        (Errno::EINVAL, (1 << 31, 0x1000, 0x2000)),
        (Errno::EINVAL, (0, 0x800, 0x1000)),
        (Errno::EINVAL, (abi::DMA_UNMAP_FLAG_ALL, 0x1000, 0)),
        (Errno::EINVAL, (abi::DMA_UNMAP_FLAG_ALL, 0, 0x1000)),
        (Errno::EINVAL, (0, 0x1000, 0)),
        (Errno::EINVAL, (0, 0x1000, 0x1800)),
        (Errno::EOVERFLOW, (0, 0x2000, u64::MAX - 0xfff)),
    ];
    for (expected, (flags, iova, size)) in refused {
        assert_eq!(
            errno(fixture.unmap(flags, iova, size)),
            expected,
            "{flags:#x} {iova:#x} {size:#x}"
        );
    }
    assert_eq!(fixture.unmap(0, 0x10_0000, 0x1000), Ok(0), "nothing there is no error");
    assert_eq!(fixture.unmap(0, 0, 0x10000), Ok(0x2000));
}

#[test]
fn v2_never_cuts_a_mapping_and_refuses_before_it_removes() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    for iova in [0x1000, 0x3000] {
        fixture.map_same(iova, 0x2000).unwrap();
    }
    assert_eq!(errno(fixture.unmap(0, 0x1000, 0x3000)), Errno::EINVAL);
    assert_eq!(errno(fixture.unmap(0, 0x2000, 0x3000)), Errno::EINVAL);
    assert_eq!(fixture.unmap(0, 0x1000, 0x4000), Ok(0x4000), "both were still there");
}

#[test]
fn v1_removes_whole_mappings_whose_first_byte_is_named() {
    let fixture = Fixture::with_iommu(abi::TYPE1_IOMMU);
    for iova in [0x1000, 0x3000] {
        fixture.map_same(iova, 0x2000).unwrap();
    }
    assert_eq!(fixture.unmap(0, 0x2000, 0x2000), Ok(0), "it began before: nothing goes");
    assert_eq!(fixture.unmap(0, 0x1000, 0x1000), Ok(0x2000), "more than was asked for");
    assert_eq!(fixture.unmap(0, 0, 0x4000), Ok(0x2000));
}

#[test]
fn mappings_are_counted_against_the_limit_and_shown() {
    let fixture = Fixture::bare();
    fixture.machine.machine.params.dma_entry_limit.store(2, Ordering::Relaxed);
    fixture.set_iommu(abi::TYPE1v2_IOMMU).unwrap();
    fixture.map_same(0x1000, 0x1000).unwrap();
    fixture.map_same(0x2000, 0x1000).unwrap();
    assert_eq!(errno(fixture.map_same(0x3000, 0x1000)), Errno::ENOSPC);
    assert_eq!(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0), Ok(0x2000));
    fixture.map_same(0x3000, 0x1000).unwrap();
}

#[test]
fn info_raises_argsz_only_when_it_is_too_small_and_shows_whole_chains() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    let (info, ids) = fixture.info(16);
    assert_eq!((info.cap_offset, ids), (0, vec![]), "cap_offset is beyond what the client has");
    let total = info.argsz;
    assert_eq!(total, 24 + 32 + 16 + 16 + 2 * 16);
    let (info, ids) = fixture.info(total - 1);
    assert_eq!((info.argsz, info.cap_offset, ids), (total, 0, vec![]));
    let (info, ids) = fixture.info(total + 8);
    assert_eq!((info.argsz, ids), (total + 8, vec![2, 3, 1]));
    assert_eq!(info.iova_pgsizes, 1 << 12 | 1 << 21 | 1 << 30);
    assert_eq!(info.flags, 3);
}

#[test]
fn pages_are_charged_to_the_process_even_with_ipc_lock_and_dma_reaches_them() {
    let mut fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    fixture.client.account.ipc_lock = true;
    fixture.client.account.memlock_pages = Some(0);
    fixture.map_same(0x1000, 0x2000).unwrap();
    let charges = fixture.machine.machine.ledger.process(fixture.client.account.pid);
    assert_eq!((charges.locked, charges.pinned), (2, 2));
    fixture.endpoint.write([Segment { iova: Iova(0x2ffc), length: 4 }], b"dma!").unwrap();
    let mut seen = [0; 4];
    fixture.client.memory.read(BASE + 0x2ffc, &mut seen).unwrap();
    assert_eq!(&seen, b"dma!");
    fixture.client.account.ipc_lock = false;
    assert_eq!(errno(fixture.map_same(0x4000, 0x1000)), Errno::ENOMEM);
}

#[test]
fn the_last_group_takes_the_iommu_and_every_mapping_with_it() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    let second = fixture.machine.endpoint();
    fixture.map_same(0x1000, 0x1000).unwrap();
    fixture.add(&second).unwrap();
    fixture.container.remove_group(fixture.endpoint.group());
    second.write([Segment { iova: Iova(0x1000), length: 1 }], &[1]).unwrap();
    assert!(fixture.endpoint.write([Segment { iova: Iova(0x1000), length: 1 }], &[1]).is_err());
    fixture.container.remove_group(second.group());
    assert!(!fixture.container.has_iommu());
    fixture.machine.assert_clean();
    assert_eq!(errno(fixture.map_same(0x1000, 0x1000)), Errno::EINVAL);
}

#[test]
fn a_group_that_conflicts_with_the_mappings_is_refused() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    let (machine, far) =
        (&fixture.machine, Iommu { isolated_msi: false, ..Iommu::new(IommuKind::Amd) });
    let group = Group::new(&machine.machine, &Arc::new(far), 7);
    let endpoint = machine.endpoint_in(&group);
    assert_eq!(errno(fixture.add(&endpoint)), Errno::EPERM, "interrupts are not isolated");
    assert!(!group.is_owned());
    let smmu = Group::new(&machine.machine, &Arc::new(Iommu::new(IommuKind::Smmuv3)), 8);
    let mut config = endpoint.config().clone();
    config.reserved = Iommu::new(IommuKind::Smmuv3).reserved();
    let endpoint = Endpoint::new(&smmu, config);
    fixture.map(RW, 0x800_0000, BASE, 0x1000).unwrap();
    assert_eq!(
        errno(fixture.add(&endpoint)),
        Errno::EINVAL,
        "a mapping lies where its doorbell must"
    );
    fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0).unwrap();
    fixture.add(&endpoint).unwrap();
}

#[test]
fn a_group_serves_one_container() {
    let fixture = Fixture::bare();
    let other = Container::new(&fixture.machine.machine);
    let member = || Member::new(GroupKind::Iommu, fixture.endpoint.group(), &[]);
    assert_eq!(errno(other.add_group(&fixture.client.account, member())), Errno::EPERM);
    fixture.container.remove_group(fixture.endpoint.group());
    other.add_group(&fixture.client.account, member()).unwrap();
    drop(other);
    assert!(!fixture.endpoint.group().is_owned());
}

#[test]
fn groups_without_an_iommu_stay_among_themselves() {
    let mut fixture = Fixture::bare();
    let group = fixture.machine.group();
    let member = Member::new(GroupKind::NoIommu, &group, &[]);
    assert_eq!(
        errno(fixture.container.add_group(&fixture.client.account, member.clone())),
        Errno::EPERM
    );
    fixture.client.account.sys_rawio = true;
    assert_eq!(
        errno(fixture.container.add_group(&fixture.client.account, member.clone())),
        Errno::EPERM
    );
    let alone = Container::new(&fixture.machine.machine);
    alone.add_group(&fixture.client.account, member).unwrap();
    assert_eq!(
        errno(alone.ioctl(&fixture.client, abi::SET_IOMMU, 8)),
        Errno::ENODEV,
        "the parameter is off"
    );
    fixture.machine.machine.params.enable_unsafe_noiommu_mode.store(true, Ordering::Relaxed);
    assert_eq!(errno(alone.ioctl(&fixture.client, abi::SET_IOMMU, 1)), Errno::ENODEV);
    alone.ioctl(&fixture.client, abi::SET_IOMMU, 8).unwrap();
    assert_eq!(errno(alone.ioctl(&fixture.client, abi::IOMMU_GET_INFO, ARG)), Errno::ENOTTY);
}

fn vaddr_of(fixture: &Fixture, iova: u64, size: u64) -> Result<u64> {
    fixture.unmap(abi::DMA_UNMAP_FLAG_VADDR, iova, size)
}

#[test]
fn a_mapping_changes_its_process_and_payer_while_devices_go_on() {
    let mut fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    fixture.map_same(0x1000, 0x2000).unwrap();
    assert_eq!(vaddr_of(&fixture, 0x1000, 0x2000), Ok(0x2000));
    let write = |iova, bytes: &[u8]| {
        fixture.endpoint.write([Segment { iova: Iova(iova), length: bytes.len() }], bytes)
    };
    write(0x1000, b"still").unwrap();
    assert_eq!(errno(vaddr_of(&fixture, 0x1000, 0x2000)), Errno::EINVAL, "twice");
    assert_eq!(errno(fixture.add(&fixture.machine.endpoint())), Errno::EBUSY);
    // The same memory in another process, elsewhere.
    let old = std::mem::replace(&mut fixture.client, TestClient::new());
    fixture.client.account.pid = 200;
    assert_eq!(
        errno(fixture.map(abi::DMA_MAP_FLAG_VADDR | 1, 0x1000, BASE, 0x2000)),
        Errno::EINVAL
    );
    assert_eq!(errno(fixture.map(abi::DMA_MAP_FLAG_VADDR, 0x8000, BASE, 0x2000)), Errno::ENOENT);
    assert_eq!(errno(fixture.map(abi::DMA_MAP_FLAG_VADDR, 0x1000, BASE, 0x1000)), Errno::EINVAL);
    fixture.client.account.memlock_pages = Some(1);
    assert_eq!(errno(fixture.map(abi::DMA_MAP_FLAG_VADDR, 0x1000, BASE, 0x2000)), Errno::ENOMEM);
    fixture.client.account.memlock_pages = Some(2);
    fixture.map(abi::DMA_MAP_FLAG_VADDR, 0x1000, BASE, 0x2000).unwrap();
    let locked = |pid| fixture.machine.machine.ledger.process(pid).locked;
    assert_eq!((locked(old.account.pid), locked(200)), (0, 2));
    assert_eq!(
        errno(fixture.map(abi::DMA_MAP_FLAG_VADDR, 0x1000, BASE, 0x2000)),
        Errno::EINVAL,
        "it has one"
    );
    fixture.add(&fixture.machine.endpoint()).unwrap();
    fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0).unwrap();
    fixture.machine.assert_clean();
    drop(old);
}

#[test]
fn taking_addresses_away_is_all_or_nothing_and_an_unmap_forgets_it() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    for iova in [0x1000, 0x2000, 0x3000] {
        fixture.map_same(iova, 0x1000).unwrap();
    }
    assert_eq!(vaddr_of(&fixture, 0x2000, 0x1000), Ok(0x1000));
    let all = abi::DMA_UNMAP_FLAG_ALL | abi::DMA_UNMAP_FLAG_VADDR;
    assert_eq!(errno(fixture.unmap(all, 0, 0)), Errno::EINVAL);
    assert_eq!(fixture.unmap(0, 0x2000, 0x1000), Ok(0x1000), "an invalid one is unmapped as any");
    assert_eq!(fixture.unmap(all, 0, 0), Ok(0x2000), "the first had not been marked");
}

const BITS: u64 = ARG + 0x1000;

fn log(fixture: &Fixture, flags: u32) -> Result<i64> {
    fixture.call(abi::IOMMU_DIRTY_PAGES, &mut abi::IommuType1DirtyBitmap { argsz: 8, flags })
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct GetBitmap {
    head: abi::IommuType1DirtyBitmap,
    get: abi::IommuType1DirtyBitmapGet,
}

fn get(iova: u64, size: u64, bytes: u64) -> GetBitmap {
    let bitmap = abi::Bitmap { pgsize: 4096, size: bytes, data: BITS };
    GetBitmap {
        head: abi::IommuType1DirtyBitmap {
            argsz: 48,
            flags: abi::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        },
        get: abi::IommuType1DirtyBitmapGet { iova, size, bitmap },
    }
}

fn words(fixture: &Fixture) -> [u64; 2] {
    let mut words = [0_u64; 2];
    fixture.client.memory.read(BITS, words.as_mut_bytes()).unwrap();
    words
}

#[test]
fn everything_devices_reach_is_dirty_in_whole_words() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    fixture.map_same(0x1000, 0x2000).unwrap();
    log(&fixture, abi::IOMMU_DIRTY_PAGES_FLAG_START).unwrap();
    log(&fixture, abi::IOMMU_DIRTY_PAGES_FLAG_START).unwrap();
    fixture.map_same(0x44_000, 0x1000).unwrap();
    fixture.client.memory.write(BITS, &[0xff; 16]).unwrap();
    fixture.call(abi::IOMMU_DIRTY_PAGES, &mut get(0, 0x80_000, 16)).unwrap();
    // Pages 1, 2 and 0x44; bit 0 stays, the other bits of a touched word are written.
    assert_eq!(words(&fixture), [0b111, 0b1_1111]);
    log(&fixture, abi::IOMMU_DIRTY_PAGES_FLAG_STOP).unwrap();
    assert_eq!(
        errno(fixture.call(abi::IOMMU_DIRTY_PAGES, &mut get(0, 0x80_000, 16))),
        Errno::EINVAL
    );
}

#[test]
fn the_log_is_refused_in_type1s_order() {
    let v1 = Fixture::with_iommu(abi::TYPE1_IOMMU);
    assert_eq!(
        errno(v1.ioctl(abi::IOMMU_DIRTY_PAGES, 0)),
        Errno::EACCES,
        "before the argument is read"
    );
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    assert_eq!(errno(fixture.ioctl(abi::IOMMU_DIRTY_PAGES, 0)), Errno::EFAULT);
    for flags in [0, 3, 8, 5] {
        assert_eq!(errno(log(&fixture, flags)), Errno::EINVAL);
    }
    fixture.map_same(0x1000, 0x2000).unwrap();
    log(&fixture, abi::IOMMU_DIRTY_PAGES_FLAG_START).unwrap();
    let good = get(0x1000, 0x2000, 8);
    let with = |change: fn(&mut GetBitmap)| {
        let mut cmd = good;
        change(&mut cmd);
        cmd
    };
    let refused = [
        (Errno::EINVAL, with(|cmd| cmd.head.argsz = 47)),
        (Errno::EINVAL, with(|cmd| cmd.get.size = 0)),
        (Errno::EOVERFLOW, with(|cmd| cmd.get.iova = u64::MAX - 0xfff)),
        (Errno::EINVAL, with(|cmd| cmd.get.bitmap.data = 1 << 47)),
        (Errno::EINVAL, with(|cmd| cmd.get.bitmap.size = 7)),
        (Errno::EINVAL, with(|cmd| cmd.get.bitmap.size = (256 << 20) + 8)),
        (Errno::EINVAL, with(|cmd| cmd.get.bitmap.pgsize = 0)),
        (Errno::EINVAL, with(|cmd| cmd.get.bitmap.pgsize = 8192)),
        (Errno::EINVAL, with(|cmd| cmd.get.iova = 0x800)),
        (Errno::EINVAL, with(|cmd| cmd.get.size = 0x1000)),
        (Errno::EFAULT, with(|cmd| cmd.get.bitmap.data = 0x1000)),
    ];
    for (expected, mut cmd) in refused {
        assert_eq!(errno(fixture.call(abi::IOMMU_DIRTY_PAGES, &mut cmd)), expected);
    }
    fixture.call(abi::IOMMU_DIRTY_PAGES, &mut { good }).unwrap();
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct UnmapDirty {
    head: abi::IommuType1DmaUnmap,
    bitmap: abi::Bitmap,
}

#[test]
fn an_unmap_hands_the_dirty_bits_over() {
    let fixture = Fixture::with_iommu(abi::TYPE1v2_IOMMU);
    fixture.map_same(0x1000, 0x2000).unwrap();
    let flags = abi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    let mut cmd = UnmapDirty {
        head: abi::IommuType1DmaUnmap { argsz: 48, flags, iova: 0x1000, size: 0x2000 },
        bitmap: abi::Bitmap { pgsize: 4096, size: 8, data: BITS },
    };
    assert_eq!(
        errno(fixture.call(abi::IOMMU_UNMAP_DMA, &mut cmd)),
        Errno::EINVAL,
        "no log is kept"
    );
    log(&fixture, abi::IOMMU_DIRTY_PAGES_FLAG_START).unwrap();
    let both = UnmapDirty {
        head: abi::IommuType1DmaUnmap { flags: flags | abi::DMA_UNMAP_FLAG_ALL, ..cmd.head },
        ..cmd
    };
    assert_eq!(errno(fixture.call(abi::IOMMU_UNMAP_DMA, &mut { both })), Errno::EINVAL);
    let short = UnmapDirty { head: abi::IommuType1DmaUnmap { argsz: 47, ..cmd.head }, ..cmd };
    assert_eq!(errno(fixture.call(abi::IOMMU_UNMAP_DMA, &mut { short })), Errno::EINVAL);
    let cut = UnmapDirty { head: abi::IommuType1DmaUnmap { size: 0x1000, ..cmd.head }, ..cmd };
    assert_eq!(errno(fixture.call(abi::IOMMU_UNMAP_DMA, &mut { cut })), Errno::EINVAL);
    fixture.call(abi::IOMMU_UNMAP_DMA, &mut cmd).unwrap();
    assert_eq!((cmd.head.size, words(&fixture)[0]), (0x2000, 0b11));
    assert_eq!(fixture.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0), Ok(0));
}

/// Bytes of the leaf at `iova`: a write makes all of it dirty.
fn leaf(fixture: &Fixture, iova: u64) -> u64 {
    fixture.endpoint.write([Segment { iova: Iova(iova), length: 1 }], &[1]).unwrap();
    let attachment = fixture.endpoint.group().attachment();
    let domain = &attachment.as_ref().expect("attached").domain;
    let mut bytes = 0;
    let range = IovaRange::new(Iova(iova), 2 << 20).unwrap();
    domain.read_dirty(range, crate::Dirty::Clear, &mut |dirty| bytes += dirty.span() + 1);
    bytes
}

#[test]
fn disable_hugepages_counts_from_the_next_map_on() {
    let fixture = Fixture::with_iommu(abi::TYPE1_IOMMU);
    let huge = 2 << 20;
    let disabled = &fixture.machine.machine.params.disable_hugepages;
    for (at, disable) in [(1, false), (2, true), (3, false)] {
        disabled.store(disable, Ordering::Relaxed);
        fixture.map(RW, at * huge, BASE, huge).unwrap();
    }
    assert_eq!([1, 2, 3].map(|at| leaf(&fixture, at * huge)), [huge, 0x1000, huge]);
}
