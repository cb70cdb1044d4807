//! Anything a guest could write into the page tables of its first stage.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = ioasis_hostile_guest::run(input);
});
