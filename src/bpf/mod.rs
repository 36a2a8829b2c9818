//! The fast path: two BPF programs on top of a datapath that is there and complete. `fast_path.c` has
//! their picture, and what they leave to the datapath.
//!
//! A library would load an object file, keep links, and pin maps; here two programs have three maps
//! and five constants. So the loader is bpf(2) and two netlink messages: aya 0.14, the last for our
//! Rust, brings 13 crates and does not read filters back, of which repair is made; libbpf-rs links libelf.

mod call;
mod compiled;
mod counted;
mod fast_path;
mod filters;
mod made;
mod maps;
mod program;
#[cfg(test)]
mod tests;
mod uplink;

pub use fast_path::FastPathAdapter;
pub use made::FastPathError;
