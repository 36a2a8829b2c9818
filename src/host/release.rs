//! Which Linux this is: told by `modprobe`'s folders, and asked where nothing else tells what it does.

/// The release, as `uname -r` prints it.
pub fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Whether TCP data that a network card has put together (GRO) is lost on its way to a FOU listener that is
/// bound to an address but to no interface. Before 6.9, `udp_gro_complete` looks for the listener once more, and
/// by the addresses of the inner packet (net/ipv4/udp_offload.c): without it the packet is not marked as a
/// tunnel's, and `udp_unexpected_gso` drops it. For a listener that is bound to an interface nothing is put
/// together there, and one without an address is found.
pub fn loses_merged() -> bool {
    is_before(&release(), (6, 9))
}

/// Whether this is known to be an earlier version.
fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) < version,
        (None, _) | (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_compared_by_their_first_two_numbers() {
        for (release, is_old) in [
            ("6.1.0-28-amd64", true),
            ("5.15.0-130-generic", true),
            ("6.8", true),
            ("6.9.0", false),
            ("6.12.95+deb13-amd64", false),
            ("10.1-rc1", false),
            ("unknown", false),
            ("6", false),
            ("", false),
        ] {
            assert_eq!(is_before(release, (6, 9)), is_old, "{release}");
        }
    }
}
