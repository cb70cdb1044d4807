//! The log of what a device writes.

use std::sync::Arc;

use ioasis_iommufd::type1::Container;
use ioasis_uapi::vfio::{
    self, DeviceFeature, DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange,
    DeviceFeatureDmaLoggingReport,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, GroupFile, IommuFile};
use zerocopy::{FromZeros, IntoBytes};

use crate::rig::{ARG, BASE, NOWHERE, READ_ONLY, Rig, at, errno};

const RANGES: u64 = BASE + 0x4000;
const BITMAP: u64 = BASE + 0x6000;
/// The page that the device copies to.
const PAGE: u64 = BASE + 0x8000;

fn feature(rig: &Rig, file: &DeviceFile, flags: u32, payload: &[u8]) -> Result<()> {
    let argsz = u32::try_from(size_of::<DeviceFeature>() + payload.len()).expect("short");
    rig.caller.put(ARG, DeviceFeature { argsz, flags }.as_bytes());
    rig.caller.put(ARG + 8, payload);
    file.ioctl(&rig.caller, vfio::DEVICE_FEATURE, ARG).map(|_| ())
}

fn start_at(rig: &Rig, file: &DeviceFile, page_size: u64, ranges: (u64, u32)) -> Result<()> {
    let (ranges, num_ranges) = ranges;
    let control = DeviceFeatureDmaLoggingControl { page_size, num_ranges, __reserved: 0, ranges };
    let flags = vfio::DEVICE_FEATURE_SET | vfio::DEVICE_FEATURE_DMA_LOGGING_START;
    feature(rig, file, flags, control.as_bytes())
}

fn start(rig: &Rig, file: &DeviceFile, page_size: u64, ranges: &[(u64, u64)]) -> Result<()> {
    for (index, &(iova, length)) in ranges.iter().enumerate() {
        let range = DeviceFeatureDmaLoggingRange { iova, length };
        rig.caller.put(RANGES + 16 * index as u64, range.as_bytes());
    }
    let count = u32::try_from(ranges.len()).expect("few");
    start_at(rig, file, page_size, (RANGES, count))
}

fn stop(rig: &Rig, file: &DeviceFile) -> Result<()> {
    let flags = vfio::DEVICE_FEATURE_SET | vfio::DEVICE_FEATURE_DMA_LOGGING_STOP;
    feature(rig, file, flags, &[])
}

fn report(rig: &Rig, file: &DeviceFile, (iova, length): (u64, u64), page_size: u64) -> Result<()> {
    report_to(rig, file, (iova, length), (page_size, BITMAP))
}

fn report_to(
    rig: &Rig,
    file: &DeviceFile,
    (iova, length): (u64, u64),
    (page_size, bitmap): (u64, u64),
) -> Result<()> {
    let report = DeviceFeatureDmaLoggingReport { iova, length, page_size, bitmap };
    let flags = vfio::DEVICE_FEATURE_GET | vfio::DEVICE_FEATURE_DMA_LOGGING_REPORT;
    feature(rig, file, flags, report.as_bytes())
}

/// testdev with a page of memory at IOVA 0x5000.
fn opened() -> (Rig, Arc<DeviceFile>, Arc<GroupFile>) {
    let (rig, file, group, _) = opened_in_container();
    (rig, file, group)
}

fn opened_in_container() -> (Rig, Arc<DeviceFile>, Arc<GroupFile>, Arc<Container>) {
    let rig = Rig::testdev("all");
    let group = rig.group(0);
    let container = rig.hardware.container();
    let fd = rig.caller.add_iommu(IommuFile::Container(Arc::clone(&container)));
    rig.set_container(&group, fd).expect("a container");
    rig.hardware.set_iommu(&container, &rig.caller);
    let file = rig.device_fd(&group, rig.first().name()).expect("a device");
    let map = vfio::IommuType1DmaMap {
        argsz: 32,
        flags: vfio::DMA_MAP_FLAG_READ | vfio::DMA_MAP_FLAG_WRITE,
        vaddr: PAGE,
        iova: 0x5000,
        size: 0x1000,
    };
    let address = rig.caller.arg(&map);
    container.ioctl(&rig.caller, vfio::IOMMU_MAP_DMA, address).expect("mapped");
    (rig, file, group, container)
}

