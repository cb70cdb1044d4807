//! Differences 1 to 21: MAP_DMA, UNMAP_DMA, GET_INFO and the dirty log.

use super::rules::{ATTACHED, ATTACHED_V1, Machine, Step, same};

fn testdev() -> Machine {
    Machine::with(&["testdev"])
}

fn attached(steps: &[Step]) -> Vec<Step> {
    [&ATTACHED[..], steps].concat()
}

fn attached_v1(steps: &[Step]) -> Vec<Step> {
    [&ATTACHED_V1[..], steps].concat()
}

#[test]
fn g01_a_mapping_gets_a_new_address_under_type1() {
    testdev().answers(&attached(&[
        same("command d 6", "0"),
        same("map c rw 0x1000 +0 0x2000", "0"),
        ("unmap c 4 0x1000 0x2000", "0 size=0x2000", "EINVAL size=0x2000"),
        same("fill +0 7", "0"),
        same("dma d read 0x1000", "0"),
        same("map c rv 0x1000 +0 0x2000", "EINVAL"),
        ("map c v 0x4000 +0 0x1000", "ENOENT", "EINVAL"),
        same("map c v 0x1000 +0 0x1000", "EINVAL"),
        ("child map c v 0x1000 +0 0x2000", "0", "EINVAL"),
        same("map c v 0x1000 +0 0x2000", "EINVAL"),
        same("dma d write 0x2000", "0"),
        same("peek +0x1000", "0 0x7"),
    ]));
}

#[test]
fn g02_addresses_are_taken_away_all_or_none_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("map c rw 0x2000 +0x1000 0x1000", "0"),
        ("unmap c 4 0x2000 0x1000", "0 size=0x1000", "EINVAL size=0x1000"),
        same("unmap c 6 0 0", "EINVAL size=0"),
        ("unmap c 4 0x1000 0x1000", "0 size=0x1000", "EINVAL size=0x1000"),
        same("unmap c 0 0x1000 0x2000", "0 size=0x2000"),
        same("map c rw 0x1000 +0 0x1000", "0"),
    ]));
}

#[test]
fn g03_an_unmap_hands_over_the_dirty_bits_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x3000", "0"),
        same("unmapdirty c 0x1000 0x3000", "EINVAL"),
        ("log c 1", "0", "ENOTTY"),
        same("unmapdirty c 0x1000 0x2000", "EINVAL"),
        same("unmap c 3 0 0 48", "EINVAL size=0"),
        ("unmapdirty c 0x1000 0x3000", "0 0x7", "EINVAL"),
        ("unmap c 2 0 0", "0 size=0", "0 size=0x3000"),
    ]));
}

#[test]
fn g04_dirty_pages_are_logged_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x2000", "0"),
        ("bitmap c 0 0x10000", "EINVAL", "ENOTTY"),
        ("log c 1", "0", "ENOTTY"),
        ("log c 3", "EINVAL", "ENOTTY"),
        ("bitmap c 0 0x10000", "0 0x6", "ENOTTY"),
        ("bitmap c 0 0x2000", "EINVAL", "ENOTTY"),
        ("bitmap c 0 0x10000 0x2000", "EINVAL", "ENOTTY"),
        ("log c 2", "0", "ENOTTY"),
        ("bitmap c 0 0x10000", "EINVAL", "ENOTTY"),
    ]));
    testdev().answers(&attached_v1(&[("log c 1", "EACCES", "ENOTTY")]));
}

