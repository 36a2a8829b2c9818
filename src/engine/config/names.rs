//! The names of hosts and interfaces.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName {
    /// Its outer address, or a name that stands for one or more.
    pub host: HostName,
    /// Its UDP port, in host byte order.
    pub port: NonZeroU16,
}

/// An address, or a name that is looked up again and again because servers move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// An IPv4 or IPv6 address, which is never looked up.
    Address(IpAddr),
    /// A name that [`is_host_name`] accepts, in the form that the resolver is asked for.
    Name(String),
}

impl HostName {
    /// The address; `None`: it has to be looked up.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            HostName::Address(address) => Some(*address),
            HostName::Name(_) => None,
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostName::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            HostName::Address(IpAddr::V4(_)) | HostName::Name(_) => {
                write!(f, "{}:{}", self.host, self.port)
            }
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostName::Address(address) => address.fmt(f),
            HostName::Name(name) => f.write_str(name),
        }
    }
}

/// What commands call a running tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelName {
    /// The name of its file, or of its interface.
    pub name: String,
    /// The interface of the file with this name, which a process that was started by hand is called after;
    /// `None`: there is no such file. Or the mistakes in it, a line each.
    pub device: Result<Option<DeviceName>, String>,
}

/// Whether this can be a host name (RFC 1123; underscores are common, so they pass).
pub fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(byte);
    // A last label of digits is a mistyped address: no top-level domain is a number.
    let numeric = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && !numeric && !name.starts_with('-') && name.split('.').all(label)
}

/// An interface name that the kernel takes: 1 to 15 bytes, no `/`, `:` or white space, not `.` or `..`
/// (`dev_valid_name` in net/core/dev.c), no `%`, which stands for a number there (`__dev_alloc_name`),
/// and not `all` or `default`, which stand for settings (`devinet_sysctl_register` in
/// net/ipv4/devinet.c).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName(String);

/// Why a string cannot be an interface name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNameError {
    /// The name has no byte.
    #[error("an interface name cannot be empty")]
    Empty,
    /// The name has this many bytes, and `IFNAMSIZ` leaves room for 15.
    #[error("an interface name has at most 15 bytes, this one has {0}")]
    TooLong(usize),
    /// The name has a byte that the kernel refuses, or is `.` or `..`.
    #[error("an interface name cannot hold '/', ':' or white space, nor be '.' or '..'")]
    BadCharacter,
    /// The kernel reads bytes, and one of this letter's is white space to it (`0xA0`, in Latin-1).
    #[error("the kernel takes a part of '{0}' for white space: choose another name")]
    Blank(char),
    /// The name has a `%`, which the kernel replaces by a number.
    #[error("an interface name cannot hold '%': write the number out")]
    Pattern,
    /// The name stands for settings of all interfaces, or of new ones.
    #[error(
        "in the kernel 'all' and 'default' stand for the settings of interfaces: choose another name"
    )]
    Settings,
}

impl DeviceName {
    /// Bytes of the longest name (`IFNAMSIZ` without the closing NUL).
    pub const MAX_LEN: usize = 15;

    /// The name as the kernel has it, without a closing NUL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(DeviceNameError::Empty);
        }
        if name.len() > DeviceName::MAX_LEN {
            return Err(DeviceNameError::TooLong(name.len()));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
        if name == "." || name == ".." || name.contains(bad) {
            return Err(DeviceNameError::BadCharacter);
        }
        let is_blank = |c: &char| c.encode_utf8(&mut [0; 4]).bytes().any(|byte| byte == 0xA0);
        if let Some(letter) = name.chars().find(is_blank) {
            return Err(DeviceNameError::Blank(letter));
        }
        if name.contains('%') {
            return Err(DeviceNameError::Pattern);
        }
        if name == "all" || name == "default" {
            return Err(DeviceNameError::Settings);
        }
        Ok(DeviceName(name.to_owned()))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
