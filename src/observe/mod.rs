//! What people and programs see of a tunnel: log lines and `ipipou show`.

pub mod events;
pub mod log;
pub mod peers;
pub mod rate;
pub mod show;
pub mod status;
mod text;

/// Whether a terminal would obey this character rather than show it: a control character (C0, DEL, C1),
/// or one that turns the direction of the text around it, or ends a line (Unicode, UAX #9 and #14).
pub fn is_command(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Puts a text on one line, without anything that a terminal would obey: the names of processes and the
/// contents of tables are chosen by others.
pub fn printable(text: &str) -> String {
    replaced(text, is_command, |c| c.escape_default().to_string())
}

/// The same of a text of several lines.
pub fn printable_lines(text: &str) -> String {
    replaced(text, |c| is_command(c) && c != '\n', |c| c.escape_default().to_string())
}

/// JSON without anything that a terminal would obey, and that says the same: in it, such characters stand
/// in strings only, but for the ends of lines.
pub fn printable_json(json: &str) -> String {
    let escaped = |c: char| format!("\\u{:04x}", u32::from(c)); // RFC 8259, 7
    replaced(json, |c| is_command(c) && c != '\n', escaped)
}

/// Replaces some characters of a text, which may have megabytes: what is between them is copied as it is.
fn replaced(text: &str, is_meant: impl Fn(char) -> bool, by: impl Fn(char) -> String) -> String {
    let mut rest = text;
    let mut shown = String::with_capacity(text.len());
    while let Some(at) = rest.find(&is_meant) {
        let (before, from) = rest.split_at(at);
        let mut after = from.chars();
        shown.push_str(before);
        shown.extend(after.next().map(&by));
        rest = after.as_str();
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_is_a_command_to_a_terminal() {
        let all: String = (0..0x1_0000).filter_map(char::from_u32).collect();
        assert!(!printable(&all).contains(is_command));
        assert_eq!(printable("a\u{9b}2J\u{202e}\t"), r"a\u{9b}2J\u{202e}\t");
        assert_eq!(printable_lines("a\u{7f}\nä\n"), "a\\u{7f}\nä\n");
        let json = serde_json::to_string_pretty(&[&all]).unwrap();
        let shown = printable_json(&json);
        assert!(!shown.contains(|c| is_command(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [all]);
    }
}