#[test]
fn g05_the_extension_of_new_addresses_is_there_under_type1() {
    testdev().answers(&[
        same("open c container", "0"),
        same("ext c 10", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        same("set c 3", "0"),
        ("ext c 10", "1", "0"),
    ]);
}

#[test]
fn g06_the_migration_capability_is_there_under_type1() {
    testdev().answers(&attached(&[
        ("info c 512 caps", "0 caps=1 2 3", "0 caps=1 3"),
        ("info c 512 migration", "0 0x1000 268435456", "0 absent"),
    ]));
}

#[test]
fn g07_mappings_are_counted_and_limited_under_type1() {
    testdev().parameter("vfio_iommu_type1", "dma_entry_limit", "2").answers(&attached(&[
        ("info c 512 avail", "0 2", "0 4294967295"),
        same("map c rw 0x1000 +0 0x1000", "0"),
        ("info c 512 avail", "0 1", "0 4294967295"),
        same("map c rw 0x2000 +0 0x1000", "0"),
        ("map c rw 0x3000 +0 0x1000", "ENOSPC", "0"),
        same("map c rw 0x1000 +0 0x1000", "EEXIST"),
        ("unmap c 2 0 0", "0 size=0x2000", "0 size=0x3000"),
        ("info c 512 avail", "0 2", "0 4294967295"),
    ]));
    testdev().answers(&attached(&[("info c 512 avail", "0 65535", "0 4294967295")]));
}

#[test]
fn g08_ranges_are_shown_when_there_is_a_domain_under_type1() {
    let ranges = "0 [0 0xfedfffff][0xfef00000 0xffffffffffff]";
    testdev().answers(&[
        same("open c container", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        ("info c 512 ranges", "EINVAL", "0 [0 0xffffffffffffffff]"),
        same("set c 3", "0"),
        ("info c 512 ranges", ranges, "0 [0 0xffffffffffffffff]"),
        same("device g d 0000:01:00.0", "0"),
        same("info c 512 ranges", ranges),
    ]);
}

#[test]
fn g09_a_bar_is_mapped_by_address_under_type1() {
    Machine::with(&["testdev,group=1", "testdev,group=1"]).answers(&attached(&[
        same("device g e 0000:02:00.0", "0"),
        same("command d 6", "0"),
        same("command e 6", "0"),
        same("mmap e", "0"),
        ("map c rw 0x10000 @e 0x1000", "0", "EFAULT"),
        ("unmap c 0 0x10000 0x1000", "0 size=0x1000", "0 size=0"),
    ]));
}

#[test]
fn g10_there_is_no_spapr_on_a_pc() {
    testdev().answers(&[
        same("open c container", "0"),
        same("ext c 2", "0"),
        same("ext c 5", "0"),
        same("ext c 7", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        ("set c 2", "ENODEV", "EINVAL"),
        ("set c 7", "ENODEV", "EINVAL"),
        same("set c 3", "0"),
        same("ioctl c 0x79", "ENOTTY"),
        same("ioctl c 0x76", "ENOTTY"),
    ]);
}

#[test]
fn g11_a_mapping_without_access_is_refused_under_type1() {
    testdev().answers(&attached(&[
        same("map c 0 0x1000 +0 0x1000", "EINVAL"),
        same("map c 0x80000000 0x1000 +0 0x1000", "EINVAL"),
    ]));
    testdev().answers(&[
        same("open c container", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        same("set c 3", "0"),
        ("map c 0 0x1000 +0 0x1000", "EINVAL", "0"),
        ("device g d 0000:01:00.0", "0", "EINVAL"),
        ("unmap c 2 0 0", "0 size=0", "0 size=0x1000"),
        same("device g d 0000:01:00.0", "0"),
    ]);
}

#[test]
fn g12_a_mapping_is_page_aligned_from_the_start_under_type1() {
    testdev().answers(&[
        same("open c container", "0"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        same("set c 3", "0"),
        ("map c rw 0x1800 +0x800 0x800", "EINVAL", "0"),
        ("device g d 0000:01:00.0", "0", "EADDRINUSE"),
        ("unmap c 2 0 0", "0 size=0", "0 size=0x800"),
        same("device g d 0000:01:00.0", "0"),
        same("map c rw 0x1800 +0x800 0x800", "EINVAL"),
        same("map c rw 0x1000 +0x800 0x1000", "EINVAL"),
    ]);
}

#[test]
fn g13_a_mapping_is_checked_in_the_drivers_order() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000 31", "EINVAL"),
        same("map c rw 0x1000 +0 0", "EINVAL"),
        same("map c rw 0x1000 0xfffffffffffff000 0x2000", "EOVERFLOW"),
        ("map c rw 0x1000 0xfffffffffffff000 0x1000", "EFAULT", "EOVERFLOW"),
        same("map c rw 0xfffffffffffff000 +0 0x2000", "EOVERFLOW"),
        ("map c rw 0xfffffffffffff800 +0 0x1000", "EOVERFLOW", "EINVAL"),
        ("map c 0 0x1000 +0x800 0x1000", "EINVAL", "EINVAL"),
        same("map c rw 0xfee00000 +0 0x1000", "EINVAL"),
        same("map c rw 0x1000000000000 +0 0x1000", "EINVAL"),
        same("map c rw 0x1000 0x1000 0x1000", "EFAULT"),
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("map c rw 0x2000 0x1000 0x1000", "EEXIST"),
        same("map c rw 0x1800 +0 0x1000", "EINVAL"),
    ]));
}

#[test]
fn g14_an_unmap_that_cuts_changes_nothing_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("map c rw 0x2000 +0x1000 0x2000", "0"),
        ("unmap c 0 0x1000 0x2000", "EINVAL size=0x2000", "ENOENT size=0x1000"),
        ("unmap c 0 0x3000 0x1000", "EINVAL size=0x1000", "ENOENT size=0"),
        ("unmap c 2 0 0", "0 size=0x3000", "0 size=0x2000"),
    ]));
}

