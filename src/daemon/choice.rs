//! Which datapath a tunnel has, where that is left to the program.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::demand::{Demand, in_kernel, said, suits};
use super::requirements::{require_ipip_over_fou, require_tun};
use super::{Failure, Settings};
use crate::engine;
use crate::engine::config::{Datapath, DatapathChoice, HostName, Outer};
use crate::engine::host::{Family, Found, Interface};
use crate::host::{Links, WayTo, ipsec, program, release, rules_of_host};
use crate::kernel::probe_shared_rules;
use crate::sources::names;

/// How long the choice of a datapath waits for the server's addresses.
const FIRST_LOOKUP: Duration = Duration::from_secs(3);

/// Chooses the datapath. `goes_on`: an earlier process left its userspace datapath, with packets in it.
///
/// # Errors
/// When the datapath that was requested cannot carry that many.
pub async fn datapath(
    settings: &Settings,
    goes_on: bool,
    demand: &Demand,
) -> Result<Datapath, Failure> {
    suits(&settings.config, demand)?;
    let remotes = demand.remotes;
    let what = said(&settings.config, demand);
    let kernel = in_kernel(&settings.config, demand);
    let chosen = match settings.tunnel().datapath {
        DatapathChoice::Only(Datapath::Tun) => Datapath::Tun,
        DatapathChoice::Only(Datapath::Kernel | Datapath::KernelShared) => {
            if kernel == Datapath::KernelShared
                && let Some(why) = cannot_share(settings).await.map_err(Failure::Netlink)?
            {
                return Err(Failure::Link(format!(
                    "--datapath kernel: {what}, and {why}; leave the option out"
                )));
            }
            kernel
        }
        DatapathChoice::Auto if goes_on => {
            tracing::info!(
                "userspace datapath (tun): it goes on; a stop lets the next start choose"
            );
            Datapath::Tun
        }
        DatapathChoice::Auto if remotes > kernel.capabilities().many_remotes => {
            tracing::info!(
                "userspace datapath (tun): {what}, and the kernel's is chosen for {} at most",
                kernel.capabilities().many_remotes
            );
            Datapath::Tun
        }
        DatapathChoice::Auto if demand.isolated.is_some() => {
            tracing::info!("userspace datapath (tun): the kernel's cannot isolate peers");
            Datapath::Tun
        }
        DatapathChoice::Auto => choose(settings, kernel).await?,
    };
    if chosen == Datapath::KernelShared {
        tracing::info!("kernel datapath: {what}, and those that are connected share one interface");
    }
    Ok(chosen)
}

/// Chooses the kernel datapath where it can do what is asked, otherwise the userspace one, and logs
/// why.
async fn choose(settings: &Settings, kernel: Datapath) -> Result<Datapath, Failure> {
    if let Some(why) = settings.config.exceeds(kernel) {
        tracing::info!("userspace datapath (tun): {why}");
        return Ok(Datapath::Tun);
    }
    if let Some(what) = only_ipv6(settings).await.map_err(Failure::Netlink)? {
        tracing::info!(
            "userspace datapath (tun): {what} over IPv6 only, and the kernel's goes over IPv4 only; \
             --datapath kernel would wait"
        );
        return Ok(Datapath::Tun);
    }
    let answers = settings.config.shows().is_some_and(|shows| shows.server.is_some());
    if (answers || settings.config.hub().is_some()) && !program::is_installed("nft") {
        tracing::info!(
            "userspace datapath (tun): hellos and their answers reach the kernel's by rules, and there is \
             no `nft`; install nftables"
        );
        return Ok(Datapath::Tun);
    }
    Ok(match require_ipip_over_fou() {
        Ok(()) if loses_merged(settings) && require_tun().is_ok() => {
            tracing::info!(
                "userspace datapath (tun): before Linux 6.9 the kernel's loses TCP data that a network card has \
                 put together, unless the tunnel is bound to an interface; give -b @DEV"
            );
            Datapath::Tun
        }
        Ok(()) if kernel == Datapath::KernelShared => {
            match why_not_shared(settings).await.map_err(Failure::Netlink)? {
                Some(why) => {
                    tracing::info!("userspace datapath (tun): {why}");
                    Datapath::Tun
                }
                None => kernel,
            }
        }
        Ok(()) => kernel,
        Err(why) => {
            tracing::warn!("userspace datapath (tun): {why}");
            Datapath::Tun
        }
    })
}

