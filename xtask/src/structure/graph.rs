//! Circles in a graph of imports.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::Modules;

/// Modules, or folders, that import each other in a circle.
#[derive(Debug)]
pub(super) struct Circle {
    pub(super) members: Vec<String>,
    /// Which takes which names from which, inside the circle.
    pub(super) arrows: Vec<(String, String, Vec<String>)>,
}

type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

/// Circles of modules.
pub(super) fn circles(modules: &Modules) -> Vec<Circle> {
    circles_of(&modules.arrows)
}

/// Circles of the folders right below src; a file there is by itself, and the root of the crate is
/// none of them.
pub(super) fn folder_circles(modules: &Modules) -> Vec<Circle> {
    let folders: BTreeSet<&str> = modules
        .arrows
        .keys()
        .flat_map(|(from, to)| [from, to])
        .filter_map(|file| file.split_once('/').map(|(folder, _)| folder))
        .collect();
    // `model.rs` is the face of `model/`.
    let folder = |file: &String| {
        let first = file.split_once('/').map_or(file.as_str(), |(folder, _)| folder);
        if folders.contains(first) { format!("{first}/") } else { first.to_owned() }
    };
    let mut arrows = Arrows::new();
    for ((from, to), names) in &modules.arrows {
        let (from, to) = (folder(from), folder(to));
        let is_root = |file: &str| matches!(file, "lib" | "main");
        if from != to && !is_root(&from) && !is_root(&to) {
            arrows.entry((from, to)).or_default().extend(names.iter().cloned());
        }
    }
    let mut found = circles_of(&arrows);
    found.retain(|circle| circle.members.iter().any(|member| member.ends_with('/')));
    found
}

fn circles_of(arrows: &Arrows) -> Vec<Circle> {
    let mut reach: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (from, _) in arrows.keys() {
        reach.entry(from).or_insert_with(|| reached(arrows, from));
    }
    let mut circles: Vec<BTreeSet<&String>> = Vec::new();
    for (from, there) in &reach {
        if !there.contains(from) || circles.iter().any(|circle| circle.contains(from)) {
            continue;
        }
        let back = |other: &&&String| reach.get(**other).is_some_and(|of| of.contains(from));
        circles.push(there.iter().filter(back).copied().collect());
    }
    circles.into_iter().map(|members| circle(arrows, &members)).collect()
}

fn reached<'a>(arrows: &'a Arrows, from: &str) -> BTreeSet<&'a String> {
    let mut found = BTreeSet::new();
    let mut left = vec![from.to_owned()];
    while let Some(next) = left.pop() {
        for (_, to) in arrows.keys().filter(|(of, _)| *of == next) {
            if found.insert(to) {
                left.push(to.clone());
            }
        }
    }
    found
}

fn circle(arrows: &Arrows, members: &BTreeSet<&String>) -> Circle {
    let inside =
        arrows.iter().filter(|((from, to), _)| members.contains(from) && members.contains(to));
    let arrow = |((from, to), names): (&(String, String), &BTreeSet<String>)| {
        (from.clone(), to.clone(), names.iter().cloned().collect())
    };
    Circle {
        members: members.iter().map(|member| (*member).clone()).collect(),
        arrows: inside.map(arrow).collect(),
    }
}
