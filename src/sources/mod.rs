//! Where peers come from: a table of hosts in a file or on a web server, and names, which are looked up
//! again and again because hosts move.

#[cfg_attr(not(feature = "hosts-url"), path = "no_https.rs")]
mod https;
mod lookups;
pub mod names;
mod table;
mod url;

pub use table::TableSource;
