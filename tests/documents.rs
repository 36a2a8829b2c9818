//! What the documents name is there: tests, files, headings, commands, messages of the program.

#[path = "../examples/engine_by_hand.rs"]
#[allow(dead_code)] // its `main`
mod engine_by_hand;
#[path = "../examples/sign_and_verify.rs"]
#[allow(dead_code)]
mod sign_and_verify;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Commands of the manual that tests/netns/test_manual.py does not run, and what shows that they
/// work: a file, and what stands in it. Those of `make` are in the table of RELEASING.md.
const RUN_ELSEWHERE: [(&str, &str, &str); 4] = [
    (
        "systemctl enable --now ipipou@server0",
        "tests/setup/machines.py",
        "systemctl enable --now ipipou@{machine.name}0",
    ),
    (
        "systemctl reload ipipou@client0",
        "tests/setup/machines.py",
        "systemctl reload ipipou@client0",
    ),
    (
        "systemctl start ipipou.target",
        "tests/vm/test_systemd.py",
        "systemctl(\"start\", \"ipipou.target\")",
    ),
    (
        "ipipou check server0 && sudo systemctl kill -s KILL ipipou@server0",
        "tests/setup/machines.py",
        "ipipou check {machine.name}0 && systemctl kill -s KILL {unit}",
    ),
];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(top().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Everything that is written for people, but for the changelog, which names what was.
fn documents() -> Vec<String> {
    let mut names: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md"].map(str::to_owned).into();
    let pages = fs::read_dir(top().join("docs")).unwrap();
    let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    names.extend(pages.filter(|page| page.ends_with(".md")).map(|page| format!("docs/{page}")));
    assert!(names.len() > 8, "{names:?}");
    names
}

/// The lines that stand in blocks, without what is said about them, continued ones joined. Blocks that
/// are drawn are left out.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    let blocks = text.split("\n```").skip(1).step_by(2).filter(|block| block.is_ascii());
    let lines = blocks.flat_map(|block| block.lines().skip(1));
    let lines = lines.map(|line| line.split(" #").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The place that a heading can be linked to, as the hosting sites make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The parts of a quoted message between what is filled in.
fn parts(message: &str) -> impl Iterator<Item = &str> {
    let is_text = |c: char| c.is_alphanumeric() || "`-/".contains(c);
    let parts = message.split('…').map(move |part| part.trim_matches(|c| !is_text(c)));
    parts.filter(|part| part.len() > 2)
}

/// All strings of the program, each on one line and without what is filled in.
fn messages() -> String {
    fn add(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                add(&entry, text);
            } else {
                text.push_str(&fs::read_to_string(entry).unwrap());
            }
        }
    }
    let mut text = String::new();
    add(&top().join("src"), &mut text);
    let mut joined = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(start) => joined.push_str(start.trim_start()),
            None => {
                joined.push_str(line.trim_start());
                joined.push('\n');
            }
        }
    }
    joined.replace("\\\"", "\"").replace('_', " ")
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
fn every_test_that_the_security_page_names_exists() {
    let page = read("docs/security.md");
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
    let page = read("README.md");
    let makefile = read("Makefile");
    for command in ["make demo", "make test"] {
        assert!(page.lines().take(40).any(|line| line.starts_with(command)), "{command}");
    }
    for target in ["demo", "test"] {
        assert!(makefile.contains(&format!("\n{target}: ")), "{target}");
    }
}

