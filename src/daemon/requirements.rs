//! What this process and its kernel must have, each said in one line when it is missing.

use std::fs::OpenOptions;
use std::io;

use super::Failure;
use crate::host::require_modules;
use crate::kernel::probe_fou;

/// Bits of capability sets (capabilities(7)).
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_NET_RAW: u32 = 13;

/// Where TUN interfaces are opened (Documentation/networking/tuntap.rst).
const TUN_DEVICE: &str = "/dev/net/tun";

/// Checks that this process has a capability.
pub fn require_capability(bit: u32, name: &str) -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(Failure::system("read /proc/self/status"))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> bit & 1 == 1 {
        return Ok(());
    }
    Err(Failure::Capability(format!(
        "not allowed without {name}: run as root, or as the service ipipou@.service"
    )))
}

/// Checks for what sending an authentication packet needs.
pub fn require_raw() -> Result<(), Failure> {
    require_capability(CAP_NET_RAW, "CAP_NET_RAW")
}

/// Checks that the kernel has IPIP over FOU.
pub fn require_ipip_over_fou() -> Result<(), Failure> {
    // A request to the family makes the kernel load the module, if it may.
    if probe_fou().is_err() {
        require_modules(&["fou"])?;
        probe_fou().map_err(|e| Failure::Fou(format!("the kernel's FOU does not answer: {e}")))?;
    }
    Ok(require_modules(&["ipip"])?)
}

/// Checks that TUN interfaces can be made here.
pub fn require_tun() -> Result<(), Failure> {
    match OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Failure::Link(format!("{TUN_DEVICE}: {error}: run as root, or allow this user")))
        }
        Err(error) => Err(Failure::Link(format!(
            "{TUN_DEVICE}: {error}: run `modprobe tun`, or give the container that device"
        ))),
    }
}