/// Has testdev write its page to IOVA 0x5000, or says that this failed.
fn write(file: &DeviceFile, iova: u64) -> bool {
    file.write(at(7, 4), &6_u16.to_le_bytes()).expect("a bus master");
    file.write(at(0, 0), &iova.to_le_bytes()).expect("an address");
    file.write(at(0, 8), &1_u32.to_le_bytes()).expect("a command");
    loop {
        let mut command = [0; 4];
        file.read(at(0, 8), &mut command).expect("a register");
        match u32::from_le_bytes(command) {
            0 => return true,
            done if done & 1 == 0 => return false,
            _ => std::thread::yield_now(),
        }
    }
}

#[test]
fn what_a_device_writes_is_in_its_report_once() {
    let (rig, file, _group) = opened();
    assert!(write(&file, 0x5000));
    start(&rig, &file, 4096, &[(0, 0x10000)]).expect("a log");
    report(&rig, &file, (0, 0x10000), 4096).expect("a report");
    assert_eq!(rig.caller.get::<u64>(BITMAP), 0, "what was written before is not in it");
    assert!(write(&file, 0x5000));
    rig.caller.put(BITMAP, &1_u64.to_le_bytes());
    report(&rig, &file, (0, 0x10000), 4096).expect("a report");
    assert_eq!(rig.caller.get::<u64>(BITMAP), 1 << 5 | 1, "bits are added to what is there");
    report(&rig, &file, (0, 0x10000), 4096).expect("a report");
    assert_eq!(rig.caller.get::<u64>(BITMAP), 1 << 5 | 1);
    assert!(write(&file, 0x5000));
    rig.caller.put(BITMAP, &[0; 8]);
    report(&rig, &file, (0x4000, 0x4000), 0x2000).expect("larger pages");
    assert_eq!(rig.caller.get::<u64>(BITMAP), 1);
    stop(&rig, &file).expect("no log");
}

#[test]
fn a_containers_dirty_pages_and_a_devices_log_take_nothing_from_each_other() {
    let (rig, file, _group, container) = opened_in_container();
    let dirty_pages = |flags: u32| {
        let get = vfio::IommuType1DirtyBitmapGet {
            iova: 0x5000,
            size: 0x1000,
            bitmap: vfio::Bitmap { pgsize: 4096, size: 8, data: BITMAP + 8 },
        };
        let head = vfio::IommuType1DirtyBitmap { argsz: 48, flags };
        rig.caller.put(ARG, &[head.as_bytes(), get.as_bytes()].concat());
        container.ioctl(&rig.caller, vfio::IOMMU_DIRTY_PAGES, ARG).expect("dirty pages");
    };
    dirty_pages(vfio::IOMMU_DIRTY_PAGES_FLAG_START);
    start(&rig, &file, 4096, &[(0, 0x10000)]).expect("a log");
    assert!(write(&file, 0x5000));
    dirty_pages(vfio::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP);
    assert_eq!(rig.caller.get::<[u64; 2]>(BITMAP)[1], 1);
    dirty_pages(vfio::IOMMU_DIRTY_PAGES_FLAG_STOP);
    report(&rig, &file, (0, 0x10000), 4096).expect("a report");
    assert_eq!(rig.caller.get::<u64>(BITMAP), 1 << 5);
}

