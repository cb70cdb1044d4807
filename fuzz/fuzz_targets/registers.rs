//! Anything a driver could do to the DMA engine and the network port.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = ioasis_hostile_driver::run_registers(input);
});