/// The interface that the tunnel is bound to, if it is there.
async fn outer_device(settings: &Settings, links: &Links) -> io::Result<Option<Interface>> {
    match settings.tunnel().outer.device() {
        Some(device) => links.named(device.as_str()).await,
        None => Ok(None),
    }
}

/// Why many peers do not share a link of the kernel's datapath here. Without a userspace datapath they do, as long as
/// they can.
async fn why_not_shared(settings: &Settings) -> io::Result<Option<String>> {
    if let Some(why) = cannot_share(settings).await? {
        return Ok(Some(why));
    }
    let why = passed_by(settings).await?;
    if let Some(why) = why.as_ref().filter(|_| require_tun().is_err()) {
        tracing::warn!("{why}; going on, as there is no userspace datapath here");
        return Ok(None);
    }
    Ok(why)
}

/// Why many peers cannot share a link of the kernel's datapath here.
async fn cannot_share(settings: &Settings) -> io::Result<Option<String>> {
    let device = outer_device(settings, &Links::open()?).await?;
    if let Some(uplink) = device.filter(Interface::in_vrf) {
        return Ok(Some(format!(
            "{} is in a VRF, where no address of the loopback interface works, which a link that many peers \
             share needs",
            uplink.name
        )));
    }
    let refused = probe_shared_rules().err();
    Ok(refused.map(|why| format!("the rules of a link that many peers share are refused: {why}")))
}

/// What would not see the packets of a link that many peers share, which have its alternate address while the
/// kernel looks for their way.
async fn passed_by(settings: &Settings) -> io::Result<Option<String>> {
    if ipsec::has_policies() {
        return Ok(Some(
            "this host has IPsec policies, which a link that many peers share passes by".into(),
        ));
    }
    let (tunnel, links) = (settings.tunnel(), Links::open()?);
    let device = outer_device(settings, &links).await?;
    let mut addresses = links.addresses()?;
    addresses.retain(|address| device.as_ref().is_none_or(|d| d.index == address.interface));
    let own = addresses.into_iter().filter_map(|address| match address.value.local {
        IpAddr::V4(own) if tunnel.outer.address().is_none_or(|outer| outer == own) => Some(own),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    let own = own.chain([tunnel.alternate.address()]);
    Ok(rules_of_host::read()?.ask_for(own).then(|| {
        "policy rules of this host (`ip rule`) choose by source address, and do not see that of a link that many \
         peers share"
            .into()
    }))
}

/// Whether the kernel's datapath would lose what a network card puts together.
pub fn loses_merged(settings: &Settings) -> bool {
    settings.tunnel().outer.device().is_none() && release::loses_merged()
}

/// The peer that can only be reached over IPv6 now, if the user did not choose a family.
async fn only_ipv6(settings: &Settings) -> io::Result<Option<String>> {
    let tunnel = settings.tunnel();
    let links = Links::open()?;
    let device = outer_device(settings, &links).await?;
    let index = device.as_ref().map(|device| device.index);
    let addresses = links.addresses()?;
    let found = Found {
        interfaces: device.into_iter().collect(),
        addresses: addresses.into_iter().collect(),
        ..Found::default()
    };
    let name = match settings.config.server_name().map(|server| &server.host) {
        Some(HostName::Address(_)) => return Ok(None),
        name @ (Some(HostName::Name(_)) | None) => name,
    };
    match &tunnel.outer {
        Outer::Address(_) | Outer::AddressOn(..) => return Ok(None),
        Outer::Device(device) => {
            if engine::outer_family(&tunnel.outer, Datapath::Tun, &found) == Family::V6 {
                return Ok(Some(format!("{device} is reached")));
            }
        }
        Outer::Route => {}
    }
    // Without a name server or an answer, the kernel datapath is as good a guess as the userspace one.
    let Some(name) = name.filter(|_| found.has_global_ipv6()) else { return Ok(None) };
    let lookup = tokio::time::timeout(FIRST_LOOKUP, names::look_up(name)).await;
    let Ok(Ok(addresses)) = lookup else { return Ok(None) };
    let mut over_ipv6 = false;
    for address in addresses {
        let is_routed = links.is_routed(&WayTo::of_tunnel(tunnel, address), index).await?;
        match Family::of(address) {
            Family::V4 if is_routed => return Ok(None),
            Family::V4 => {}
            Family::V6 => over_ipv6 |= is_routed,
        }
    }
    Ok(over_ipv6.then(|| format!("{name} is reached")))
}
