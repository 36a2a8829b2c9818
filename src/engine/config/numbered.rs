//! Where the defaults begin that differ between the tunnels of one host: tunnel N has the Nth of each.

use std::net::Ipv4Addr;

/// Alternate local addresses, in 172.29.0.0/16.
pub const ALTERNATES: Ipv4Addr = Ipv4Addr::new(172, 29, 0, 0);
/// Firewall marks, and numbers of routing tables: "ip" in ASCII, with room for the number behind it.
pub const MARKS: u32 = 0x6970_0000;
