//! One device's DMA into another's BAR.

use ioasis_uapi::Errno;
use ioasis_uapi::vfio;

use crate::rig::{Rig, SCRATCH, at, errno};

#[test]
fn a_peer_sees_the_pages_that_the_program_maps() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    file.peer_write(at(2, 0x1ffe), &[1, 2, 3]).expect("BAR pages");
    let mut buf = [0; 3];
    file.read(at(2, 0x1ffe), &mut buf).expect("BAR pages");
    assert_eq!(buf, [1, 2, 3]);
    file.peer_read(at(2, 0x1fff), &mut buf[..2]).expect("BAR pages");
    assert_eq!(buf, [2, 3, 3]);
}

#[test]
fn a_peer_reaches_pages_only() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    for offset in
        [0, at(1, 0), at(4, 0), at(7, 0), at(2, 0x4000), at(0, SCRATCH + 0x2000), u64::MAX]
    {
        assert_eq!(errno(file.peer_write(offset, &[1])), Some(Errno::EFAULT), "{offset:#x}");
    }
}

#[test]
fn a_bar_that_does_not_answer_is_revoked_and_restored() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let command = |value: u16| file.write(at(7, 4), &value.to_le_bytes()).expect("a register");
    let power = |state: u8| file.write(at(7, 0x44), &[state]).expect("a register");
    let reach = || errno(file.peer_read(at(2, 0), &mut [0; 4]));
    assert_eq!(reach(), None);
    command(0);
    assert_eq!(reach(), Some(Errno::EFAULT), "memory decoding is off");
    command(2);
    assert_eq!(reach(), None);
    power(3);
    assert_eq!(reach(), Some(Errno::EFAULT), "D3hot");
    file.ioctl(&rig.caller, vfio::DEVICE_RESET, 0).expect("a reset");
    assert_eq!(reach(), None, "a reset brings it back to D0");
    file.close();
    assert_eq!(reach(), Some(Errno::EFAULT), "closed");
}

#[test]
fn a_removed_device_is_no_peer() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    rig.machine.remove_all();
    assert_eq!(errno(file.peer_read(at(2, 0), &mut [0; 4])), Some(Errno::EFAULT));
}