#[test]
fn the_log_ends_with_the_device_and_not_with_a_reset() {
    let (rig, file, group) = opened();
    start(&rig, &file, 4096, &[(0, 0x10000)]).expect("a log");
    file.ioctl(&rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    report(&rig, &file, (0, 0x1000), 4096).expect("it goes on");
    file.close();
    let file = rig.device_fd(&group, rig.first().name()).expect("another open");
    assert_eq!(errno(report(&rig, &file, (0, 0x1000), 4096)), Some(Errno::EINVAL));
}

#[test]
fn a_log_is_started_in_the_order_of_linuxs_checks() {
    let (rig, file, _group) = opened();
    let page = 0x1000_u64;
    type Row<'a> = (&'a str, u64, &'a [(u64, u64)], Option<Errno>);
    let rows: [Row<'_>; 12] = [
        ("no ranges", page, &[], Some(Errno::EINVAL)),
        ("not aligned", page, &[(0x800, page)], Some(Errno::EINVAL)),
        ("length not aligned", page, &[(0, 0x800)], Some(Errno::EINVAL)),
        ("aligned to nothing", 0, &[(page, page)], Some(Errno::EINVAL)),
        ("it wraps", page, &[(!0xfff, 0x2000)], Some(Errno::EOVERFLOW)),
        ("it ends where addresses do", page, &[(!0xfff, page)], Some(Errno::EOVERFLOW)),
        ("alignment before it wraps", page, &[(!0x7ff, page)], Some(Errno::EINVAL)),
        ("overlap", page, &[(0, 0x3000), (0x2000, page)], Some(Errno::EINVAL)),
        ("the first bad range decides", page, &[(1, 1), (!0xfff, page)], Some(Errno::EINVAL)),
        ("an empty range inside another", page, &[(0, 0x3000), (page, 0)], Some(Errno::EINVAL)),
        ("an empty range alone", page, &[(page, 0)], None),
        ("a page size of any kind", 3, &[(0, 0)], None),
    ];
    for (why, page_size, ranges, expected) in rows {
        assert_eq!(errno(start(&rig, &file, page_size, ranges)), expected, "{why}");
        if expected.is_none() {
            let control: DeviceFeatureDmaLoggingControl = rig.caller.get(ARG + 8);
            assert_eq!(control.page_size, 4096, "{why}: the page size is the device's");
            assert_eq!(errno(start(&rig, &file, page, &[(0, page)])), Some(Errno::EINVAL));
        }
        stop(&rig, &file).expect("a log that is not there is stopped too");
    }
    let too_many = start_at(&rig, &file, page, (NOWHERE, 257));
    assert_eq!(errno(too_many), Some(Errno::E2BIG), "before the ranges are read");
    assert_eq!(errno(start_at(&rig, &file, page, (NOWHERE, 1))), Some(Errno::EFAULT));
    let many: Vec<(u64, u64)> = (0..256).map(|index| (index * page, page)).collect();
    start(&rig, &file, page, &many).expect("as many as there can be");
}

#[test]
fn a_start_whose_answer_cannot_be_written_leaves_no_log() {
    let (rig, file, _group) = opened();
    let control = DeviceFeatureDmaLoggingControl {
        page_size: 4096,
        num_ranges: 1,
        ranges: RANGES,
        ..DeviceFeatureDmaLoggingControl::new_zeroed()
    };
    rig.caller.put(RANGES, &[0; 16]);
    let flags = vfio::DEVICE_FEATURE_SET | vfio::DEVICE_FEATURE_DMA_LOGGING_START;
    rig.caller.put(READ_ONLY, DeviceFeature { argsz: 32, flags }.as_bytes());
    rig.caller.put(READ_ONLY + 8, control.as_bytes());
    let started = file.ioctl(&rig.caller, vfio::DEVICE_FEATURE, READ_ONLY);
    assert_eq!(errno(started), Some(Errno::EFAULT));
    assert_eq!(errno(report(&rig, &file, (0, 4096), 4096)), Some(Errno::EINVAL));
}

#[test]
fn a_report_is_checked_in_the_order_of_linux() {
    let (rig, file, _group) = opened();
    let rows = [
        ("page size before the log is looked for", (0, 4096), 2048, Errno::EINVAL),
        ("no power of two", (0, 4096), 12288, Errno::EINVAL),
        ("it wraps", (!0xfff, 4096), 4096, Errno::EOVERFLOW),
        ("no log", (0, 4096), 4096, Errno::EINVAL),
        ("no log, and nothing asked", (0, 0), 4096, Errno::EINVAL),
    ];
    for (why, range, page_size, expected) in rows {
        assert_eq!(errno(report(&rig, &file, range, page_size)), Some(expected), "{why}");
    }
    start(&rig, &file, 4096, &[(0, 0x10000)]).expect("a log");
    report(&rig, &file, (0x5000, 0), 4096).expect("nothing is asked");
    assert!(write(&file, 0x5000));
    report_to(&rig, &file, (0, 0x10000), (4096, NOWHERE)).expect("as in Linux");
}

#[test]
fn an_emulated_device_has_no_log() {
    let rig = Rig::with(&[("0000:01:00.0", Rig::EMULATED)]);
    let (_group, file) = rig.open();
    assert_eq!(errno(stop(&rig, &file)), Some(Errno::ENOTTY));
    assert_eq!(errno(start(&rig, &file, 4096, &[(0, 4096)])), Some(Errno::ENOTTY));
    assert_eq!(errno(report(&rig, &file, (0, 4096), 4096)), Some(Errno::ENOTTY));
}
