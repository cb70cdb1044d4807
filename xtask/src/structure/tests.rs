//! The check sees what it is there for, and the code passes it.

use std::fs;
use std::path::Path;

use super::*;

/// A crate of the files named, in a folder of its own.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root =
            std::env::temp_dir().join(format!("ioasis-structure-{name}-{}", std::process::id()));
        for (file, text) in files {
            let path = root.join("crates/one/src").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(root)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn a_circle_of_five_modules_is_found_through_handed_on_names_and_macros() {
    let ring = [
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e; pub use b::B;"),
        ("a.rs", "use crate::B; pub struct A(B);"),
        ("b.rs", "pub struct B; fn f() { println!(\"{}\", crate::c::NUMBER) }"),
        ("c.rs", "pub const NUMBER: u8 = super::d::number();"),
        ("d.rs", "use super::e::{self, E}; pub const fn number() -> u8 { e::f() }"),
        ("e.rs", "use crate::a::A; pub struct E; pub const fn f() -> u8 { 1 }"),
    ];
    let scratch = Scratch::new("ring", &ring);
    assert!(!is_sound(&scratch.0).unwrap());
    drop(scratch);
    let mut open = ring;
    open[5].1 = "pub struct E; #[cfg(test)] mod tests { use crate::a::A; }";
    let scratch = Scratch::new("open", &open);
    assert!(is_sound(&scratch.0).unwrap(), "a test closes no circle");
}

#[test]
fn a_circle_of_two_folders_is_found() {
    let files = [
        ("lib.rs", "mod one; mod other;"),
        ("one/mod.rs", "pub mod deep; pub struct One;"),
        ("one/deep.rs", "use crate::other::Other;"),
        ("other/mod.rs", "pub struct Other; mod low;"),
        ("other/low.rs", "use crate::one::One;"),
    ];
    assert!(!is_sound(&Scratch::new("folders", &files).0).unwrap());
}

#[test]
fn no_circle_of_the_workspace_is_too_large_or_joins_folders() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    assert!(is_sound(root).unwrap(), "cargo xtask structure says which");
}
