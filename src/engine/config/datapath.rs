//! Which datapath a tunnel has, and whether a fast path.

/// Who carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// FOU listeners and `ipip` links, one for each remote.
    Kernel,
    /// A FOU listener and one `ipip` link that all remotes of a server share: routes tell it where each is, and
    /// rules which of them a packet is from.
    KernelShared,
    /// This process, between a TUN interface and a UDP socket.
    Tun,
}

/// Which datapath is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DatapathChoice {
    /// The kernel's where there is one that can do what is asked.
    #[default]
    Auto,
    /// This one, or the start fails.
    Only(Datapath),
}

/// Whether there is to be a fast path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FastPathChoice {
    /// On the kernel's datapath; in userspace where the uplink takes superpackets, because packets that
    /// the uplink gets one by one are faster without, and elsewhere for what comes without checksums.
    #[default]
    Auto,
    /// Wherever the kernel takes it.
    On,
    /// Nowhere.
    Off,
}
