//! Anything a client could send to the ioctls, files and devices of a whole machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    ioasis_hostile::count(ioasis_hostile::run(input));
});
