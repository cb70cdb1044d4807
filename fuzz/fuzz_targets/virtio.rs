//! Anything a driver could do to the registers and rings of a virtio device.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = ioasis_hostile_driver::run(input);
});
