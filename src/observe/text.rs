//! Times and long texts, as people read them.

/// A width that fits on most terminals.
pub(super) const WIDTH: usize = 100;

/// Removes the middle of a text. More is kept of its end, which has the port.
pub(super) fn without_middle(text: &str, room: usize) -> String {
    let length = text.chars().count();
    if length <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(1);
    let end = kept.min(kept / 2 + 3);
    let start: String = text.chars().take(kept - end).collect();
    let end: String = text.chars().skip(length - end).collect();
    format!("{start}…{end}")
}

pub(super) fn age(now: u64, at: u64) -> String {
    format!("{} ago", duration(now.saturating_sub(at)))
}

pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        172_800.. => format!("{}d", seconds / 86400),
    }
}

/// In powers of 1024, like `ip -s -h` with IEC units.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_with_readable_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.0 KiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(102_400), "100 KiB");
        assert_eq!(bytes(1_023_000), "999 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(duration(119), "119s");
        assert_eq!(duration(7200), "2h");
    }
}
