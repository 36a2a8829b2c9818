//! Where peers come from: the peers files of a server, a table of hosts in a file or on a web server, and
//! names, which are looked up again and again because hosts move.

pub mod exposed;
mod file;
#[cfg_attr(not(feature = "hosts-url"), path = "no_https.rs")]
mod https;
mod lookups;
pub mod names;
pub mod peers;
pub mod table;
mod url;

pub use table::TableSource;
