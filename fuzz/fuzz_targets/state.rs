//! Any state that a device could be told to take over.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = ioasis_hostile_driver::run_state(input);
});
