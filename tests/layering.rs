//! Which room may use which, and what the pure rooms may not touch. See src/lib.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms whose names may stand in its files.
const ARROWS: [(&str, &[&str]); 11] = [
    ("wire", &[]),
    ("auth", &["wire"]),
    ("engine", &["auth", "wire"]),
    ("host", &["engine"]),
    ("kernel", &["auth", "engine", "host", "wire"]),
    ("tun", &["engine", "host", "wire"]),
    ("bpf", &["engine", "host", "wire"]),
    ("sources", &["engine", "host"]),
    ("observe", &["engine"]),
    ("cli", &["auth", "engine"]),
    ("daemon", &["auth", "bpf", "engine", "host", "kernel", "observe", "sources", "tun"]),
];

/// Rooms without I/O, clock, randomness or runtime.
const PURE: [&str; 3] = ["wire", "auth", "engine"];

const IMPURE: [&str; 12] = [
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "Instant",
    "SystemTime",
    "UdpSocket",
    "tokio",
    "getrandom",
    "tracing",
];

fn files(room: &str) -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room);
    let files = files_below(&directory);
    assert!(!files.is_empty(), "no files in {}", directory.display());
    files
}

fn files_below(directory: &Path) -> Vec<(PathBuf, String)> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => vec![(path.clone(), fs::read_to_string(path).unwrap())],
    };
    paths.flat_map(read).collect()
}

/// The code without comments and without tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .map(|line| line.split("//").next().unwrap_or_default())
}

#[test]
fn rooms_use_only_what_they_may() {
    for (room, allowed) in ARROWS {
        for (path, text) in files(room) {
            for line in code(&text) {
                for used in line.split("crate::").skip(1) {
                    let used: String = used
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                        .collect();
                    let fine = used == room || allowed.contains(&used.as_str());
                    assert!(fine, "{} uses crate::{used}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_room_is_in_the_table_of_arrows() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms: BTreeSet<_> = fs::read_dir(source)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(rooms, ARROWS.iter().map(|(room, _)| (*room).to_owned()).collect());
}

/// The table of src/lib.rs, with what stands in backquotes in its last column.
#[test]
fn the_table_of_rooms_says_the_same() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(source).unwrap();
    let told: BTreeMap<&str, BTreeSet<&str>> = text
        .lines()
        .filter_map(|line| {
            let mut columns = line.strip_prefix("//! | [`")?.strip_suffix(" |")?.split(" | ");
            let room = columns.next()?.strip_suffix("`]")?;
            Some((room, columns.nth(1)?.split('`').skip(1).step_by(2).collect()))
        })
        .collect();
    let known = ARROWS.iter().map(|(room, used)| (*room, used.iter().copied().collect()));
    assert_eq!(told, known.collect());
}

#[test]
fn pure_rooms_use_nothing_impure() {
    for room in PURE {
        for (path, text) in files(room) {
            for line in code(&text) {
                for word in IMPURE {
                    assert!(!line.contains(word), "{} mentions {word}: {line}", path.display());
                }
            }
        }
    }
}

/// A module's path below `src`, such as `["engine", "host", "plan"]`.
type Module = Vec<String>;

/// The paths of a `use` tree, without `as`: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<Module> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(|name| name.trim().to_owned()).collect()];
    };
    let prefix: Module =
        prefix.split("::").map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in rest.strip_suffix('}').unwrap_or(rest).chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(c),
        }
    }
    let inner = parts.iter().filter(|part| !part.trim().is_empty());
    inner.flat_map(|part| paths(part)).map(|rest| [prefix.clone(), rest].concat()).collect()
}

/// What a path in `file` means, from `src` on.
fn absolute(path: &[String], file: &Module, modules: &BTreeMap<Module, String>) -> Option<Module> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    match path[0].as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([file, &path[1..]].concat()),
        _ if supers > 0 => Some([&file[..file.len() - supers], &path[supers..]].concat()),
        name => {
            let below = [file.as_slice(), &[name.to_owned()]].concat();
            modules.contains_key(&below).then(|| [file.as_slice(), path].concat())
        }
    }
}

/// No two files take names from each other, not even by way of others. A folder's `mod.rs` has what its files
/// share, and hands on what others use of them: between it and these, arrows do not count.
#[test]
fn there_is_no_circle_of_files() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms = ARROWS.iter().flat_map(|(room, _)| files(room));
    let modules: BTreeMap<Module, String> = rooms
        .map(|(path, text)| {
            let path = path.strip_prefix(&source).unwrap().with_extension("");
            let names = path.iter().map(|name| name.to_string_lossy().into_owned());
            (
                names.filter(|name| name != "mod").collect(),
                code(&text).collect::<Vec<_>>().join("\n"),
            )
        })
        .collect();
    let uses = |module: &Module, handed_on: bool| -> Vec<Module> {
        let statements = modules[module].split(';').filter_map(|statement| {
            let statement = statement.rsplit("\n\n").next()?.trim();
            let (before, tree) = statement.split_once("use ")?;
            let is_public = before.starts_with("pub");
            let is_use = before.is_empty() || is_public;
            (is_use && (!handed_on || is_public)).then(|| paths(tree))
        });
        statements.flatten().filter_map(|path| absolute(&path, module, &modules)).collect()
    };
    let handed_on: BTreeMap<Module, Module> = modules
        .keys()
        .flat_map(|module| {
            let names = uses(module, true).into_iter();
            names.map(|path| ([module.as_slice(), &path[path.len() - 1..]].concat(), path))
        })
        .collect();
    let file_of = |mut path: Module| {
        while let Some(further) = handed_on.get(&path).filter(|further| **further != path) {
            path = further.clone();
        }
        (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|p| modules.contains_key(p))
    };
    let is_around = |one: &Module, other: &Module| one.starts_with(other) || other.starts_with(one);
    let mut arrows: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
    for module in modules.keys() {
        let used = uses(module, false).into_iter().filter_map(&file_of);
        arrows.insert(module, used.filter(|used| !is_around(used, module)).collect());
    }
    assert!(arrows.values().map(BTreeSet::len).sum::<usize>() > 200, "the arrows are not seen");
    // What is left when files that use none of those left, or that none of them uses, are taken away
    // again and again.
    loop {
        let left: BTreeSet<Module> = arrows.keys().map(|module| (*module).clone()).collect();
        let used: BTreeSet<Module> = arrows.values().flatten().cloned().collect();
        arrows.retain(|module, uses| used.contains(*module) && !left.is_disjoint(uses));
        if arrows.len() == left.len() {
            break;
        }
    }
    let left: BTreeSet<&&Module> = arrows.keys().collect();
    assert!(left.is_empty(), "circles among {left:?}");
}
