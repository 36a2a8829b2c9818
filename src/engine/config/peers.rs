//! The configuration of peers that come from a table of hosts, or are learned.

use std::path::PathBuf;
use std::time::Duration;

/// A table of inner addresses and the remotes they are behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostsSource {
    /// Read again when it changes.
    File(PathBuf),
    /// Fetched again and again.
    Url(HostsUrl),
}

/// Where a table is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsUrl {
    /// An `http` or `https` URL, as it was given.
    pub url: String,
    /// Time between two fetches.
    pub interval: Duration,
    /// The certificates that an `https` server's must be signed by.
    pub authorities: Authorities,
}

/// Whose signature makes a server's certificate good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Authorities {
    /// Those of the operating system.
    #[default]
    System,
    /// The PEM certificates in this file.
    File(PathBuf),
    /// The PEM certificates in the files of this directory.
    Directory(PathBuf),
}

/// Many clients share one server, which learns who has which inner address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnConfig {
    /// How long an inner address may be silent before it is forgotten.
    pub lifetime: Duration,
    /// How many inner addresses are learned at most, and how many clients are admitted.
    pub limit: usize,
}
