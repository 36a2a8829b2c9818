//! What each datapath can do, and what it needs of the host.

pub(super) mod delta;
mod fast;
pub mod kernel;
pub use fast::{by_route, fast_path};
pub mod shared;
mod start;
pub mod tun;
mod without_fast_path;
pub use without_fast_path::WithoutFastPath;

use super::config::Datapath;

/// The limits of a datapath.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Outer packets may be IPv6.
    pub outer_ipv6: bool,
    /// Inner packets may be IPv6.
    pub inner_ipv6: bool,
    /// It learns which inner addresses are behind which remote.
    pub learns: bool,
    /// It can keep a peer from the other peers.
    pub isolates: bool,
    /// Each remote has a link of its own, told from others by its pair of addresses; otherwise all share one.
    pub link_per_remote: bool,
    /// Open files of this process carry the packets, and can be kept for the next one. Otherwise the kernel
    /// carries them, and goes on when the process has ended.
    pub open_files: bool,
    /// It gets datagrams merged where they have checksums (UDP_GRO, udp(7)): with these, it is faster than a
    /// fast path that gets them one by one.
    pub merged_datagrams: bool,
    /// The most remotes that it carries.
    pub most_remotes: usize,
    /// The most remotes for which `auto` chooses it: making and changing links takes long.
    pub many_remotes: usize,
}

impl Datapath {
    /// Its name in options, log and status.
    pub fn name(self) -> &'static str {
        match self {
            Datapath::Kernel | Datapath::KernelShared => "kernel",
            Datapath::Tun => "tun",
        }
    }

    /// What it can carry, and how much of it.
    pub fn capabilities(self) -> Capabilities {
        match self {
            Datapath::Kernel => Capabilities {
                outer_ipv6: false, // `fou` listens on IPv4, as it is set up here
                inner_ipv6: false, // `ipip` carries IPv4
                learns: false,
                isolates: false,
                link_per_remote: true,
                open_files: false,
                merged_datagrams: false,
                // The size of the nft sets that hold the remotes.
                most_remotes: 1024,
                many_remotes: 512,
            },
            Datapath::KernelShared => Capabilities {
                link_per_remote: false,
                // The numbers that tell peers apart have 16 bits.
                most_remotes: 1 << 16,
                many_remotes: 1 << 16,
                ..Datapath::Kernel.capabilities()
            },
            Datapath::Tun => Capabilities {
                outer_ipv6: true,
                inner_ipv6: true,
                learns: true,
                isolates: true,
                link_per_remote: false,
                open_files: true,
                merged_datagrams: true,
                most_remotes: usize::MAX,
                many_remotes: usize::MAX,
            },
        }
    }
}
