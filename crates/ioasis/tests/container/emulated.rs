//! Differences 35, 36 and 40, and what others of them have to do with devices that do no DMA of their own: their driver pins what
//! they write, and copies what they read.

use super::rules::{ATTACHED, ATTACHED_V1, Machine, Step, same};

fn emulated() -> Machine {
    Machine::with(&["testdev,iommu=emulated", "testdev"])
}

fn attached(steps: &[Step]) -> Vec<Step> {
    [&ATTACHED[..], &[same("command d 6", "0")], steps].concat()
}

#[test]
fn g35_an_emulated_device_pins_page_by_page() {
    emulated().answers(&attached(&[
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("fill +0 7", "0"),
        same("status VmLck", "0 0"),
        same("status VmPin", "0 0"),
        same("dma d read 0x1000", "0"),
        same("dma d write 0x2000", "0"),
        same("peek +0x1000", "0 0x7"),
        ("status VmLck", "0 4", "0 0"),
        ("status VmPin", "0 0", "0 4"),
        same("dma d write 0x2000", "0"),
        ("status VmLck", "0 4", "0 0"),
        same("dma d write 0x2800", "0 fault=0x3000"),
        same("map c r 0x5000 +0x2000 0x1000", "0"),
        same("dma d read 0x5000", "0"),
        same("dma d write 0x5000", "0 fault=0x5000"),
        // Without READ the type1 driver lets nothing through.
        same("map c w 0x6000 +0x3000 0x1000", "0"),
        same("dma d read 0x6000", "0 fault=0x6000"),
        ("dma d write 0x6000", "0 fault=0x6000", "0"),
        same("close d", "0"),
        same("status VmLck", "0 0"),
        same("status VmPin", "0 0"),
    ]));
    let v1 = [
        same("command d 6", "0"),
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("dma d read 0x1000", "0"),
        ("dma d write 0x1000", "0 fault=0x1000", "0"),
    ];
    emulated().answers(&[&ATTACHED_V1[..], &v1].concat());
}

#[test]
fn g36_what_is_pinned_is_dirty_under_type1() {
    emulated().answers(&attached(&[
        same("map c rw 0x1000 +0 0x4000", "0"),
        ("log c 1", "0", "ENOTTY"),
        ("bitmap c 0 0x10000", "0 0", "ENOTTY"),
        same("dma d write 0x2000", "0"),
        ("bitmap c 0 0x10000", "0 0x4", "ENOTTY"),
        same("dma d write 0x3000", "0"),
        ("bitmap c 0 0x10000", "0 0xc", "ENOTTY"),
        same("close d", "0"),
        // Unpinned since: dirty for the last time.
        ("bitmap c 0 0x10000", "0 0xc", "ENOTTY"),
        ("bitmap c 0 0x10000", "0 0", "ENOTTY"),
    ]));
    // A group that does DMA makes everything dirty, also when it has left, once.
    emulated().type1_answers(&attached(&[
        same("map c rw 0x1000 +0 0x4000", "0"),
        same("log c 1", "0"),
        same("open h /dev/vfio/2", "0"),
        same("setc h c", "0"),
        same("bitmap c 0 0x10000", "0 0x1e"),
        same("unsetc h", "0"),
        same("bitmap c 0 0x10000", "0 0x1e"),
        same("bitmap c 0 0x10000", "0 0"),
        same("dma d write 0x4000", "0"),
        same("unmapdirty c 0x1000 0x4000", "0 0x8"),
    ]));
}

#[test]
fn g40_an_unmap_waits_for_an_emulated_device() {
    emulated().answers(&attached(&[
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("map c rw 0x3000 +0x2000 0x1000", "0"),
        same("dma d write 0x1000", "0"),
        same("dma d write 0x2000", "0"),
        same("dma d write 0x3000", "0"),
        ("status VmLck", "0 12", "0 0"),
        same("unmap c 0 0x1000 0x2000", "0 size=0x2000"),
        ("status VmLck", "0 4", "0 0"),
        same("dma d write 0x1000", "0 fault=0x1000"),
        same("unmap c 2 0 0", "0 size=0x1000"),
        same("status VmLck", "0 0"),
        same("status VmPin", "0 0"),
    ]));
}

#[test]
fn addresses_stay_while_an_emulated_device_may_use_them() {
    emulated().answers(&attached(&[
        same("ext c 10", "0"),
        same("map c rw 0x1000 +0 0x1000", "0"),
        ("unmap c 4 0x1000 0x1000", "EBUSY size=0x1000", "EINVAL size=0x1000"),
        ("unmap c 6 0 0", "EBUSY size=0", "EINVAL size=0"),
    ]));
}

#[test]
fn ranges_and_pins_follow_the_groups_that_do_dma() {
    let ranges = "0 [0 0xfedfffff][0xfef00000 0xffffffffffff]";
    let all = "0 [0 0xffffffffffffffff]";
    emulated().answers(&attached(&[
        ("info c 512 ranges", "0 absent", all),
        same("map c rw 0x1000 +0 0x4000", "0"),
        same("dma d write 0x2000", "0"),
        ("status VmLck", "0 4", "0 0"),
        same("open h /dev/vfio/2", "0"),
        same("setc h c", "0"),
        same("device h e 0000:02:00.0", "0"),
        same("info c 512 ranges", ranges),
        ("status VmLck", "0 16", "0 0"),
        ("status VmPin", "0 0", "0 16"),
        same("close e", "0"),
        same("unsetc h", "0"),
        ("status VmLck", "0 4", "0 0"),
        ("status VmPin", "0 0", "0 4"),
        ("info c 512 ranges", all, all),
    ]));
}

#[test]
fn a_cut_through_pinned_pages_is_refused_under_compatibility() {
    let steps = [
        same("command d 6", "0"),
        same("map c rw 0x1000 +0 0x4000", "0"),
        ("dma d write 0x1000", "0 fault=0x1000", "0"),
        ("unmap c 0 0x2000 0x1000", "0 size=0", "EINVAL size=0x1000"),
        same("unmap c 0 0x1000 0x4000", "0 size=0x4000"),
    ];
    emulated().answers(&[&ATTACHED_V1[..], &steps].concat());
}
