//! Differences 22 to 42: groups, drivers, ownership, accounting, parameters.

use super::rules::{ATTACHED, Machine, Step, same};

fn testdev() -> Machine {
    Machine::with(&["testdev"])
}

fn attached(steps: &[Step]) -> Vec<Step> {
    [&ATTACHED[..], steps].concat()
}

/// Opened, the first group set, no driver yet.
const GROUP: [Step; 3] =
    [same("open c container", "0"), same("open g /dev/vfio/1", "0"), same("setc g c", "0")];

fn grouped(steps: &[Step]) -> Vec<Step> {
    [&GROUP[..], steps].concat()
}

#[test]
fn g22_a_driver_is_chosen_once_under_type1() {
    testdev().answers(&[
        same("open c container", "0"),
        ("set c 3", "EINVAL", "ENODEV"),
        same("set c 9", "EINVAL"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        ("set c 8", "ENODEV", "EINVAL"),
        ("set c 4", "ENODEV", "EINVAL"),
        same("set c 9", "EINVAL"),
        same("set c 3", "0"),
        ("set c 3", "EINVAL", "0"),
        ("set c 1", "EINVAL", "0"),
        same("device g d 0000:01:00.0", "0"),
        same("map c rw 0x1000 +0 0x1000", "0"),
        ("set c 1", "EINVAL", "0"),
    ]);
    testdev()
        .answers(&attached(&[same("map c rw 0x1000 +0 0x1000", "0"), same("set c 1", "EINVAL")]));
}

#[test]
fn g23_nothing_works_before_the_driver_is_chosen_under_type1() {
    testdev().answers(&[
        same("open c container", "0"),
        same("api c", "0"),
        ("map c rw 0x1000 +0 0x1000", "EINVAL", "ENODEV"),
        ("unmap c 2 0 0", "EINVAL size=0", "ENODEV size=0"),
        ("info c 64 head", "EINVAL", "ENODEV"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        ("map c rw 0x1000 +0 0x1000", "EINVAL", "0"),
        ("info c 512 caps", "EINVAL", "0 caps=1 3"),
        ("unmap c 2 0 0", "EINVAL size=0", "0 size=0x1000"),
        ("device g d 0000:01:00.0", "EINVAL", "0"),
    ]);
}

#[test]
fn g24_memory_is_checked_when_it_is_mapped_under_type1() {
    testdev().answers(&grouped(&[
        same("set c 3", "0"),
        ("map c rw 0x1000 0x1000 0x1000", "EFAULT", "0"),
        ("device g d 0000:01:00.0", "0", "EFAULT"),
    ]));
    testdev().answers(&grouped(&[
        same("set c 3", "0"),
        same("limit 4096", "0"),
        same("drop 14", "0"),
        ("map c rw 0x1000 +0 0x2000", "ENOMEM", "0"),
        ("device g d 0000:01:00.0", "0", "ENOMEM"),
    ]));
}

#[test]
fn g25_a_group_with_a_container_is_viable_by_both() {
    let machine = testdev().and("--iommu", &["isolated_msi=off"]);
    machine.answers(&[
        same("open g /dev/vfio/1", "0"),
        same("group g", "0 flags=1"),
        same("open c container", "0"),
        same("setc g c", "0"),
        same("group g", "0 flags=3"),
        // What makes it unusable shows before the device is asked for.
        ("set c 3", "EPERM", "0"),
        ("device g d 0000:01:00.0", "EINVAL", "EPERM"),
        same("unsetc g", "0"),
        same("group g", "0 flags=1"),
    ]);
}

#[test]
fn g26_a_container_is_kept_while_a_device_is_open_under_type1() {
    testdev().answers(&attached(&[
        ("unsetc g", "EBUSY", "0"),
        same("close d", "0"),
        ("unsetc g", "0", "EINVAL"),
        same("unsetc g", "EINVAL"),
    ]));
}

#[test]
fn g27_the_last_group_takes_the_mappings_with_it_under_type1() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("close d", "0"),
        same("unsetc g", "0"),
        ("map c rw 0x2000 +0 0x1000", "EINVAL", "0"),
        ("set c 3", "EINVAL", "0"),
        same("setc g c", "0"),
        same("set c 3", "0"),
        ("map c rw 0x1000 +0 0x1000", "0", "EEXIST"),
    ]));
}

#[test]
fn g28_a_group_that_does_not_fit_the_mappings_is_einval_under_type1() {
    let devices = ["testdev", "testdev,iommu=1"];
    let iommus = ["kind=vtd", "kind=vtd,aperture=0x0-0xffffffff"];
    Machine::with(&devices).and("--iommu", &iommus).answers(&attached(&[
        same("map c rw 0x200000000 +0 0x1000", "0"),
        same("open h /dev/vfio/2", "0"),
        ("setc h c", "EINVAL", "0"),
        ("device h e 0000:02:00.0", "EINVAL", "EADDRINUSE"),
        same("unmap c 2 0 0", "0 size=0x1000"),
        ("setc h c", "0", "EINVAL"),
        same("device h e 0000:02:00.0", "0"),
        same("map c rw 0x200000000 +0 0x1000", "EINVAL"),
    ]));
}

