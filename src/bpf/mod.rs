//! The fast path: two BPF programs on top of a datapath that is there and complete. `fast_path.c` has
//! their picture.
//!
//! A library would load an object file, keep links, and pin maps; here two programs have three maps
//! and eight constants. So the loader is bpf(2) and two netlink messages: aya 0.14, the last one for our
//! Rust, brings 13 crates and reads no filters back, which repair is made of; libbpf-rs links libelf.

mod call;
mod compiled;
mod maps;
mod program;
#[cfg(test)]
mod tests;
