//! Everything that can be checked before the first change to the host.

use std::io;

use super::{Failure, Settings, is_running};
use crate::engine::config::{Outer, Role};
use crate::engine::host::{Encapsulation, Found, InterfaceKind};
use crate::engine::plan;
use crate::kernel::{Host, RulesError, require_modules};

/// Bits of capability sets (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Opens the host, or says in one line why there can be no tunnel.
///
/// # Errors
/// The first thing that is missing.
pub async fn open_host(settings: &Settings) -> Result<Host, Failure> {
    let tunnel = settings.tunnel();
    if is_running(settings) {
        return Err(Failure::Generic(format!(
            "{} is run by another process already; see `ipipou show {0}`",
            tunnel.device
        )));
    }
    let mut host = Host::open(&tunnel.rules.table, true).map_err(kernel)?;
    check_device(&tunnel.outer, &host).await?;
    require_capability(CAP_NET_ADMIN, "CAP_NET_ADMIN")?;
    require_capability(CAP_NET_RAW, "CAP_NET_RAW")?;
    require_fou(&mut host)?;
    require_modules(&["ipip"])?;
    match (host.probe_rules(), &settings.role) {
        (Ok(_), _) => {}
        (Err(error @ RulesError::NoProgram(_)), Role::Client(_)) => {
            tracing::warn!(
                "{error}. Going on without rules: anybody who sends packets with the server's \
                 address can reach the tunnel"
            );
            host = Host::open(&tunnel.rules.table, false).map_err(kernel)?;
        }
        (Err(error), _) => return Err(error.into()),
    }
    let found = host.read(None).await.map_err(kernel)?;
    check_found(settings, &found)?;
    Ok(host)
}

/// That the interface of `-b @DEV` exists.
pub async fn check_device(outer: &Outer, host: &Host) -> Result<(), Failure> {
    let Some(device) = outer.device() else { return Ok(()) };
    match host.has_interface(device).await.map_err(kernel)? {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "--fou-dev: there is no interface {device} on this host; `ip link` lists them"
        ))),
    }
}

/// That this process has a capability.
pub fn require_capability(bit: u32, name: &str) -> Result<(), Failure> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(kernel)?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    if effective >> bit & 1 == 1 {
        return Ok(());
    }
    Err(Failure::Generic(format!(
        "not allowed without {name}: run as root, or as the service ipipou@.service"
    )))
}

/// What sending an authentication packet needs.
pub fn require_raw() -> Result<(), Failure> {
    require_capability(CAP_NET_RAW, "CAP_NET_RAW")
}

fn require_fou(host: &mut Host) -> Result<(), Failure> {
    // Asking for the family makes the kernel load the module, when it may.
    if host.probe_fou().is_ok() {
        return Ok(());
    }
    require_modules(&["fou"])?;
    host.probe_fou().map_err(|e| Failure::Fou(format!("the kernel's FOU does not answer: {e}")))
}

fn check_found(settings: &Settings, found: &Found) -> Result<(), Failure> {
    let tunnel = settings.tunnel();
    if let Outer::Address(address) | Outer::AddressOn(address, _) = &tunnel.outer
        && !found.has_local(*address)
    {
        return Err(Failure::Address(format!(
            "--fou-local-ip: {address} is not an address of this host; `ip addr` lists them"
        )));
    }
    let Some(interface) = found.interface(&tunnel.device) else { return Ok(()) };
    let port = tunnel.port.get();
    let ours = match interface.kind {
        InterfaceKind::Ipip(link) => {
            plan::is_labelled(interface)
                || matches!(link.encapsulation,
                    Encapsulation::Fou { source_port, .. } if source_port == port)
        }
        InterfaceKind::Other => false,
    };
    match ours {
        true => Ok(()),
        false => Err(Failure::Link(format!(
            "--tunl-dev: an interface {} exists and is not a tunnel from port {port}; \
             remove it, or choose another name",
            tunnel.device
        ))),
    }
}

/// A request that the kernel should not refuse.
pub fn kernel(error: io::Error) -> Failure {
    Failure::Generic(format!("the kernel refuses a netlink request: {error}"))
}
