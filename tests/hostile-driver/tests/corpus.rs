//! The kept inputs of the fuzz target, and random ones.

use std::path::Path;

/// How many random inputs.
fn sequences() -> u64 {
    std::env::var("IOASIS_SEQUENCES").map_or(200, |count| count.parse().expect("a number"))
}

fn seed() -> u64 {
    std::env::var("IOASIS_SEED").map_or(0, |seed| seed.parse().expect("a number"))
}

#[test]
fn no_kept_input_brings_a_device_down() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/virtio");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        ioasis_hostile_driver::run(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
}

#[test]
fn no_random_input_brings_a_device_down() {
    random_inputs(ioasis_hostile_driver::run);
}

#[test]
fn no_random_input_brings_registers_down() {
    random_inputs(ioasis_hostile_driver::run_registers);
}

#[test]
fn no_random_state_brings_a_device_down() {
    random_inputs(ioasis_hostile_driver::run_state);
}

fn random_inputs(run: fn(&[u8]) -> u64) {
    let mut state = seed().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut steps = 0;
    for _ in 0..sequences() {
        let mut input = [0; 1024];
        for byte in &mut input {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        steps += run(&input);
    }
    assert!(steps > sequences(), "they say something");
}
