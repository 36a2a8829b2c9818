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
    let escaped = |c: char| match is_command(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The same of a text of several lines.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// JSON without anything that a terminal would obey, and that says the same: in it, such characters stand
/// in strings only, but for the ends of lines.
pub fn printable_json(json: &str) -> String {
    let escaped = |c: char| match is_command(c) && c != '\n' {
        true => format!("\\u{:04x}", u32::from(c)), // RFC 8259, 7
        false => c.to_string(),
    };
    json.chars().map(escaped).collect()
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
