//! Parts of a BAR as dma-bufs.

use std::sync::Arc;

use ioasis_iommufd::faultlog::{Reason, RefusedDma};
use ioasis_iommufd::{Context, Iova};
use ioasis_uapi::iommufd::{IOAS_UNMAP, IoasUnmap};
use ioasis_uapi::vfio::{
    self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceFeature, DeviceFeatureDmaBuf,
    RegionDmaRange,
};
use ioasis_uapi::{Errno, Result};
use ioasis_vfio::{DeviceFile, IommuFile, Reply};
use zerocopy::IntoBytes;

use crate::rig::{ARG, FETCH, NOWHERE, Rig, at, errno};

const GET: u32 = vfio::DEVICE_FEATURE_GET | vfio::DEVICE_FEATURE_DMA_BUF;

fn export(
    rig: &Rig,
    file: &DeviceFile,
    header: DeviceFeatureDmaBuf,
    ranges: &[(u64, u64)],
) -> Result<i32> {
    let ranges: Vec<_> =
        ranges.iter().map(|&(offset, length)| RegionDmaRange { offset, length }).collect();
    rig.caller.put(ARG, DeviceFeature { argsz: 24, flags: GET }.as_bytes());
    rig.caller.put(ARG + 8, header.as_bytes());
    rig.caller.put(ARG + 24, ranges.as_bytes());
    match file.ioctl(&rig.caller, vfio::DEVICE_FEATURE, ARG)? {
        Reply::Value(fd) => Ok(i32::try_from(fd).expect("a descriptor")),
        Reply::Open(_) => panic!("not a device"),
    }
}

fn header(region_index: u32, nr_ranges: u32) -> DeviceFeatureDmaBuf {
    DeviceFeatureDmaBuf { region_index, open_flags: 0, flags: 0, nr_ranges }
}

#[test]
fn an_export_is_checked_in_the_order_of_linux() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let page = (0, 0x1000);
    let rows = [
        ("no ranges", header(2, 0), vec![page], Errno::EINVAL),
        ("flags", DeviceFeatureDmaBuf { flags: 1, ..header(9, 1) }, vec![page], Errno::EINVAL),
        ("the ROM", header(6, 1), vec![page], Errno::ENODEV),
        ("an absent BAR", header(1, 1), vec![page], Errno::ENODEV),
        ("an empty range", header(2, 1), vec![(0, 0)], Errno::EINVAL),
        ("a part of a page", header(2, 1), vec![(0, 0x800)], Errno::EINVAL),
        ("a misaligned range", header(2, 1), vec![(0x800, 0x1000)], Errno::EINVAL),
        (
            "a total that wraps",
            header(2, 2),
            vec![(0, u64::MAX - 0xfff), (0, 0x1000)],
            Errno::EINVAL,
        ),
        ("an address that wraps", header(2, 1), vec![(u64::MAX - 0xfff, 0x1000)], Errno::EOVERFLOW),
        ("past the end", header(2, 1), vec![(0x3000, 0x2000)], Errno::EINVAL),
        ("I/O ports", header(4, 1), vec![page], Errno::EINVAL),
        ("registers that trap", header(0, 1), vec![(0x1000, 0x1000)], Errno::EINVAL),
    ];
    for (why, header, ranges, expected) in rows {
        assert_eq!(errno(export(&rig, &file, header, &ranges)), Some(expected), "{why}");
    }
    let probe = DeviceFeature { argsz: 8, flags: GET | vfio::DEVICE_FEATURE_PROBE };
    rig.call(&file, vfio::DEVICE_FEATURE, &probe).expect("it exists");
    for (argsz, flags) in [(23, GET), (24, vfio::DEVICE_FEATURE_SET | vfio::DEVICE_FEATURE_DMA_BUF)]
    {
        let refused = rig.call(&file, vfio::DEVICE_FEATURE, &DeviceFeature { argsz, flags });
        assert_eq!(errno(refused), Some(Errno::EINVAL), "{argsz} {flags:#x}");
    }
    assert_eq!(errno(file.ioctl(&rig.caller, vfio::DEVICE_FEATURE, NOWHERE)), Some(Errno::EFAULT));
}

