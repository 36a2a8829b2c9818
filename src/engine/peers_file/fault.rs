//! What is wrong with a peers file, in one line.

use std::fmt;

use super::name::PeerName;

/// A mistake, where it is, and what to do about it. Its `Display` is one line,
/// `FILE:LINE: peer NAME and peer NAME: what: what to do`, and never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file's name, as [`SourceFile`](super::SourceFile) has it.
    pub file: String,
    /// The line, from 1; 0 stands for the whole file.
    pub line: usize,
    /// Whom it concerns: first the one in that line.
    pub peers: Vec<PeerName>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// The words of a fault, before it is known where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub what: String,
    pub todo: String,
}

impl Mistake {
    pub fn new(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Mistake { what: what.into(), todo: todo.into() }
    }
}

/// What stands in a file, as one line that can be read.
pub fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text[..end].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

/// The same in quotation marks.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", shortened(text))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { file, line, peers, what, todo } = self;
        match line {
            0 => write!(f, "{file}: ")?,
            line => write!(f, "{file}:{line}: ")?,
        }
        for (index, name) in peers.iter().enumerate() {
            let and = if index == 0 { "" } else { " and " };
            write!(f, "{and}peer {name}")?;
        }
        let colon = if peers.is_empty() { "" } else { ": " };
        write!(f, "{colon}{what}: {todo}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let fault = |line, peers| {
            let (what, todo) = ("what".to_owned(), "to do".to_owned());
            Fault { file: "a.toml".to_owned(), line, peers, what, todo }.to_string()
        };
        assert_eq!(fault(0, vec![]), "a.toml: what: to do");
        assert_eq!(fault(3, names(&["a"])), "a.toml:3: peer a: what: to do");
        assert_eq!(fault(3, names(&["b", "a"])), "a.toml:3: peer b and peer a: what: to do");
    }

    #[test]
    fn what_is_repeated_of_a_file_is_short_and_in_one_line() {
        assert_eq!(quoted("a\n\"b\u{202e}é"), "\"a\\n\\\"b\\u{202e}é\"");
        assert_eq!(shortened(&"é".repeat(60)), "é".repeat(60));
        assert_eq!(shortened(&"é".repeat(61)), format!("{}…", "é".repeat(60)));
    }
}
