//! Values that are one of a few words.

use clap::ValueEnum;

/// Key types; there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyType {
    Ed25519,
}

/// `--datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatapathOption {
    Auto,
    Kernel,
    Tun,
}

/// `--rp-filter`, in the words of the kernel's ip-sysctl.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RpFilter {
    Strict,
    Loose,
    Off,
}
