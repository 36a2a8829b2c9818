//! What the documents name is there: a claim whose test is gone proves nothing.

use std::fs;
use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between single backquotes, outside of blocks.
fn quoted(text: &str) -> Vec<String> {
    let outside = text.split("```").step_by(2);
    outside.flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The file that a document means: its rooms of tests are named without `tests/`.
fn file(name: &str) -> PathBuf {
    match name.split('/').next() {
        Some("engine" | "netns" | "vm") => top().join("tests").join(name),
        _ => top().join(name),
    }
}

/// Whether the file has such a test.
fn has_test(path: &Path, name: &str) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("py") => text.contains(&format!("\ndef {name}(")) && name.starts_with("test_"),
        _ => {
            let above = text.split_once(&format!("fn {name}("));
            above.is_some_and(|(above, _)| above.trim_end().ends_with("#[test]"))
        }
    }
}

#[test]
fn every_test_that_shows_a_line_of_the_security_page_is_there() {
    let page = fs::read_to_string(top().join("docs/security.md")).unwrap();
    let (mut named, mut last) = (0, None);
    for text in quoted(&page) {
        let (place, test) = match text.split_once("::") {
            Some((place, test)) => (place, Some(test)),
            None if text.ends_with(".py") || text.ends_with(".rs") => (text.as_str(), None),
            None => continue,
        };
        // `::test` is in the file that was named last.
        let path = if place.is_empty() { last.take() } else { Some(file(place)) }.unwrap();
        assert!(path.is_file(), "{text}: there is no {}", path.display());
        if let Some(test) = test {
            assert!(has_test(&path, test), "{text}: {} has no such test", path.display());
            named += 1;
        }
        last = Some(path);
    }
    assert!(named > 50, "{named}");
}

#[test]
fn the_commands_for_a_newcomer_are_on_the_first_screen() {
    let page = fs::read_to_string(top().join("README.md")).unwrap();
    let makefile = fs::read_to_string(top().join("Makefile")).unwrap();
    for command in ["make demo", "make test"] {
        assert!(page.lines().take(40).any(|line| line.starts_with(command)), "{command}");
    }
    for target in ["demo", "test"] {
        assert!(makefile.contains(&format!("\n{target}: ")), "{target}");
    }
}

#[test]
fn every_line_of_the_security_page_says_what_shows_it() {
    let page = fs::read_to_string(top().join("docs/security.md")).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for row in rows.iter().filter(|row| !row.contains("| shown by |")) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{row}");
        assert!(["cannot", "**can**"].contains(&cells[0]), "{row}");
        let is_shown = cells[2].contains('`') || cells[2] == "as off the path";
        assert!(cells[0] == "**can**" || is_shown, "{row}");
        assert!(!cells[2].is_empty(), "{row}");
    }
    assert!(rows.len() > 40, "{}", rows.len());
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let documents = ["README.md", "CONTRIBUTING.md", "RELEASING.md", "docs/security.md"];
    let mut named = 0;
    for document in documents.into_iter().filter(|name| top().join(name).is_file()) {
        let text = fs::read_to_string(top().join(document)).unwrap();
        for name in quoted(&text) {
            let begins = ["src/", "tests/", "docs/", "demo/", "examples/", "benches/", "fuzz/"];
            let is_path = begins.iter().any(|start| name.starts_with(start));
            let is_one = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_path && is_one {
                assert!(top().join(&name).exists(), "{document} names {name}");
                named += 1;
            }
        }
    }
    assert!(named > 5, "{named}");
}

#[test]
fn every_make_target_is_run_by_somebody() {
    let read = |name| fs::read_to_string(top().join(name)).unwrap();
    let (makefile, releasing) = (read("Makefile"), quoted(&read("RELEASING.md")));
    let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap();
    assert!(targets.split_whitespace().count() > 5, "{targets}");
    for target in targets.split_whitespace() {
        let named = releasing.contains(&format!("make {target}"));
        assert!(named, "RELEASING.md does not say who runs make {target}");
    }
}
