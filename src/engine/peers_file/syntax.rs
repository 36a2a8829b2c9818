//! Where a file is not TOML.

use std::collections::BTreeMap;

use toml::de::Error;

use super::fault::{Mistake, quoted, shortened};
use super::name::PeerName;
use super::reader::Reader;

/// How many lines that are not TOML are named: most of them follow from the first.
const MOST: usize = 10;

/// Adds the first mistake of each line.
pub fn faults(reader: &mut Reader, errors: &[Error]) {
    let mut by_line = BTreeMap::new();
    for error in errors {
        let at = error.span().unwrap_or_default();
        let line = error.span().map_or(0, |at| reader.lines.at(at.start));
        by_line.entry(line).or_insert((error.message(), at));
    }
    let heads = Heads::of(&reader.file.text);
    let mut mistakes = Vec::new();
    for (line, (message, at)) in &by_line {
        let column = reader.lines.column(at.start);
        let name = reader.file.text.get(at.clone()).unwrap_or_default();
        match *message {
            // Of the fields of a second table nothing is said: one with another name may have them.
            "duplicate key" if heads.is_in_second(*line, |head| by_line.contains_key(&head)) => {}
            "duplicate key" => mistakes.push((*line, twice(&heads, *line, name))),
            other => mistakes.push((*line, (None, not_toml(column, other)))),
        }
    }
    for (line, (peer, mistake)) in mistakes.into_iter().take(MOST) {
        reader.fault_in_line(line, peer.as_ref(), mistake);
    }
}

fn not_toml(column: usize, message: &str) -> Mistake {
    let message = message.replace(char::is_control, " ");
    let todo = "write FIELD = \"VALUE\" or FIELD = [\"ONE\", \"OTHER\"], below [peer.NAME]";
    Mistake::new(format!("column {column} is not TOML ({message})"), todo)
}

/// A table or a field that is there already.
fn twice(heads: &Heads, line: usize, name: &str) -> (Option<PeerName>, Mistake) {
    let head = heads.above(line);
    let peer = head.and_then(|head| head.name.strip_prefix("peer.")?.parse().ok());
    let mistake = match head.filter(|head| head.line == line && head.first < line) {
        Some(Head { name, first, .. }) => Mistake::new(
            format!("[{}] is there already, in line {first}", shortened(name)),
            "give one of the two another name: [peer.NAME]",
        ),
        None => Mistake::new(
            format!("{} is there twice", quoted(name.trim_matches(['"', '\'']))),
            "leave one out; several values are a list: [\"ONE\", \"OTHER\"]",
        ),
    };
    (peer, mistake)
}

/// The head of a table: its name as `peer.anna`, its line, and the line where that name was first.
struct Head {
    name: String,
    line: usize,
    first: usize,
}

struct Heads(Vec<Head>);

impl Heads {
    fn of(text: &str) -> Self {
        let mut first = BTreeMap::new();
        let lines = text.split('\n').zip(1..);
        let heads = lines.filter_map(|(text, line)| {
            let name = head(text)?;
            let first = *first.entry(name.clone()).or_insert(line);
            Some(Head { name, line, first })
        });
        Heads(heads.collect())
    }

    /// The one that a line belongs to.
    fn above(&self, line: usize) -> Option<&Head> {
        let after = self.0.partition_point(|head| head.line <= line);
        self.0.get(after.checked_sub(1)?)
    }

    /// Whether a line is below the second head of a name, which itself `is_wrong`.
    fn is_in_second(&self, line: usize, is_wrong: impl Fn(usize) -> bool) -> bool {
        self.above(line)
            .is_some_and(|head| head.first < head.line && head.line < line && is_wrong(head.line))
    }
}

/// The name in the head of a table, without blanks and quotes.
fn head(line: &str) -> Option<String> {
    let (name, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Some(name.chars().filter(|c| !c.is_whitespace() && !"\"'[".contains(*c)).collect())
}
