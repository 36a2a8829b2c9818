//! Reports of routers and hosts that a remote cannot be reached. Anybody can send them: they are shown,
//! and nothing follows from them.

use std::time::Duration;

pub use crate::host::datapath::Unreachable;

/// Types of linux/icmp.h and linux/icmpv6.h.
const ICMP_DEST_UNREACH: u8 = 3;
const ICMPV6_DEST_UNREACH: u8 = 1;

/// The latest report: with the time it came by the monotonic clock, or with how long ago that was.
pub type Last = Option<(Unreachable, Duration)>;

/// What an ICMP message of this type and code says, if it is such a report. Packets that are too long
/// are handled in `path.rs`.
pub fn of_icmp(kind: u8, code: u8) -> Option<&'static str> {
    (kind == ICMP_DEST_UNREACH && code != 4).then_some(match code {
        0 | 6 | 11 => "network unreachable",
        1 | 7 | 8 | 12 => "host unreachable",
        2 => "protocol unreachable",
        3 => "port unreachable",
        9 | 10 | 13 => "prohibited",
        _ => "destination unreachable",
    })
}

/// What an ICMPv6 message of this type and code says, if it is such a report.
pub fn of_icmp6(kind: u8, code: u8) -> Option<&'static str> {
    (kind == ICMPV6_DEST_UNREACH).then_some(match code {
        0 => "network unreachable",
        1 | 5 => "prohibited",
        3 => "host unreachable",
        4 => "port unreachable",
        _ => "destination unreachable",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreachable_errors_are_reported() {
        assert_eq!(of_icmp(3, 3), Some("port unreachable"));
        assert_eq!(of_icmp(3, 13), Some("prohibited"));
        assert_eq!(of_icmp(3, 4), None, "too long");
        assert_eq!(of_icmp(11, 3), None, "time exceeded");
        assert_eq!(of_icmp6(1, 4), Some("port unreachable"));
        assert_eq!((of_icmp6(2, 0), of_icmp6(3, 3)), (None, None));
    }
}
