//! The two sets of rules side by side: the points at which they differ, and nothing else.

use super::rules::{ATTACHED, ATTACHED_V1, Machine, Step, same};

/// A container and a group, nothing attached.
const OPENED: [Step; 2] = [same("open c container", "0"), same("open g /dev/vfio/1", "0")];

/// One point: how to come there, and the steps at which the sets of rules are compared.
struct Point {
    what: &'static str,
    before: &'static [Step],
    steps: &'static [Step],
}

const TABLE: [Point; 19] = [
    Point {
        what: "native codes",
        before: &ATTACHED,
        steps: &[("native c 0x81 0 0", "ENOTTY", "0 0 4")],
    },
    Point {
        what: "nothing attached yet",
        before: &OPENED,
        steps: &[
            same("api c", "0"),
            ("set c 3", "EINVAL", "ENODEV"),
            ("map c rw 0x1000 +0 0x1000 8", "EINVAL", "EINVAL"),
            ("map c rw 0x1000 +0 0x1000", "EINVAL", "ENODEV"),
            same("setc g c", "0"),
            ("map c rw 0x1000 +0 0x1000", "EINVAL", "0"),
        ],
    },
    Point {
        what: "extensions 1, 3, 9",
        before: &OPENED,
        steps: &[same("ext c 1", "1"), same("ext c 3", "1"), same("ext c 9", "1")],
    },
    Point {
        what: "extensions 4, 8, 10",
        before: &OPENED,
        steps: &[
            ("ext c 4", "0", "ENODEV"),
            ("ext c 8", "0", "1"),
            same("ext c 10", "0"),
            same("setc g c", "0"),
            same("set c 3", "0"),
            same("device g d 0000:01:00.0", "0"),
            same("ext c 4", "1"),
            ("ext c 8", "0", "1"),
            ("ext c 10", "1", "0"),
        ],
    },
    Point {
        what: "SET_IOMMU",
        before: &OPENED,
        steps: &[
            same("setc g c", "0"),
            same("set c 1", "0"),
            ("set c 3", "EINVAL", "0"),
            // Huge pages stay off.
            ("native c 0x87 1 1 1 0 0", "ENOTTY", "0 1 1 1 0 0"),
        ],
    },
    Point {
        what: "attach, pin, conflicts",
        before: &OPENED,
        steps: &[
            same("setc g c", "0"),
            same("set c 3", "0"),
            ("map c rw 0x1000 0x1000 0x1000", "EFAULT", "0"),
            ("device g d 0000:01:00.0", "0", "EFAULT"),
        ],
    },
    Point {
        what: "GET_INFO",
        before: &ATTACHED,
        steps: &[
            ("info c 512 caps", "0 caps=1 2 3", "0 caps=1 3"),
            ("info c 512 avail", "0 65535", "0 4294967295"),
            (
                "info c 512 head",
                "0 flags=3 argsz kept cap_offset=24",
                "0 flags=3 argsz lowered cap_offset=24",
            ),
            same("info c 64 head", "0 flags=3 argsz raised cap_offset=0"),
        ],
    },
    Point {
        what: "MAP without access, misaligned",
        before: &OPENED,
        steps: &[
            same("setc g c", "0"),
            same("set c 3", "0"),
            ("map c 0 0x1000 +0 0x1000", "EINVAL", "0"),
            ("map c rw 0x2001 +1 1", "EINVAL", "0"),
        ],
    },
    Point {
        what: "MAP or UNMAP past 2^64",
        before: &ATTACHED,
        steps: &[
            same("map c rw 0xfffffffffffff000 +0 0x2000", "EOVERFLOW"),
            ("unmap c 0 0xfffffffffffff000 0x2000", "EOVERFLOW size=0x2000", "EOVERFLOW size=0"),
        ],
    },
    Point {
        what: "MAP of a BAR's address",
        before: &ATTACHED,
        steps: &[
            same("command d 6", "0"),
            same("mmap d", "0"),
            ("map c rw 0x1000 @d 0x1000", "0", "EFAULT"),
        ],
    },
    Point {
        what: "number of mappings",
        before: &ATTACHED,
        steps: &[
            same("map c rw 0x1000 +0 0x1000", "0"),
            ("info c 512 avail", "0 65534", "0 4294967295"),
        ],
    },
    Point {
        what: "UNMAP of an empty range",
        before: &ATTACHED,
        steps: &[same("unmap c 0 0x1000 0x1000", "0 size=0")],
    },
    Point {
        what: "UNMAP ALL with iova or size",
        before: &ATTACHED,
        steps: &[
            same("unmap c 2 0x1000 0", "EINVAL size=0"),
            same("unmap c 2 0 1", "EINVAL size=0x1"),
        ],
    },
    Point {
        what: "UNMAP cutting a map, v2",
        before: &ATTACHED,
        steps: &[
            same("map c rw 0x1000 +0 0x1000", "0"),
            same("map c rw 0x2000 +0 0x2000", "0"),
            ("unmap c 0 0x1000 0x2000", "EINVAL size=0x2000", "ENOENT size=0x1000"),
            ("map c rw 0x1000 +0 0x1000", "EEXIST", "0"),
        ],
    },
    Point {
        what: "UNMAP cutting a map, v1",
        before: &ATTACHED_V1,
        steps: &[
            same("map c rw 0x1000 +0 0x3000", "0"),
            ("unmap c 0 0x2000 0x1000", "0 size=0", "0 size=0x1000"),
            ("unmap c 0 0x1000 0x1000", "0 size=0x3000", "0 size=0x1000"),
        ],
    },
    Point {
        what: "VADDR, GET_DIRTY, DIRTY_PAGES",
        before: &ATTACHED,
        steps: &[
            ("log c 1", "0", "ENOTTY"),
            same("map c rw 0x1000 +0 0x1000", "0"),
            ("unmap c 4 0x1000 0x1000", "0 size=0x1000", "EINVAL size=0x1000"),
            ("map c v 0x1000 +0 0x1000", "0", "EINVAL"),
            ("unmapdirty c 0x1000 0x1000", "0 0x1", "EINVAL"),
            same("unmap c 0x80000000 0x1000 0x1000", "EINVAL size=0x1000"),
        ],
    },
    Point {
        what: "UNSET_CONTAINER with an open device",
        before: &ATTACHED,
        steps: &[("unsetc g", "EBUSY", "0")],
    },
    Point {
        what: "the last group leaves",
        before: &ATTACHED,
        steps: &[
            same("map c rw 0x1000 +0 0x1000", "0"),
            same("close d", "0"),
            same("unsetc g", "0"),
            ("unmap c 2 0 0", "EINVAL size=0", "0 size=0x1000"),
        ],
    },
    Point {
        what: "locked memory",
        before: &ATTACHED,
        steps: &[
            same("map c rw 0x1000 +0 0x1000", "0"),
            ("status VmLck", "0 4", "0 0"),
            ("status VmPin", "0 0", "0 4"),
        ],
    },
];

#[test]
fn the_two_sets_of_rules_differ_as_the_table_says() {
    for Point { what, before, steps } in &TABLE {
        println!("{what}");
        Machine::with(&["testdev"]).answers(&[*before, *steps].concat());
    }
}
