//! What people and programs see of a tunnel: log lines and `ipipou show`.

pub mod events;
pub mod log;
pub mod peers;
pub mod rate;
pub mod status;
mod text;

/// Puts a text on one line, without anything that a terminal would obey: the names of processes and the
/// contents of tables are chosen by others.
pub fn printable(text: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
