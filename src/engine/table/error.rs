//! What is wrong with a table, in words for its author.

use std::num::NonZeroU16;

use ipnet::IpNet;

/// What is wrong with a table, to be read after the name of the file and a colon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The file is not text.
    #[error("{line}: this is not UTF-8")]
    NotUtf8 {
        /// Line of the first wrong byte, from 1.
        line: usize,
    },
    /// It is not JSON, or not of the form above.
    #[error("{line}:{column}: {what}")]
    Json {
        /// Line of the mistake, from 1.
        line: usize,
        /// Column of the mistake, from 1.
        column: usize,
        /// What serde_json says of it, shortened.
        what: String,
    },
    /// One node cannot be used.
    #[error("{line}: node {key:?} {fault}")]
    Node {
        /// Line of its key, from 1.
        line: usize,
        /// The key, shortened.
        key: String,
        /// What is wrong with it.
        fault: NodeError,
    },
}

/// What is wrong with a node: a sentence that goes on after its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The key is not an address, and not an address with a prefix length.
    #[error("is neither an IP address nor a prefix")]
    NotAPrefix,
    /// The key is a network with host bits; this is the network without them.
    #[error("has bits set behind its prefix length: write \"{0}\"")]
    HostBits(IpNet),
    /// The key is a multicast network, or the address of no host.
    #[error("holds no addresses that a host can have")]
    NotUnicast,
    /// The host is not one that packets can be sent to, shortened for the message.
    #[error("has the host {0:?}, which is neither an address of one host nor a name")]
    NotAHost(String),
    /// The host has its port behind a colon: the text, and that port.
    #[error("has the host {0:?}: write the port as \"port\": {1}")]
    PortInHost(String, NonZeroU16),
    /// Two keys mean the same addresses.
    #[error("is there twice (first in line {first})")]
    Twice {
        /// Line of the first of the two.
        first: usize,
    },
    /// A key is within another.
    #[error("overlaps {other:?} of line {line}")]
    Overlaps {
        /// The other key, shortened.
        other: String,
        /// Its line.
        line: usize,
    },
}

pub fn json_error(error: &serde_json::Error) -> TableError {
    let (line, column) = (error.line(), error.column());
    let what = error.to_string();
    let place = format!(" at line {line} column {column}");
    TableError::Json { line, column, what: shortened(what.strip_suffix(&place).unwrap_or(&what)) }
}

pub fn line_at(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|b| **b == b'\n').count()
}

/// A message is one line that can be read, whatever stands in the file.
pub fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