#[test]
fn g29_coherence_is_that_of_the_groups_there_are_under_type1() {
    let devices = ["testdev", "testdev,iommu=1"];
    let iommus = ["kind=vtd", "kind=vtd,coherence=cached"];
    Machine::with(&devices).and("--iommu", &iommus).answers(&[
        same("open c container", "0"),
        ("ext c 4", "0", "ENODEV"),
        same("open g /dev/vfio/1", "0"),
        same("setc g c", "0"),
        ("ext c 4", "0", "1"),
        same("set c 3", "0"),
        same("ext c 4", "1"),
        same("device g d 0000:01:00.0", "0"),
        same("ext c 4", "1"),
        same("open h /dev/vfio/2", "0"),
        same("setc h c", "0"),
        ("ext c 4", "0", "1"),
        same("device h e 0000:02:00.0", "0"),
        same("ext c 4", "0"),
        same("close e", "0"),
        ("ext c 4", "0", "1"),
        same("unsetc h", "0"),
        same("ext c 4", "1"),
    ]);
}

#[test]
fn g30_a_container_without_an_iommu_maps_nothing() {
    Machine::with(&["testdev,iommu=none", "testdev"]).answers(&[
        same("open c container", "0"),
        same("ext c 8", "1"),
        same("open n /dev/vfio/noiommu-1", "0"),
        same("setc n c", "0"),
        same("ext c 8", "1"),
        same("ext c 3", "0"),
        same("write /sys/module/vfio/parameters/enable_unsafe_noiommu_mode N", "0"),
        ("ext c 8", "0", "1"),
        ("set c 8", "ENODEV", "0"),
        same("write /sys/module/vfio/parameters/enable_unsafe_noiommu_mode Y", "0"),
        ("set c 3", "ENODEV", "EINVAL"),
        same("set c 8", "0"),
        ("map c rw 0x1000 +0 0x1000", "ENOTTY", "ENODEV"),
        ("info c 64 head", "ENOTTY", "ENODEV"),
        same("ioctl c 0x79", "ENOTTY"),
        same("open g /dev/vfio/2", "0"),
        ("setc g c", "EPERM", "EINVAL"),
        same("device n d 0000:01:00.0", "0"),
    ]);
    Machine::with(&["testdev,iommu=none"])
        .answers(&[same("drop 17", "0"), same("open n /dev/vfio/noiommu-1", "EPERM")]);
}

#[test]
fn g31_pages_are_locked_whatever_the_capabilities_under_type1() {
    let same_ways = |step, answer| (step, [answer; 3]);
    let opened = ATTACHED.map(|(step, answer, _)| same_ways(step, answer));
    let with_capability = [
        same_ways("map c rw 0x1000 +0 0x2000", "0"),
        ("status VmLck", ["0 8", "0 0", "0 0"]),
        ("status VmPin", ["0 0", "0 8", "0 8"]),
        same_ways("unmap c 2 0 0", "0 size=0x2000"),
        same_ways("status VmLck", "0 0"),
        same_ways("status VmPin", "0 0"),
    ];
    testdev().answers_three_ways(&[&opened[..], &with_capability].concat());
    let without = [
        same_ways("drop 14", "0"),
        same_ways("limit 8192", "0"),
        same_ways("map c rw 0x1000 +0 0x2000", "0"),
        ("status VmLck", ["0 8", "0 0", "0 8"]),
        ("status VmPin", ["0 0", "0 8", "0 8"]),
        same_ways("map c rw 0x3000 +0x2000 0x1000", "ENOMEM"),
        // Another process has a limit of its own, another container of one user does not.
        ("child map c rw 0x3000 +0x2000 0x1000", ["0", "ENOMEM", "0"]),
    ];
    testdev().answers_three_ways(&[&opened[..], &without].concat());
}

#[test]
fn g32_the_path_that_was_opened_decides_also_behind_a_link() {
    testdev().compat_answers_at(
        "/dev/vfio/vfio",
        &[
            same("open c container", "ENOENT"),
            same("link /dev/iommu /dev/vfio/vfio", "0"),
            same("open c container", "0"),
            same("open g /dev/vfio/1", "0"),
            same("setc g c", "0"),
            same("set c 3", "0"),
            same("device g d 0000:01:00.0", "0"),
            same("info c 512 caps", "0 caps=1 3"),
            // IOMMU_OPTION_RLIMIT_MODE is still 0: charged by user.
            same("native c 0x87 0 1 0 0 0", "0 0 1 0 0 0"),
        ],
    );
}

