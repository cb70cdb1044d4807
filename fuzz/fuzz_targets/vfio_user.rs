//! Anything a vfio-user peer could send, to a server or to a client.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = ioasis_hostile_peer::run(input);
});
