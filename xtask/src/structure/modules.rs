//! The modules of a crate and what each takes from which, read from the source with syn.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A crate of the workspace.
#[derive(Debug)]
pub(super) struct Crate {
    pub(super) name: String,
    /// Its root file.
    root: PathBuf,
}

/// The crates of the workspace whose layout is judged.
pub(super) fn crates(root: &Path) -> Result<Vec<Crate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let path = entry?.path();
        found.push(path);
    }
    found.push(root.join("xtask"));
    found.sort();
    let mut crates = Vec::new();
    for path in found {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in ["src/lib.rs", "src/main.rs"] {
            let root = path.join(file);
            if root.is_file() {
                crates.push(Crate { name: name.clone(), root });
            }
        }
    }
    Ok(crates)
}

/// A path of names, `crate` left out.
type Names = Vec<String>;

/// One use of another module's name, as it stands in the code.
#[derive(Debug)]
struct Mention {
    /// The module it stands in: inline modules have a path of their own.
    within: Names,
    path: Names,
    /// A `pub use` whose name the file itself does not use: it is handed on.
    handed_on: bool,
}

/// What a `use` brings into a module.
type Aliases = BTreeMap<(Names, String), (Names, bool)>;

/// The modules of one crate, by file.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Path of each module, inline ones too, and the file it is in (relative to src, without
    /// `.rs`).
    files: BTreeMap<Names, String>,
    mentions: Vec<Mention>,
    aliases: Aliases,
    /// Who takes what from whom.
    pub(super) arrows: BTreeMap<(String, String), BTreeSet<String>>,
}

/// Reads a crate.
pub(super) fn read(krate: &Crate) -> Result<Modules> {
    let mut modules = Modules::default();
    let src = krate.root.parent().expect("a root file is in src").to_owned();
    modules.load(&src, &krate.root, &src, Vec::new())?;
    modules.resolve_all();
    Ok(modules)
}

impl Modules {
    /// The file of a module, and every file of one of its inline modules, are one.
    fn load(&mut self, src: &Path, file: &Path, folder: &Path, path: Names) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(src).expect("a module is in src").with_extension("");
        let name = name.to_string_lossy().into_owned();
        let mut reader = Reader { modules: self, file: name, within: path, children: Vec::new() };
        reader.modules.files.insert(reader.within.clone(), reader.file.clone());
        reader.visit_file(&parsed);
        for (path, explicit) in reader.children {
            let name = path.last().expect("a child has a name").clone();
            let plain = folder.join(format!("{name}.rs"));
            let nested = folder.join(&name).join("mod.rs");
            let file = match explicit {
                Some(explicit) => file.parent().expect("a file is in a folder").join(explicit),
                None if plain.is_file() => plain,
                None => nested,
            };
            self.load(src, &file, &folder.join(&name), path)?;
        }
        Ok(())
    }

    fn resolve_all(&mut self) {
        let mut arrows: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for mention in self.mentions.iter().filter(|mention| !mention.handed_on) {
            // A name alone is a variable's, unless a `use` brought it in.
            if let [name] = mention.path.as_slice()
                && !self.aliases.contains_key(&(mention.within.clone(), name.clone()))
            {
                continue;
            }
            let Some(target) = self.resolve(&mention.within, &mention.path, 0) else { continue };
            let (from, to) = (&self.files[&mention.within], &self.files[&target]);
            if from != to {
                let what = mention.path.last().expect("a path has names").clone();
                arrows.entry((from.clone(), to.clone())).or_default().insert(what);
            }
        }
        self.arrows = arrows;
    }

    /// The module that defines what `path` names inside the module `within`; none: another crate
    /// does.
    fn resolve(&self, within: &Names, path: &[String], depth: u32) -> Option<Names> {
        if depth > 16 {
            return None;
        }
        let mut at = within.clone();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    at.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                let child = [at.as_slice(), &[first.to_owned()]].concat();
                if !self.files.contains_key(&child)
                    && !self.aliases.contains_key(&(at.clone(), first.to_owned()))
                {
                    return None;
                }
            }
        }
        while let Some((name, after)) = rest.split_first() {
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            if self.files.contains_key(&child) {
                at = child;
                rest = after;
                continue;
            }
            let Some((target, _)) = self.aliases.get(&(at.clone(), name.clone())) else { break };
            if *target == path && at == *within {
                break;
            }
            let path = [target.as_slice(), after].concat();
            return self.resolve(&at, &path, depth + 1);
        }
        Some(at)
    }
}

/// Reads one file.
struct Reader<'a> {
    modules: &'a mut Modules,
    file: String,
    within: Names,
    /// Modules in files of their own.
    children: Vec<(Names, Option<String>)>,
}

/// Whether attributes keep the item out of what is shipped.
fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let text = list.tokens.to_string();
        text == "test"
            || text == "kani"
            || text == "loom"
            || text.contains("all (test")
            || text.contains("ioasis_shuttle") && !text.contains("not")
    })
}

fn explicit_path(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find(|attribute| attribute.path().is_ident("path")).and_then(|attribute| {
        let syn::Meta::NameValue(value) = &attribute.meta else { return None };
        let syn::Expr::Lit(literal) = &value.value else { return None };
        let syn::Lit::Str(text) = &literal.lit else { return None };
        Some(text.value())
    })
}

fn flatten(tree: &syn::UseTree, before: &Names, found: &mut Vec<(Names, String)>) {
    let with = |name: &syn::Ident| [before.as_slice(), &[name.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => flatten(&path.tree, &with(&path.ident), found),
        syn::UseTree::Name(name) if name.ident == "self" => {
            let local = before.last().cloned().unwrap_or_default();
            found.push((before.clone(), local));
        }
        syn::UseTree::Name(name) => found.push((with(&name.ident), name.ident.to_string())),
        syn::UseTree::Rename(name) => found.push((with(&name.ident), name.rename.to_string())),
        syn::UseTree::Glob(_) => found.push((before.clone(), "*".to_owned())),
        syn::UseTree::Group(group) => {
            group.items.iter().for_each(|item| flatten(item, before, found));
        }
    }
}

impl Reader<'_> {
    fn mention(&mut self, path: Names) {
        let mention = Mention { within: self.within.clone(), path, handed_on: false };
        self.modules.mentions.push(mention);
    }

    /// Paths inside a macro's arguments, which syn does not read.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Names = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if path.is_empty() || colons == 2 => {
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Ident(name) => {
                    self.end_path(&mut path);
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                }
                TokenTree::Group(group) => {
                    self.end_path(&mut path);
                    colons = 0;
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end_path(&mut path);
                    colons = 0;
                }
            }
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Names) {
        if !path.is_empty() {
            self.mention(std::mem::take(path));
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let path = [self.within.as_slice(), &[item.ident.to_string()]].concat();
        let Some((_, items)) = &item.content else {
            self.children.push((path, explicit_path(&item.attrs)));
            return;
        };
        self.modules.files.insert(path.clone(), self.file.clone());
        let before = std::mem::replace(&mut self.within, path);
        items.iter().for_each(|item| self.visit_item(item));
        self.within = before;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut found = Vec::new();
        flatten(&item.tree, &Vec::new(), &mut found);
        let public = !matches!(item.vis, syn::Visibility::Inherited);
        for (path, local) in found {
            let within = self.within.clone();
            let mention = Mention { within: within.clone(), path: path.clone(), handed_on: public };
            self.modules.mentions.push(mention);
            self.modules.aliases.insert((within, local), (path, public));
        }
    }

    // `pub(super)` takes nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.mention(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }
}
