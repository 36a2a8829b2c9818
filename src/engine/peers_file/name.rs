//! The names of peers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a peer: 1 to 63 of a-z, 0-9, `-`, `_` and `.`. The first is none of `-` and `.`, so that it
/// is neither an option nor a hidden file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

/// Why a text cannot be the name of a peer. The message goes on after the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no character at all.
    #[error("is empty")]
    Empty,
    /// It has this many bytes.
    #[error("has {0} characters, and a name has at most 63")]
    TooLong(usize),
    /// It would look like an option or a hidden file.
    #[error("begins with {0:?}")]
    Start(char),
    /// There is another character in it.
    #[error("has {0:?} in it, and a name has only a-z, 0-9, '-', '_' and '.'")]
    Character(char),
}

impl PeerName {
    const LONGEST: usize = 63;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with a number behind it; its own end is left out where both would be too long. Two numbers
    /// make two names.
    pub fn numbered(&self, number: u32) -> PeerName {
        let end = format!("-{number}");
        let begin = self.0.chars().take(Self::LONGEST.saturating_sub(end.len()));
        PeerName(begin.chain(end.chars()).collect())
    }
}

impl FromStr for PeerName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let is_inside =
            |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(*c);
        if let Some(bad) = name.chars().find(|c| !is_inside(c)) {
            return Err(NameError::Character(bad));
        }
        match name.chars().next() {
            None => Err(NameError::Empty),
            Some(first @ ('-' | '.')) => Err(NameError::Start(first)),
            Some(_) if name.len() > Self::LONGEST => Err(NameError::TooLong(name.len())),
            Some(_) => Ok(PeerName(name.to_owned())),
        }
    }
}

impl TryFrom<String> for PeerName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> String {
        name.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_few_characters_and_a_bound() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "_x", "anna-router", "shop_2.example", &longest] {
            assert_eq!(good.parse::<PeerName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for (bad, error) in [
            ("", NameError::Empty),
            ("-a", NameError::Start('-')),
            (".a", NameError::Start('.')),
            ("Anna", NameError::Character('A')),
            ("a b", NameError::Character(' ')),
            ("é", NameError::Character('é')),
            ("a/b", NameError::Character('/')),
            (&"a".repeat(64), NameError::TooLong(64)),
        ] {
            assert_eq!(bad.parse::<PeerName>(), Err(error), "{bad:?}");
        }
    }

    #[test]
    fn a_name_with_a_number_is_a_name() {
        for (length, number) in [(1, 2), (60, 99), (61, 2), (62, 2), (63, 2), (63, u32::MAX)] {
            let name: PeerName = "a".repeat(length).parse().unwrap();
            let numbered = name.numbered(number).to_string();
            assert!(numbered.ends_with(&format!("a-{number}")), "{numbered}");
            assert_eq!(numbered.parse::<PeerName>(), Ok(name.numbered(number)));
        }
        assert_eq!("anna".parse::<PeerName>().unwrap().numbered(2).as_str(), "anna-2");
    }

    #[test]
    fn a_name_in_json_is_checked_too() {
        let name: PeerName = serde_json::from_str("\"anna\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"anna\"");
        assert!(serde_json::from_str::<PeerName>("\"Anna\"").is_err());
    }
}
