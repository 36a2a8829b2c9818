//! Checks everything that can be checked before the first change to the host.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use super::choice::loses_merged;
use super::locks::Locks;
use super::requirements::{
    CAP_NET_ADMIN, CAP_NET_RAW, require_capability, require_ipip_over_fou, require_tun,
};
use super::{Failure, Settings, record};
use crate::engine;
use crate::engine::config::{AlternateAddress, Config, Datapath, Masquerade, Outer, TunnelConfig};
use crate::engine::host::{Family, Found, InterfaceKind, Listener, is_labelled};
use crate::host::nft::NftError;
use crate::host::{self, HostAdapter, Links, Question, WayTo, probe_port, user_of_port};
use crate::kernel::KernelState;
use crate::tun::{Owner, StoredFds, TunDatapath};

/// The host, and what is known about it before the first change.
pub struct Ground {
    pub host: HostAdapter,
    pub datapath: Prepared,
    pub locks: Locks,
    /// Whether a FOU listener at our port is left from an earlier process.
    pub adopts_listeners: bool,
    /// Another port at which an earlier process listened.
    pub former_port: Option<NonZeroU16>,
    /// The family of the outer addresses.
    pub family: Family,
}

/// A datapath that can be used but has not been started.
pub enum Prepared {
    Kernel(Box<KernelState>),
    Tun,
}

impl Prepared {
    /// Starts the datapath of `owner`'s tunnel. `stored` is what an earlier process of the userspace datapath
    /// left; on an error it is still there.
    ///
    /// # Errors
    /// When the kernel refuses a socket or a thread, or another process reads the queue.
    pub async fn start(
        self,
        config: &Config,
        host: &HostAdapter,
        (owner, stored): (Owner, &mut StoredFds),
    ) -> Result<Box<dyn host::Datapath>, Failure> {
        let tunnel = &config.tunnel;
        match self {
            Prepared::Kernel(state) => Ok(Box::new(state.start(config.queue(), tunnel)?)),
            Prepared::Tun => {
                let datapath = TunDatapath::start(tunnel, host, (owner, stored)).await;
                Ok(Box::new(datapath.map_err(Failure::system("start threads"))?))
            }
        }
    }

    fn read(&mut self, found: &mut Found) -> io::Result<()> {
        match self {
            Prepared::Kernel(state) => state.read(found),
            Prepared::Tun => Ok(()),
        }
    }
}

/// Opens the host, or says in one line why there can be no tunnel. `goes_on`: the interface may exist,
/// because an earlier process left it.
///
/// # Errors
/// Names the first thing that is missing.
pub async fn open_host(
    settings: &Settings,
    datapath: Datapath,
    goes_on: bool,
) -> Result<Ground, Failure> {
    let tunnel = settings.tunnel();
    let mut locks = Locks::open(&tunnel.device).await.map_err(|holder| {
        Failure::Generic(format!(
            "{} is run by another process already ({holder}); see `ipipou show {0}`",
            tunnel.device
        ))
    })?;
    match check_device(&tunnel.outer).await {
        // The interface may come up later; the engine waits for it as for one that went away.
        Err(Failure::Usage(problem)) if is_service() => {
            tracing::warn!("{problem}: waiting for it");
        }
        checked => checked?,
    }
    require_capability(CAP_NET_ADMIN, "CAP_NET_ADMIN")?;
    let ipip_links = !datapath.capabilities().open_files;
    let mut host = HostAdapter::open(tunnel, ipip_links).map_err(Failure::Netlink)?;
    let mut prepared = match datapath {
        Datapath::Kernel | Datapath::KernelShared => {
            Prepared::Kernel(Box::new(require_kernel(&host, settings)?))
        }
        Datapath::Tun => {
            require_tun()?;
            Prepared::Tun
        }
    };
    let server = settings.config.server_name().and_then(|server| server.host.address());
    let question = Question {
        way_to: server.map(|server| WayTo::of_tunnel(tunnel, server)),
        ..Question::default()
    };
    let mut found = host.read(&question).await.map_err(Failure::Netlink)?;
    prepared.read(&mut found).map_err(Failure::Netlink)?;
    check_found(settings, datapath, goes_on, &found)?;
    let recorded = record::port(&settings.state_dir, tunnel.port).await;
    // Without proof, a listener belongs to another program.
    let adopts_listeners = engine::has_leftovers(tunnel, &found) || recorded == Some(tunnel.port);
    let former_port = recorded.filter(|port| *port != tunnel.port);
    let family = match server {
        Some(server) => Family::of(server),
        None => engine::outer_family(&tunnel.outer, datapath, &found),
    };
    if let Some(address) = engine::outer_address(&tunnel.outer, family, &found) {
        let at = SocketAddr::new(address, tunnel.port.get());
        locks.wait_for_port(at).await.map_err(|holder| port_in_use(at, &holder))?;
        if !(goes_on || adopts_listeners && serves(&found, tunnel, at)) {
            check_port(at, &tunnel.outer)?;
        }
    }
    Ok(Ground { host, datapath: prepared, locks, adopts_listeners, former_port, family })
}

