//! The words of options that take one of a few words as their value.

use clap::ValueEnum;

/// The types of keys. There is only one.
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

/// `--fast-path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FastPathOption {
    Auto,
    On,
    Off,
}

/// `--rp-filter`, in the words of the kernel's ip-sysctl.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RpFilter {
    Strict,
    Loose,
    Off,
}
