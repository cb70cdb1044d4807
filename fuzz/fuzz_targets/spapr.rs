//! Anything a client could send to a whole machine of POWER's.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    ioasis_hostile::count(ioasis_hostile::run_spapr(input));
});