/// Whether there is a FOU listener already that serves the address and port that ours would.
fn serves(found: &Found, tunnel: &TunnelConfig, at: SocketAddr) -> bool {
    let SocketAddr::V4(at) = at else { return false };
    let bound_to = match tunnel.outer.device() {
        Some(device) => found.interface(device).map(|i| i.index),
        None => None,
    };
    let ours = Listener { port: at.port(), local: Some(*at.ip()), bound_to };
    found.listeners.iter().any(|listener| listener.serves(&ours))
}

/// Checks that the port is free.
fn check_port(at: SocketAddr, outer: &Outer) -> Result<(), Failure> {
    match probe_port(at, outer.device()) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(port_in_use(at, &user_of_port(at))),
        // Other errors are reported when the port is bound.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn port_in_use(at: SocketAddr, by: &dyn std::fmt::Display) -> Failure {
    Failure::Fou(format!(
        "{at}: the UDP port is in use by {by}; see `ss -lunp` and `ip fou show`, or choose another \
         port with -b :PORT"
    ))
}

fn require_kernel(host: &HostAdapter, settings: &Settings) -> Result<KernelState, Failure> {
    require_capability(CAP_NET_RAW, "CAP_NET_RAW")?;
    require_ipip_over_fou()?;
    if loses_merged(settings) {
        tracing::warn!(
            "the tunnel is bound to no interface: before Linux 6.9, TCP data that a network card has put \
             together is lost; give -b @DEV, or --datapath tun"
        );
    }
    let mut state = KernelState::of(settings.tunnel(), host);
    match (state.probe_rules(), settings.config.queue()) {
        (Ok(_), _) => Ok(state),
        (Err(error @ NftError::NoProgram(_)), None) => {
            tracing::warn!(
                "{error}. Going on without rules: anybody who sends packets with the address of the \
                 other end can reach the tunnel"
            );
            state.go_without_rules();
            Ok(state)
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// Whether a service manager waits for notifications (sd_notify(3)). `INVOCATION_ID` would not do:
/// shells that a user's own service manager started have it, too.
pub fn is_service() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Checks that the interface of `-b @DEV` exists.
pub async fn check_device(outer: &Outer) -> Result<(), Failure> {
    let Some(device) = outer.device() else { return Ok(()) };
    let links = Links::open().map_err(Failure::Netlink)?;
    match links.named(device.as_str()).await.map_err(Failure::Netlink)? {
        Some(_) => Ok(()),
        None => Err(Failure::Usage(format!(
            "--fou-dev: there is no interface {device} on this host; `ip link` lists them"
        ))),
    }
}

fn check_found(
    settings: &Settings,
    datapath: Datapath,
    goes_on: bool,
    found: &Found,
) -> Result<(), Failure> {
    let tunnel = settings.tunnel();
    if let Outer::Address(address) | Outer::AddressOn(address, _) = &tunnel.outer
        && !found.has_local(*address)
    {
        return Err(Failure::Address(format!(
            "--fou-local-ip: {address} is not an address of this host; `ip addr` lists them"
        )));
    }
    if let Some(Masquerade::By(device)) = &tunnel.gateway.masquerade
        && found.interface(device).is_none()
    {
        tracing::warn!("--masquerade: there is no interface {device} yet; `ip link` lists them");
    }
    if let (AlternateAddress::Always(_), Some(uplink), true) =
        (tunnel.alternate, tunnel.outer.device(), datapath.capabilities().link_per_remote)
        && found.interface(uplink).is_some_and(|uplink| uplink.in_vrf())
    {
        return Err(Failure::Address(format!(
            "--force-fou-local-ip-alt: {uplink} is in a VRF, where no address of the loopback \
             interface works; leave the option out, or use --datapath tun"
        )));
    }
    let Some(interface) = found.interface(&tunnel.device) else { return Ok(()) };
    let port = tunnel.port.get();
    let ours = match (datapath, interface.kind) {
        (Datapath::Kernel | Datapath::KernelShared, InterfaceKind::Ipip(_)) => {
            is_labelled(interface) || interface.link_from(port).is_some()
        }
        (Datapath::Tun, InterfaceKind::Tun) => goes_on,
        (Datapath::Kernel | Datapath::KernelShared, InterfaceKind::Tun | InterfaceKind::Other)
        | (Datapath::Tun, InterfaceKind::Ipip(_) | InterfaceKind::Other) => false,
    };
    if ours {
        return Ok(());
    }
    let what = match datapath {
        Datapath::Kernel | Datapath::KernelShared => {
            format!("exists and is not a tunnel from port {port}")
        }
        Datapath::Tun => "exists already".to_owned(),
    };
    Err(Failure::Link(format!(
        "--tunl-dev: an interface {} {what}; remove it, or choose another name",
        tunnel.device
    )))
}