#[test]
fn every_line_of_the_security_page_names_its_evidence() {
    let page = read("docs/security.md");
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
    let mut named = 0;
    for document in documents() {
        let text = read(&document);
        let in_blocks = commands(&text);
        let words = in_blocks.iter().flat_map(|line| line.split([' ', '=']));
        for name in quoted(&text).into_iter().chain(words.map(str::to_owned)) {
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
fn the_release_guide_runs_every_make_target() {
    let (makefile, releasing) = (read("Makefile"), quoted(&read("RELEASING.md")));
    let targets = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap();
    assert!(targets.split_whitespace().count() > 5, "{targets}");
    for target in targets.split_whitespace() {
        let named = releasing.contains(&format!("make {target}"));
        assert!(named, "RELEASING.md does not say who runs make {target}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut followed = 0;
    for document in documents() {
        let text = read(&document);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let here = top().join(&document);
            let target = if path.is_empty() { here } else { here.with_file_name(path) };
            assert!(target.exists(), "{document}: {link}");
            if !heading.is_empty() {
                let page = fs::read_to_string(target).unwrap();
                let mut headings = page.lines().filter_map(|line| line.strip_prefix("##"));
                let is_there =
                    headings.any(|line| anchor(line.trim_matches(['#', ' '])) == heading);
                assert!(is_there, "{document}: {link}: no such heading");
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "{followed}");
}

#[test]
fn every_command_of_the_manual_is_run_by_a_test() {
    for (command, file, text) in RUN_ELSEWHERE {
        assert!(read(file).contains(text), "{command}: {file} does not have {text}");
    }
    // The quick start and the recipes: tests/netns/test_manual.py, which counts them itself.
    let recipes = read("docs/guide.md");
    let recipes = recipes.split("\n## ").find(|part| part.starts_with("Recipes\n")).unwrap();
    let readme = read("README.md");
    let start = readme.split("\n## ").find(|part| part.starts_with("Quick start\n")).unwrap();
    let run: BTreeSet<_> = [commands(recipes), commands(start)].concat().into_iter().collect();
    assert!(run.len() > 30, "{run:?}");

    let mut checked = 0;
    for document in
        documents().iter().filter(|name| *name == "README.md" || name.starts_with("docs/"))
    {
        let lines = commands(&read(document));
        for line in &lines {
            let is_make = line.starts_with("make ");
            let plain = line.trim_start_matches("sudo ");
            let elsewhere = RUN_ELSEWHERE.iter().any(|(command, ..)| *command == plain);
            assert!(is_make || elsewhere || run.contains(line), "{document}: nothing runs: {line}");
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn the_troubleshooting_page_quotes_what_the_program_says() {
    let (page, said) = (read("docs/troubleshooting.md"), messages());
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let mut quotes = 0;
    for row in rows {
        let first = row.trim_matches('|').split(" | ").next().unwrap_or_default();
        let is_command =
            |text: &&String| ["nstat ", "ip ", "systemctl "].iter().any(|c| text.starts_with(c));
        for text in quoted(first).iter().filter(|text| !is_command(text)) {
            for part in parts(text) {
                let is_said = said.contains(&part.replace('_', " "));
                assert!(is_said, "no message of the program has {part:?}: {row}");
                quotes += 1;
            }
        }
    }
    assert!(quotes > 50, "{quotes}");
}

/// The names, a line each, in the part of a file between two texts.
fn names_of_reasons(file: &str, begins: &str, ends: &str) -> Vec<String> {
    let text = read(file);
    let (_, part) = text.split_once(begins).unwrap_or_else(|| panic!("{file}: no {begins}"));
    let (part, _) = part.split_once(ends).unwrap_or_else(|| panic!("{file}: no {ends}"));
    let code = part.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

#[test]
fn every_reason_for_a_dropped_packet_is_explained() {
    let page = read("docs/troubleshooting.md");
    let section =
        page.split("\n## ").find(|part| part.starts_with("Packets are dropped\n")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let explained: BTreeSet<_> = rows.filter_map(|row| row.split('`').next()).collect();
    let userspace = names_of_reasons("src/tun/drops.rs", "\nreasons! {", "\n}");
    let kernel = names_of_reasons("src/kernel/ruleset.rs", "const ALL: [&str; 8] = [", "];");
    assert!(userspace.len() > 15 && kernel.len() == 8, "{userspace:?} {kernel:?}");
    // As `ipipou show NAME` prints them.
    let names: BTreeSet<_> =
        userspace.into_iter().chain(kernel).map(|name| name.replace('_', " ")).collect();
    assert_eq!(explained, names.iter().map(String::as_str).collect());
}

#[test]
fn the_engine_by_hand_admits_a_client_and_refuses_a_replay() {
    assert_eq!(
        engine_by_hand::play().unwrap().join("\n"),
        "\
start:
  step: install rules ipipou-0 for 203.0.113.1:10000
  step: add FOU listener 203.0.113.1:10000
hello:
  step: create ipipou0 local 203.0.113.1 remote 198.51.100.7:4500
  step: set ipipou0 up
  step: add 172.28.0.0 peer 172.28.0.1 to ipipou0
  step: admit 198.51.100.7:4500
  report: 198.51.100.7:4500 authenticated: tunnel up
replay:
  report: refused a packet of 73 bytes from 198.51.100.7:4500: it was seen before
Counters { accepted: 1, moved: 0, sent: 0, repaired: 0, rejected: {Replayed: 1} }"
    );
}

#[test]
fn sign_and_verify_accepts_each_packet_once() {
    let said = sign_and_verify::play().unwrap();
    assert_eq!(
        said[2..],
        [
            "a forged packet from 198.51.100.66:4500: refused: \
             wrong signature (another key, or another secret)",
            "the packet from 198.51.100.7:4500: accepted",
            "a replay from 198.51.100.66:4500: refused: it was seen before",
            "an older packet from 198.51.100.7:4500: refused: it is older than the newest one accepted",
            "the next packet from 198.51.100.7:4500: accepted",
        ]
    );
}
