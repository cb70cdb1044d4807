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
fn no_kept_input_panics() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/vfio_user");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        ioasis_hostile_peer::run(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
}

#[test]
fn no_random_input_panics() {
    let mut state = seed().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut messages = 0;
    for _ in 0..sequences() {
        let mut input = [0; 512];
        for byte in &mut input {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Half of the bytes are 0 or 1 or so: lengths, flags and counts are small.
            let [value, shape, ..] = state.to_le_bytes();
            *byte = if shape & 1 == 0 { value & 0x27 } else { value };
        }
        messages += ioasis_hostile_peer::run(&input);
    }
    assert!(messages > sequences(), "hardly any message");
}
