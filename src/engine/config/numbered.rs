//! Defaults that differ between the tunnels of one host: each by the number of the tunnel.

use std::net::Ipv4Addr;

const FIRST_ALTERNATE: Ipv4Addr = Ipv4Addr::new(172, 29, 0, 0);
/// "ip" in ASCII, with room for the number behind it.
const FIRST_MARK: u32 = 0x6970_0000;

/// The alternate local address, in 172.29.0.0/16.
pub fn alternate(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ALTERNATE.to_bits() + u32::from(number))
}

/// The firewall mark, which is the number of the routing table, too.
pub fn mark(number: u16) -> u32 {
    FIRST_MARK + u32::from(number)
}
