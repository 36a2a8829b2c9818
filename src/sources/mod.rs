//! Where peers come from: a table of hosts in a file or on a web server, and names, which are looked up
//! again and again because hosts move.

mod fetch;
mod lookups;
pub mod names;
mod table;

pub use table::TableSource;
