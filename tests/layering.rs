//! Which room may use which, and what the pure rooms may not touch. See src/lib.rs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms whose names may stand in its files.
const ARROWS: [(&str, &[&str]); 10] = [
    ("wire", &[]),
    ("auth", &["wire"]),
    ("engine", &["auth", "wire"]),
    ("host", &["engine"]),
    ("kernel", &["auth", "engine", "host", "wire"]),
    ("tun", &["engine", "host", "wire"]),
    ("sources", &["engine", "host"]),
    ("observe", &["engine"]),
    ("cli", &["auth", "engine"]),
    ("daemon", &["auth", "engine", "host", "kernel", "observe", "sources", "tun"]),
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
fn every_room_has_its_arrows() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rooms: BTreeSet<_> = fs::read_dir(source)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(rooms, ARROWS.iter().map(|(room, _)| (*room).to_owned()).collect());
}

#[test]
fn pure_rooms_touch_nothing() {
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
