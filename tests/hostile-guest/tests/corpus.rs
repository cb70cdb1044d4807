//! The kept inputs of the fuzz target, and random ones.

use std::path::Path;

/// A number from the environment.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |count| count.parse().expect("a number"))
}

#[test]
fn no_kept_table_panics_loops_or_leads_outside_the_guest() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/guest");
    let (mut inputs, mut translated) = (0, 0);
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        translated += ioasis_hostile_guest::run(&input);
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
    assert!(translated > 0, "no table of the corpus leads anywhere");
}

#[test]
fn no_random_table_panics_loops_or_leads_outside_the_guest() {
    let mut state = number("IOASIS_SEED", 0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..number("IOASIS_SEQUENCES", 200) {
        let mut input = [0; 512];
        for byte in &mut input {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        // Few words, so that the rest are requests, and a root that is there.
        input[1] %= 24;
        input[4..10].fill(0);
        let _ = ioasis_hostile_guest::run(&input);
    }
}
