//! Tells which addresses packets may come from.

use std::net::IpAddr;

/// Whether an address is that of one host, so that a packet can come from it: it is not a group, not
/// unspecified and not loopback (RFC 1122, 3.2.1.3; RFC 4291, 2.4 and 2.5.5.2).
pub fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            !this_network && !v4.is_loopback() && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            !v6.is_unspecified()
                && !v6.is_loopback()
                && !v6.is_multicast()
                && v6.to_ipv4_mapped().is_none()
        }
    }
}

/// Whether an address means something on its link only, and by that steers the hosts on it: router
/// advertisements and redirects come from there, and are believed from nowhere else (RFC 4861, 6.1.2
/// and 8.1).
pub fn is_link_local_v6(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_that_can_send_are_recognised() {
        for host in
            ["10.0.0.1", "169.254.1.1", "223.255.255.255", "240.0.0.1", "fd00::1", "fe80::1"]
        {
            assert!(is_one_host(ip(host)), "{host}");
        }
        let nobody = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.5", "239.1.1.1"];
        let nobody6 = ["255.255.255.255", "::", "::1", "ff02::1", "ff0e::5", "::ffff:10.0.0.1"];
        for address in nobody.into_iter().chain(nobody6) {
            assert!(!is_one_host(ip(address)), "{address}");
        }
    }

    #[test]
    fn link_local() {
        for (address, is) in
            [("fe80::1", true), ("febf::1", true), ("fec0::1", false), ("169.254.0.1", false)]
        {
            assert_eq!(is_link_local_v6(ip(address)), is, "{address}");
        }
    }
}
