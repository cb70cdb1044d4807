//! DMA of one device into the BAR of another, by the address at which the client has that BAR mapped.

use super::rules::{ATTACHED, Machine, Step, same};

/// Two devices of one group, open, with decoding and bus mastering on; the BAR of the second is mapped for both of them.
const PEERS: [Step; 8] = [
    same("device g e 0000:02:00.0", "0"),
    same("command d 6", "0"),
    same("command e 6", "0"),
    same("mmap e", "0"),
    same("map c rw 0x10000 @e 0x1000", "0"),
    same("map c rw 0x1000 +0 0x2000", "0"),
    // Not the registers: those are zeroes.
    same("fill +0x800 0x5a 0x100", "0"),
    same("dma d read 0x1000", "0"),
];

fn peers(steps: &[Step]) {
    let machine = Machine::with(&["testdev,group=1", "testdev,group=1"]);
    machine.type1_answers(&[&ATTACHED[..], &PEERS, steps].concat());
}

#[test]
fn a_device_writes_into_the_bar_of_another_and_reads_it() {
    peers(&[
        same("dma d write 0x10000", "0"),
        same("peek @e+0x800", "0 0x5a"),
        same("fill @e+0x800 0x33 1", "0"),
        same("dma d read 0x10000", "0"),
        same("dma d write 0x2000", "0"),
        same("peek +0x1800", "0 0x33"),
        same("peek +0x1801", "0 0x5a"),
        same("status VmLck", "0 8"),
    ]);
}

#[test]
fn a_bar_that_does_not_decode_is_out_of_reach_until_it_does() {
    peers(&[
        same("command e 4", "0"),
        same("dma d write 0x10000", "0 fault=0x10000"),
        same("command e 6", "0"),
        same("dma d write 0x10000", "0"),
        same("peek @e+0x800", "0 0x5a"),
    ]);
}

#[test]
fn a_bar_is_back_after_a_reset_as_it_was_enabled_before() {
    peers(&[
        same("dma d write 0x10000", "0"),
        same("reset e", "0"),
        same("peek @e+0x800", "0 0"),
        same("dma d write 0x10000", "0"),
        same("peek @e+0x800", "0 0x5a"),
        same("command e 4", "0"),
        same("reset e", "0"),
        same("dma d write 0x10000", "0 fault=0x10000"),
        same("command e 6", "0"),
        same("dma d write 0x10000", "0"),
        same("peek @e+0x800", "0 0x5a"),
    ]);
}

#[test]
fn a_closed_device_is_out_of_reach_until_it_is_opened_again() {
    peers(&[
        same("close e", "0"),
        same("dma d write 0x10000", "0 fault=0x10000"),
        same("device g e 0000:02:00.0", "0"),
        same("dma d write 0x10000", "0"),
        same("mmap e", "0"),
        same("peek @e+0x800", "0 0x5a"),
        same("unmap c 0 0x10000 0x1000", "0 size=0x1000"),
        same("dma d write 0x10000", "0 fault=0x10000"),
    ]);
}

#[test]
fn a_bar_is_mapped_whole_in_part_and_beside_memory() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let image = folder.join(format!("peers-{}.img", std::process::id()));
    let nvme = format!("nvme,image={},size=1M,group=1", image.display());
    // The registers of NVMe take two pages. The first byte of CAP, MQES, is not zero.
    Machine::with(&["testdev,group=1", &nvme]).type1_answers(
        &[
            &ATTACHED[..],
            &[
                same("device g e 0000:02:00.0", "0"),
                same("command d 6", "0"),
                same("command e 6", "0"),
                same("mmap e 0 0x2000", "0"),
                same("map c rw 0x10000 @e 0x2000", "0"),
                same("map c r 0x2001000 @e+0x1000 0x1000", "0"),
                same("map c r 0x3003000 @e 0x1000", "0"),
                same("map c rw 0x1000 +0 0x1000", "0"),
                same("map c rw 0x20000 @e+0x800 0x1000", "EINVAL"),
                same("map c rw 0x20800 @e 0x1000", "EINVAL"),
                same("map c rw 0x20000 @e 0x3000", "EFAULT"),
                same("dma d read 0x10000", "0"),
                same("dma d read 0x3003000", "0"),
                same("dma d write 0x3003000", "0 fault=0x3003000"),
                same("dma d write 0x1000", "0"),
                same("peek +0", "0 0xff"),
                same("dma d read 0x2001000", "0"),
                // From the end of memory into what is not mapped.
                same("dma d read 0x1800", "0 fault=0x2000"),
                same("unmap c 0 0x11000 0x1000", "EINVAL size=0x1000"),
                same("unmap c 2 0 0", "0 size=0x5000"),
            ],
        ]
        .concat(),
    );
    std::fs::remove_file(image).expect("an image");
}
