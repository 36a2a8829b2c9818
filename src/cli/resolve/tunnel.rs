//! Resolves what every tunnel has, whatever its peers are: an interface, addresses, a port and a
//! datapath.

use std::net::IpAddr;

use super::error::UsageError;
use super::gateway::gateway;
use super::inner::{inner, is_from_server};
use super::number::Number;
use super::peers::Peers;
use super::resolver::Resolver;
use crate::cli::options::{DatapathOption, FastPathOption, Options, RpFilter};
use crate::engine::config::{
    AlternateAddress, Datapath, DatapathChoice, DeviceName, FastPathChoice, LEAST_MTU_V6,
    Masquerade, Outer, RulesConfig, SourceCheck, TunnelConfig,
};

/// This word instead of an interface stands for the source address of the route to the server.
const AUTO: &str = "auto";

/// Returns our endpoint. The parts of `--fou-local` win over the single options.
pub fn outer(resolver: &Resolver) -> Result<Outer, UsageError> {
    let options = resolver.options;
    let given = options.fou_local.clone().unwrap_or_default();
    let ip = given.ip.or(options.fou_local_ip);
    match (ip, given.device.or_else(|| options.fou_dev.clone())) {
        (Some(ip), Some(device)) if device.as_str() != AUTO => Ok(Outer::AddressOn(ip, device)),
        (Some(ip), Some(_) | None) => Ok(Outer::Address(ip)),
        (None, Some(device)) if device.as_str() != AUTO => Ok(Outer::Device(device)),
        (None, Some(_)) if resolver.peers == Peers::Server => Ok(Outer::Route),
        (None, Some(_)) => Err(UsageError::AutoOnServer),
        (None, None) => Err(UsageError::NoLocalEnd),
    }
}

/// The interface of the tunnel with this number.
pub fn device(options: &Options, number: Number) -> Result<DeviceName, UsageError> {
    options.tunl_dev.clone().map_or_else(|| number.device(), Ok)
}

/// Resolves the tunnel. `remote` is the peer's outer address, if it is known from the start.
pub fn tunnel(
    resolver: &mut Resolver,
    outer: Outer,
    remote: Option<IpAddr>,
) -> Result<TunnelConfig, UsageError> {
    let (options, number) = (resolver.options, resolver.number);
    let (inner, inner_peer) = inner(resolver)?;
    let port = options.fou_local.as_ref().and_then(|local| local.port).or(options.fou_local_port);
    let alternate = options.fou_local_ip_alt.map_or_else(|| number.alternate(), Ok)?;
    let device = device(options, number)?;
    let gateway = gateway(resolver)?;
    if gateway.masquerade == Some(Masquerade::By(device.clone())) {
        return Err(UsageError::MasqueradeByTunnel(device));
    }
    Ok(TunnelConfig {
        device,
        inner,
        inner_peer,
        inner6: options.ip6,
        inner_from_server: is_from_server(options),
        mtu: mtu(options)?,
        datapath: datapath(options, &outer, remote)?,
        outer,
        port: port.map_or_else(|| number.port(), Ok)?,
        alternate: match options.force_fou_local_ip_alt {
            true => AlternateAddress::Always(alternate),
            false => AlternateAddress::WhenTaken(alternate),
        },
        // The parser lets only the last of the two stand.
        checksum: (options.encap_csum || options.no_encap_csum).then_some(options.encap_csum),
        source_check: match options.rp_filter {
            RpFilter::Strict => SourceCheck::Strict,
            RpFilter::Loose => SourceCheck::Loose,
            RpFilter::Off => SourceCheck::Off,
        },
        auth_ttl: options.auth.auth_packet_ttl.map(|ttl| ttl.get()),
        rules: rules(resolver),
        gateway,
        beside: None,
        fast_path: match options.fast_path {
            FastPathOption::Auto => FastPathChoice::Auto,
            FastPathOption::On => FastPathChoice::On,
            FastPathOption::Off => FastPathChoice::Off,
        },
        queues: options.tun_queues,
    })
}

/// Returns the MTU that was given, if an interface with this MTU can have the inner addresses.
fn mtu(options: &Options) -> Result<Option<u32>, UsageError> {
    match options.mtu {
        Some(mtu) if options.ip6.is_some() && mtu < LEAST_MTU_V6 => {
            Err(UsageError::MtuForIpv6(mtu))
        }
        mtu => Ok(mtu),
    }
}

/// Checks that packets from our end can go to this server, which is another than the first.
///
/// # Errors
/// When they cannot.
pub fn check_standby(options: &Options, outer: &Outer, remote: IpAddr) -> Result<(), UsageError> {
    check_family(outer, remote)?;
    match remote.is_ipv6() && options.datapath == DatapathOption::Kernel {
        true => Err(UsageError::Ipv6NotInKernel("fou-remote")),
        false => Ok(()),
    }
}

fn check_family(outer: &Outer, remote: IpAddr) -> Result<(), UsageError> {
    match outer.address() {
        Some(local) if local.is_ipv4() != remote.is_ipv4() => {
            Err(UsageError::TwoFamilies { local, remote })
        }
        Some(_) | None => Ok(()),
    }
}

fn datapath(
    options: &Options,
    outer: &Outer,
    remote: Option<IpAddr>,
) -> Result<DatapathChoice, UsageError> {
    let local = outer.address();
    if let Some(remote) = remote {
        check_family(outer, remote)?;
    }
    match options.datapath {
        DatapathOption::Auto => return Ok(DatapathChoice::Auto),
        DatapathOption::Tun => return Ok(DatapathChoice::Only(Datapath::Tun)),
        DatapathOption::Kernel => {}
    }
    if let Some(option) = options.given.first(|option| option.userspace_only) {
        return Err(UsageError::NotInKernel(option));
    }
    for (option, address) in [("fou-local", local), ("fou-remote", remote)] {
        if address.is_some_and(|address| address.is_ipv6()) {
            return Err(UsageError::Ipv6NotInKernel(option));
        }
    }
    Ok(DatapathChoice::Only(Datapath::Kernel))
}

fn rules(resolver: &mut Resolver) -> RulesConfig {
    let options = resolver.options;
    let table = resolver.number.table(options.nft_table.as_deref().unwrap_or("ipipou"));
    if options.nft_table.is_some() {
        resolver.warn(format!("--nft-table: every tunnel has its own table, here it is {table}"));
    }
    RulesConfig { table, counters: !options.no_nft_counter }
}
