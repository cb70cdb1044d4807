//! Reads the source of `uapi` and writes a table of its structs and constants for `uapi-check`.
//!
//! The names come from the source, sizes, offsets and values from the compiler: every entry of the
//! table is an expression over `ioasis_uapi`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use quote::ToTokens;
use syn::{Attribute, Item, ItemConst, ItemStruct, Lit, Meta, Visibility};

/// The modules whose items are compared, and the folder or file each is in.
const MODULES: [(&str, &str); 3] =
    [("iommufd", "iommufd"), ("iommufd::test", "iommufd/test.rs"), ("vfio", "vfio")];

fn main() {
    let source = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("../crates/uapi/src");
    println!("cargo::rerun-if-changed={}", source.display());

    let mut structs = String::new();
    let mut constants = String::new();
    for (module, place) in MODULES {
        for file in files_of(&source.join(place)) {
            let text = fs::read_to_string(&file).expect("a source file is readable");
            for item in syn::parse_file(&text).expect("uapi parses").items {
                match item {
                    Item::Struct(item) if public(&item.vis) => {
                        struct_entry(&mut structs, module, &item);
                    }
                    Item::Const(item) if public(&item.vis) => {
                        constant_entry(&mut constants, module, &item);
                    }
                    _ => {}
                }
            }
        }
    }

    let table = format!(
        "pub(super) fn structs() -> Vec<Struct> {{\n    vec![\n{structs}    ]\n}}\n\n\
         pub(super) fn constants() -> Vec<Constant> {{\n    vec![\n{constants}    ]\n}}\n"
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("layout.rs"), table).expect("OUT_DIR is writable");
}

/// The files of a module: `place` itself, or every file in the folder but `test.rs`, a module of
/// its own.
fn files_of(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = fs::read_dir(place).expect("a module folder is readable");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder entry is readable").path())
        .filter(|path| path.file_name().is_some_and(|name| name != "test.rs"))
        .collect();
    files.sort();
    files
}

fn struct_entry(out: &mut String, module: &str, item: &ItemStruct) {
    let name = &item.ident;
    let path = format!("ioasis_uapi::{module}::{name}");
    let alias = aliases(&item.attrs).pop();
    writeln!(out, "        Struct {{ module: {module:?}, name: \"{name}\", alias: {alias:?},")
        .expect("a String takes it");
    writeln!(out, "            size: size_of::<{path}>(), fields: vec![")
        .expect("a String takes it");
    for field in &item.fields {
        let ident = field.ident.as_ref().expect("uapi has no tuple structs");
        let aliases = aliases(&field.attrs);
        let signed = match field.ty.to_token_stream().to_string().as_str() {
            "i32" => "Some(true)",
            "u8" | "u16" | "u32" | "u64" => "Some(false)",
            _ => "None",
        };
        writeln!(
            out,
            "                Field {{ name: \"{ident}\", aliases: &{aliases:?}, signed: {signed}, \
             offset: std::mem::offset_of!({path}, {ident}), size: size_of_field(|s: &{path}| &s.{ident}) }},"
        )
        .expect("a String takes it");
    }
    writeln!(out, "            ] }},").expect("a String takes it");
}

fn constant_entry(out: &mut String, module: &str, item: &ItemConst) {
    let name = &item.ident;
    writeln!(
        out,
        "        Constant {{ module: {module:?}, name: \"{name}\", value: Value::from(ioasis_uapi::{module}::{name}) }},"
    )
    .expect("a String takes it");
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// The C names in `#[doc(alias = "..")]`.
fn aliases(attrs: &[Attribute]) -> Vec<String> {
    let mut found = Vec::new();
    for attr in attrs {
        let Meta::List(list) = &attr.meta else { continue };
        if !list.path.is_ident("doc") {
            continue;
        }
        let parsed = attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("alias") {
                let lit: Lit = meta.value()?.parse()?;
                if let Lit::Str(name) = lit {
                    found.push(name.value());
                }
            }
            Ok(())
        });
        parsed.expect("a doc attribute in uapi is an alias");
    }
    found
}
