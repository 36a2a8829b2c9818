//! The offloads of the kernel.

use std::fmt;

/// Which offloads are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Large TCP packets from and to the interface.
    pub tun_tso: bool,
    /// Large UDP packets from and to the interface.
    pub tun_uso: bool,
    /// Many segments sent at once.
    pub udp_gso: bool,
    /// Many datagrams received at once.
    pub udp_gro: bool,
    /// Queues of the interface.
    pub queues: usize,
}

impl Offloads {
    /// The names of those in use.
    pub fn used(&self) -> Vec<&'static str> {
        let all = [
            ("tun-tso", self.tun_tso),
            ("tun-uso", self.tun_uso),
            ("udp-gso", self.udp_gso),
            ("udp-gro", self.udp_gro),
        ];
        all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tun")?;
        for (name, on) in [("tso", self.tun_tso), ("uso", self.tun_uso)] {
            if on {
                write!(f, " {name}")?;
            }
        }
        f.write_str(", udp")?;
        for (name, on) in [("gso", self.udp_gso), ("gro", self.udp_gro)] {
            if on {
                write!(f, " {name}")?;
            }
        }
        if self.queues > 1 {
            write!(f, ", {} queues", self.queues)?;
        }
        Ok(())
    }
}