#[test]
fn g15_an_unmap_is_page_aligned_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("unmap c 0 0x1000 0", "EINVAL size=0"),
        (
            "unmap c 0 0x2000 0xfffffffffffff000",
            "EOVERFLOW size=0xfffffffffffff000",
            "EOVERFLOW size=0",
        ),
        ("unmap c 0 0x800 0x2000", "EINVAL size=0x2000", "0 size=0x1000"),
        ("unmap c 0 0x1000 0x1800", "EINVAL size=0x1800", "0 size=0"),
        ("unmap c 0 0 0xffffffffffffffff", "EINVAL size=0xffffffffffffffff", "0 size=0"),
        ("unmap c 2 0 0", "0 size=0x1000", "0 size=0"),
    ]));
}

#[test]
fn g16_an_unmap_of_nothing_succeeds_by_both() {
    testdev().answers(&attached(&[
        same("unmap c 0 0x1000 0x1000", "0 size=0"),
        same("unmap c 2 0 0", "0 size=0"),
        same("unmap c 2 0x1000 0", "EINVAL size=0"),
        same("unmap c 2 0 0x1000", "EINVAL size=0x1000"),
    ]));
}

#[test]
fn g17_a_refused_unmap_leaves_the_size_alone_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("map c rw 0x2000 +0 0x2000", "0"),
        same("unmap c 0 0x1000 0x1000 23", "EINVAL size=0x1000"),
        same("unmap c 0x80000000 0x1000 0x1000", "EINVAL size=0x1000"),
        ("unmap c 0 0x1000 0x2000", "EINVAL size=0x2000", "ENOENT size=0x1000"),
    ]));
}

#[test]
fn g18_v1_removes_whole_mappings_by_their_first_byte_under_type1() {
    testdev().answers(&attached_v1(&[
        same("map c rw 0x1000 +0 0x4000", "0"),
        ("unmap c 0 0x2000 0x1000", "0 size=0", "0 size=0x1000"),
        ("unmap c 0 0x1000 0x1000", "0 size=0x4000", "0 size=0x1000"),
        ("unmap c 2 0 0", "0 size=0", "0 size=0x2000"),
    ]));
}

#[test]
fn g19_v1_refuses_no_cut_that_type1_allows() {
    testdev().answers(&attached_v1(&[
        same("map c rw 0x200000 +0x200000 0x400000", "0"),
        ("unmap c 0 0x201000 0x1000", "0 size=0", "0 size=0x1000"),
        ("unmap c 0 0x200800 0x1000", "EINVAL size=0x1000", "EINVAL size=0x1000"),
        ("unmap c 0 0 0x400000", "0 size=0x400000", "0 size=0x1ff000"),
    ]));
}

#[test]
fn g20_v1_checks_a_range_before_it_cuts_under_type1() {
    testdev().answers(&attached_v1(&[
        same("map c rw 0x1000 +0 0x2000", "0"),
        same("unmap c 0 0x2000 0", "EINVAL size=0"),
        ("unmap c 0 0x1000 0x1000", "0 size=0x2000", "0 size=0x1000"),
        ("unmap c 0 0x1000 0x2000", "0 size=0", "0 size=0x1000"),
    ]));
}

#[test]
fn g21_v1_keeps_large_leaves_under_type1() {
    // Leaves of a page would take two gibibytes of tables and minutes.
    testdev().type1_answers(&attached_v1(&[
        same("command d 6", "0"),
        same("huge 0x10000000000", "0"),
        same("fill +0xff00000000 9", "0"),
        same("map c rw 0x10000000000 +0 0x10000000000", "0"),
        same("dma d read 0x1ff00000000", "0"),
        same("unmap c 0 0x10000000000 0x1000", "0 size=0x10000000000"),
    ]));
    testdev().answers(&attached_v1(&[
        ("native c 0x87 1 1 1 0 0", "ENOTTY", "0 1 1 1 0 0"),
        same("map c rw 0x200000 +0x200000 0x200000", "0"),
        ("unmap c 0 0x200000 0x1000", "0 size=0x200000", "0 size=0x1000"),
    ]));
}
