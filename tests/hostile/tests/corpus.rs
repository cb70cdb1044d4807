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
fn no_kept_input_panics_or_leaves_anything() {
    kept("dispatch", ioasis_hostile::run);
    kept("spapr", ioasis_hostile::run_spapr);
}

fn kept(target: &str, run: fn(&[u8]) -> u64) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        run(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
}

#[test]
fn no_random_input_panics_or_leaves_anything() {
    random(ioasis_hostile::run);
}

#[test]
fn no_random_input_panics_or_leaves_anything_on_a_machine_of_power() {
    random(ioasis_hostile::run_spapr);
}

fn random(run: fn(&[u8]) -> u64) {
    let mut state = seed().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut steps = 0;
    for _ in 0..sequences() {
        let mut input = [0; 4096];
        for byte in &mut input {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        steps += run(&input);
    }
    println!("{steps} calls");
}
