//! The house: each room uses those below it and none above, and no two files use one another.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of the selling half by floor, the highest first. What stands on one floor does not use
/// one another.
const SELLING: &[&[&str]] = &[
    &["main", "lib"],
    &["operating"],
    &["http", "books"],
    &["world"],
    &["selling"],
    &["stock"],
    &["journal"],
    &["metrics"],
    &["sale"],
    &["clock"],
];

/// And of the recording half.
const RECORDING: &[&[&str]] = &[
    &["main", "lib"],
    &["recording"],
    &["reader"],
    &["ledger"],
    &["kafka"],
    &["progress"],
    &["sqlite"],
    &["service"],
    &["sale"],
];

#[test]
fn arrows_run_downwards() {
    for (folder, floors) in [("src", SELLING), ("consumer/src", RECORDING)] {
        let floor = |room: &str| {
            let floor = floors.iter().position(|rooms| rooms.contains(&room));
            floor.unwrap_or_else(|| panic!("{folder}: {room} has no floor; give it one in tests/rooms.rs"))
        };
        let upwards: Vec<String> = arrows(folder)
            .into_iter()
            .filter(|(from, to)| {
                let (from, to) = (room(from), room(to));
                from != to && floor(from) >= floor(to)
            })
            .map(|(from, to)| format!("{from} uses {to}"))
            .collect();
        assert_eq!(upwards, Vec::<String>::new(), "{folder}");
    }
}

#[test]
fn no_files_use_one_another() {
    for folder in ["src", "consumer/src"] {
        let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in arrows(folder) {
            // A room's first file names what stands in it; what stands there uses its words.
            if !from.starts_with(&format!("{to}::")) {
                left.entry(to.clone()).or_default();
                left.entry(from).or_default().insert(to);
            }
        }
        // Take away whoever uses nothing that is left, until nobody is.
        while let Some(free) = left.iter().find(|(_, uses)| uses.is_empty()).map(|(file, _)| file.clone()) {
            left.remove(&free);
            for uses in left.values_mut() {
                uses.remove(&free);
            }
        }
        assert_eq!(left, BTreeMap::new(), "{folder}: a circle");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "consumer/src", "tests", "consumer/tests"] {
        for file in files(Path::new(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("//! "), "{}: no first line that says what it is", file.display());
        }
    }
}

#[test]
fn the_code_map_is_the_tree() {
    let text = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let map = text.split("## Code map").nth(1).unwrap().split("\n## ").next().unwrap();
    let named: Vec<&str> = map.split('`').skip(1).step_by(2).collect();
    for path in named.iter().filter(|name| name.contains('/') && name.contains("src/")) {
        assert!(Path::new(path).exists(), "{path} is in the map and not in the tree");
    }
    for file in ["src", "consumer/src"].into_iter().flat_map(|folder| files(Path::new(folder))) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let parent = file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        // A room's first file lists what stands in it.
        let opens_a_room = file.with_extension("").is_dir();
        let here = |it: &&str| **it == name || it.ends_with(&format!("/{name}"));
        assert!(
            opens_a_room || name == "tests.rs" || named.iter().any(here),
            "{parent}/{name} is in the tree and not in the map"
        );
    }
}

#[test]
fn the_selling_half_does_not_record() {
    // But where it runs an embedded consumer.
    for file in files(Path::new("src")).iter().filter(|file| !file.starts_with("src/operating")) {
        let text = fs::read_to_string(file).unwrap();
        for room in ["consumer::recording", "consumer::reader"] {
            assert!(!text.contains(room), "{} uses {room}", file.display());
        }
    }
}

fn room(file: &str) -> &str {
    file.split("::").next().unwrap()
}

/// Which file uses which, by their modules' names, but for tests within.
fn arrows(folder: &str) -> BTreeSet<(String, String)> {
    let modules: BTreeMap<String, String> = files(Path::new(folder))
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(folder).unwrap().with_extension("").display().to_string();
            let text = fs::read_to_string(&file).unwrap();
            (name.replace('/', "::"), text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned())
        })
        // What every implementation has to keep is a test, and tests may look anywhere.
        .filter(|(name, _)| {
            name == "http::contract" || !(name.ends_with("contract") || name.ends_with("tests"))
        })
        .collect();
    let mut arrows = BTreeSet::new();
    for (from, text) in &modules {
        let above = from.rsplit_once("::").map_or("", |(above, _)| above);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            let unseen = line.contains("crate::{") || line.contains("super::super::");
            assert!(!unseen, "{from}: name the room in full, for this test to see it: {line}");
            for (start, base) in [("crate::", ""), ("super::", above)] {
                for (_, path) in line.match_indices(start).map(|(at, _)| line.split_at(at + start.len())) {
                    let path: Vec<&str> = path
                        .split("::")
                        .map(|part| {
                            part.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                                .next()
                                .unwrap()
                        })
                        .collect();
                    let whole = |length: usize| {
                        let parts = Some(base).filter(|base| !base.is_empty()).into_iter();
                        parts.chain(path[..length].iter().copied()).collect::<Vec<_>>().join("::")
                    };
                    let to = (0..=path.len()).rev().map(whole).find(|name| modules.contains_key(name));
                    arrows.extend(to.filter(|to| to != from).map(|to| (from.clone(), to)));
                }
            }
        }
    }
    assert!(arrows.len() > 20, "{folder}: nothing was found");
    arrows
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