#[test]
fn g33_info_raises_argsz_only_when_it_is_too_small_under_type1() {
    testdev().answers(&attached(&[
        same("info c 15 head", "EINVAL"),
        same("info c 16 head", "0 flags=3 argsz raised cap_offset=0"),
        same("info c 24 head", "0 flags=3 argsz raised cap_offset=0"),
        same("info c 64 head", "0 flags=3 argsz raised cap_offset=0"),
        (
            "info c 512 head",
            "0 flags=3 argsz kept cap_offset=24",
            "0 flags=3 argsz lowered cap_offset=24",
        ),
        same("info c 512 sizes", "0 0x40201000"),
    ]));
}

#[test]
fn g34_callers_of_32_bits_are_answered_under_type1() {
    // They open, map and access like any other.
    testdev().type1_answers(
        &[
            &[same("abi i386", "0")][..],
            &ATTACHED,
            &[
                same("command d 6", "0"),
                same("map c rw 0x1000 +0 0x2000", "0"),
                same("fill +0 7", "0"),
                same("dma d read 0x1000", "0"),
                same("dma d write 0x2000", "0"),
                same("peek +0x1000", "0 0x7"),
            ],
        ]
        .concat(),
    );
    testdev().answers(&grouped(&[
        same("abi i386", "0"),
        same("open o container", "0"),
        ("ext c 3", "1", "ENOTTY"),
        same("group g", "0 flags=3"),
        ("set c 3", "0", "ENOTTY"),
        same("device g d 0000:01:00.0", "0"),
        ("map c rw 0x1000 +0 0x2000", "0", "ENOTTY"),
        ("unmap c 0 0x1000 0x2000", "0 size=0x2000", "ENOTTY size=0x2000"),
        same("reset d", "0"),
    ]));
}

#[test]
fn g37_no_group_comes_while_a_mapping_has_no_address() {
    Machine::with(&["testdev", "testdev"]).answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        same("open h /dev/vfio/2", "0"),
        ("unmap c 4 0x1000 0x1000", "0 size=0x1000", "EINVAL size=0x1000"),
        ("setc h c", "EBUSY", "0"),
        ("map c v 0x1000 +0 0x1000", "0", "EINVAL"),
        ("setc h c", "0", "EINVAL"),
        same("device h e 0000:02:00.0", "0"),
    ]));
}

#[test]
fn g38_each_module_has_its_own_parameter() {
    let steps = |type1_set, type1_open, compat_open| {
        grouped(&[
            ("set c 3", type1_set, "0"),
            ("device g d 0000:01:00.0", type1_open, compat_open),
        ])
    };
    let unsafe_machine = || testdev().and("--iommu", &["isolated_msi=off"]);
    unsafe_machine().answers(&steps("EPERM", "EINVAL", "EPERM"));
    unsafe_machine()
        .parameter("vfio_iommu_type1", "allow_unsafe_interrupts", "true")
        .answers(&steps("0", "0", "EPERM"));
    unsafe_machine()
        .parameter("iommufd", "allow_unsafe_interrupts", "true")
        .answers(&steps("EPERM", "EINVAL", "0"));
    // Read at the moment of the call.
    unsafe_machine().type1_answers(&grouped(&[
        same("set c 3", "EPERM"),
        same("write /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts 1", "0"),
        same("set c 3", "0"),
    ]));
    testdev().type1_answers(&grouped(&[
        same("write /sys/module/vfio_iommu_type1/parameters/dma_entry_limit 0x1", "0"),
        same("write /sys/module/vfio_iommu_type1/parameters/dma_entry_limit one", "EINVAL"),
        same("set c 3", "0"),
        same("write /sys/module/vfio_iommu_type1/parameters/dma_entry_limit 9", "0"),
        same("info c 512 avail", "0 1"),
        same("write /sys/module/vfio_iommu_type1/parameters/disable_hugepages y", "0"),
        same("map c rw 0x200000 +0x200000 0x400000", "0"),
        same("unmap c 2 0 0", "0 size=0x400000"),
    ]));
}

#[test]
fn g39_calls_of_other_drivers_are_unknown_by_both() {
    testdev().answers(&attached(&[
        same("ioctl c 0x73", "ENOTTY"),
        same("ioctl c 0x74", "ENOTTY"),
        same("ext c 6", "0"),
    ]));
}

#[test]
fn g41_native_calls_reach_the_container_under_compatibility() {
    testdev().answers(&attached(&[
        same("map c rw 0x1000 +0 0x1000", "0"),
        ("native c 0x81 0 0", "ENOTTY", "0 0 4"),
        ("native c 0x88 4 1 0", "ENOTTY", "0 4 1 0"),
        ("map c rw 0x1000 +0 0x1000", "EEXIST", "0"),
        ("native c 0x80 1", "ENOTTY", "EBUSY"),
        same("close d", "0"),
        ("native c 0x80 1", "ENOTTY", "0 1"),
    ]));
    testdev().answers(&[same("open c container", "0"), ("native c 0x81 0 0", "EINVAL", "0 0 1")]);
}

#[test]
fn g42_a_group_proves_ownership_for_a_hot_reset_by_both() {
    testdev().answers(&attached(&[same("command d 6", "0"), same("hotreset d g", "0")]));
}
