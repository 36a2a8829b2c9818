//! `--reauth-only`: sends one authentication packet from the tunnel's port, and does nothing else.

use std::net::{IpAddr, SocketAddr};

use super::memory::{Loaded, MemoryFile};
use super::preflight::check_device;
use super::requirements::require_raw;
use super::{Failure, Settings};
use crate::engine::config::{ServerName, Shows, TunnelConfig};
use crate::engine::host::{Family, Found, InterfaceKind};
use crate::engine::{Memory, Outgoing, first_packet, outer_address};
use crate::host::clock::Clock;
use crate::host::{HostAdapter, Question, WayTo};
use crate::kernel::RawSender;
use crate::sources::names;

/// Sends the packet. An existing tunnel is not touched.
///
/// # Errors
/// When there is no server to send to, no address to send from, or the kernel refuses.
pub fn reauthenticate(settings: &Settings) -> Result<(), Failure> {
    let (Some(server), Some(shows)) = (settings.config.server_name(), settings.config.shows())
    else {
        return Err(Failure::Usage("--reauth-only is for clients".to_owned()));
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("start"))?
        .block_on(send(server, shows, settings))
}

async fn send(name: &ServerName, shows: &Shows, settings: &Settings) -> Result<(), Failure> {
    require_raw()?;
    let tunnel = settings.tunnel();
    let mut host = HostAdapter::open(tunnel, false).map_err(Failure::Netlink)?;
    check_device(&tunnel.outer).await?;
    let addresses = names::look_up(&name.host)
        .await
        .map_err(|e| Failure::Generic(format!("cannot look up {:?}: {e}", name.host)))?;
    // The socket that sends can only do IPv4; the tunnel may go to any of the name's addresses.
    let mut usable = addresses.iter().copied().filter(IpAddr::is_ipv4);
    let Some(first) = usable.next() else {
        return Err(Failure::Generic(
            "--reauth-only goes over IPv4, and the server has no such address; send SIGUSR1 to the \
             client"
                .to_owned(),
        ));
    };
    let question = Question {
        way_to: Some(WayTo::of_tunnel(tunnel, first)),
        other_ways: usable.map(|address| WayTo::of_tunnel(tunnel, address)).collect(),
        ..Question::default()
    };
    let mut found = host.read(&question).await.map_err(Failure::Netlink)?;
    if let Some(device) = found.forget_way_into(std::slice::from_ref(&tunnel.device)) {
        tracing::warn!("the route to the server leads into {device}, the tunnel itself");
    }
    let server = server_of_tunnel(tunnel, first, &mut found);
    let Some(address) = outer_address(&tunnel.outer, Family::of(server), &found) else {
        return Err(Failure::Address("there is no local address to send from".to_owned()));
    };
    let memory = match MemoryFile::in_directory(&settings.state_dir).load().await {
        Loaded::Whole(memory) => memory,
        Loaded::FirstStart | Loaded::Lost(_) => Memory::default(),
    };
    let now = Clock::start().now()?;
    let outgoing = Outgoing {
        from: SocketAddr::new(address, tunnel.port.get()),
        to: SocketAddr::new(server, name.port.get()),
        mark: tunnel.mark(),
        payload: first_packet(shows, &memory, &now),
        ttl: tunnel.auth_ttl,
    };
    let sender = RawSender::open(tunnel.outer.device()).map_err(Failure::Sending)?;
    sender.send(&outgoing).map_err(Failure::Sending)?;
    tracing::info!("sent {} bytes to {}", outgoing.payload.len(), outgoing.to);
    Ok(())
}

/// The address to which a running process' tunnel goes, if the name has it; otherwise the first one to
/// which there is a route.
fn server_of_tunnel(tunnel: &TunnelConfig, first: IpAddr, found: &mut Found) -> IpAddr {
    let in_use = match found.interface(&tunnel.device).map(|interface| interface.kind) {
        Some(InterfaceKind::Ipip(link)) => Some(IpAddr::V4(link.remote)),
        Some(InterfaceKind::Tun | InterfaceKind::Other) | None => None,
    };
    let others = &found.other_ways;
    let other = in_use
        .and_then(|address| others.get_key_value(&address))
        .or_else(|| others.first_key_value().filter(|_| found.way.is_none() && in_use.is_none()));
    let Some((server, way)) = other.map(|(server, way)| (*server, *way)) else { return first };
    found.way = Some(way);
    server
}
