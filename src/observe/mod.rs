//! What people and programs see of a tunnel: log lines and `ipipou show`.

pub mod log;
pub mod rate;
pub mod status;

/// On one line, and with nothing in it that a terminal obeys: whoever runs a process on the host
/// chooses its name, and whoever serves a table what stands in it.
pub fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