/// A device that exports its BAR 2, and one that reads it through an IOAS.
struct Pair {
    rig: Rig,
    context: Arc<Context>,
    ioas: u32,
    exporter: Arc<DeviceFile>,
    importer: Arc<DeviceFile>,
    buffer: i32,
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::with(&[("0000:01:00.0", 1), ("0000:02:00.0", 2)]);
        let context = rig.hardware.context();
        let fd = rig.caller.add_iommu(IommuFile::Iommufd(Arc::clone(&context)));
        let ioas = context.alloc_ioas().expect("an IOAS");
        let [exporter, importer] = [0, 1].map(|index: usize| {
            let file = rig.machine.devices()[index].open_cdev(&rig.caller).expect("an open");
            let bind = DeviceBindIommufd { argsz: 16, iommufd: fd, ..Default::default() };
            rig.call(&file, vfio::DEVICE_BIND_IOMMUFD, &bind).expect("bound");
            file
        });
        let attach = DeviceAttachIommufdPt { argsz: 12, pt_id: ioas, ..Default::default() };
        rig.call(&importer, vfio::DEVICE_ATTACH_IOMMUFD_PT, &attach).expect("attached");
        importer.write(at(7, 4), &6_u16.to_le_bytes()).expect("bus mastering");
        exporter.write(at(2, 0x1008), &0x1122_3344_5566_7788_u64.to_le_bytes()).expect("BAR pages");
        let buffer = export(&rig, &exporter, header(2, 1), &[(0x1000, 0x2000)]).expect("a dma-buf");
        Self { rig, context, ioas, exporter, importer, buffer }
    }

    fn map(&self, start: u64, iova: u64) -> Option<Errno> {
        errno(self.rig.map_file((&self.context, self.ioas), self.buffer, start, iova))
    }

    fn fetch(&self, iova: u64) -> Option<u64> {
        self.importer.write(at(0, FETCH), &iova.to_le_bytes()).expect("a register");
        let mut word = [0; 8];
        self.importer.read(at(0, FETCH), &mut word).expect("a register");
        let word = u64::from_le_bytes(word);
        (word != 0xeeee_eeee_eeee_eeee).then_some(word)
    }

    fn command(&self, value: u16) {
        self.exporter.write(at(7, 4), &value.to_le_bytes()).expect("a register");
    }

    fn unmap(&self, iova: u64) {
        let unmap = IoasUnmap { size: 24, ioas_id: self.ioas, iova, length: 0x1000 };
        let address = self.rig.caller.arg(&unmap);
        self.context.ioctl(&self.rig.caller, IOAS_UNMAP, address).expect("unmapped");
    }
}

const VALUE: Option<u64> = Some(0x1122_3344_5566_7788);

#[test]
fn one_device_reads_another_through_a_dma_buf() {
    let pair = Pair::new();
    assert_eq!(pair.map(0, 0x10_0000), None);
    assert_eq!(pair.fetch(0x10_0008), VALUE);
    assert_eq!(pair.map(0x2000, 0x20_0000), Some(Errno::EINVAL), "past the end");
}

#[test]
fn what_was_mapped_before_a_revocation_stays_out_of_reach() {
    let pair = Pair::new();
    let revocations: [(&str, &dyn Fn()); 4] = [
        ("memory decoding off and on", &|| {
            pair.command(0);
            pair.command(2);
        }),
        ("D3hot and back", &|| {
            pair.exporter.write(at(7, 0x44), &[3]).expect("a register");
            pair.exporter.write(at(7, 0x44), &[0]).expect("a register");
        }),
        ("a reset", &|| {
            pair.exporter.ioctl(&pair.rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
        }),
        ("a function-level reset", &|| {
            pair.exporter.write(at(7, 0x78), &(1_u16 << 15).to_le_bytes()).expect("a register");
        }),
    ];
    for (how, revoke) in revocations {
        let value = 0x1122_3344_5566_7788_u64.to_le_bytes();
        pair.exporter.write(at(2, 0x1008), &value).expect("BAR pages");
        assert_eq!(pair.map(0, 0x10_0000), None, "{how}");
        assert_eq!(pair.fetch(0x10_0008), VALUE, "{how}");
        revoke();
        pair.rig.hardware.machine.faults.take();
        assert_eq!(pair.fetch(0x10_0008), None, "{how}");
        let refused = pair.rig.hardware.machine.faults.take();
        let [RefusedDma { reason: Reason::Revoked, iova: Iova(0x10_0008), .. }] = refused[..]
        else {
            panic!("{how}: {refused:?}")
        };
        pair.unmap(0x10_0000);
    }
}

#[test]
fn a_revoked_dma_buf_is_not_mapped() {
    let pair = Pair::new();
    pair.command(0);
    assert_eq!(pair.map(0, 0x10_0000), Some(Errno::ENODEV));
    pair.command(2);
    assert_eq!(pair.map(0, 0x10_0000), None);
    pair.exporter.close();
    assert_eq!(pair.fetch(0x10_0008), None);
    assert_eq!(pair.map(0, 0x20_0000), Some(Errno::ENODEV), "for good");
}

#[test]
fn a_dma_buf_of_several_ranges_is_made_and_not_mapped() {
    let mut pair = Pair::new();
    let ranges = [(0, 0x1000), (0x2000, 0x1000)];
    pair.buffer = export(&pair.rig, &pair.exporter, header(2, 2), &ranges).expect("a dma-buf");
    assert_eq!(pair.map(0, 0x10_0000), Some(Errno::EOPNOTSUPP));
}
