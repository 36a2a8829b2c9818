//! Links, addresses and routes, over route netlink (rtnetlink(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoIpTunnel, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, TunnelEncapFlags, TunnelEncapType,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{AddressMessageBuilder, LinkIpIp, LinkUnspec, RouteMessageBuilder};

use crate::engine::config::DeviceName;
use crate::engine::host::{Address, Encapsulation, Interface, InterfaceKind, IpipLink, Traffic};
use crate::engine::plan::{LABEL, WantedLink, rp_filter};

/// A route netlink socket, answered from the async runtime it was opened in.
pub struct Links {
    handle: rtnetlink::Handle,
}

impl Links {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Links { handle })
    }

    /// Every interface of the namespace.
    pub async fn interfaces(&self) -> io::Result<Vec<Interface>> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(into_io)?;
        Ok(links.iter().map(read_interface).collect())
    }

    /// Every IPv4 address of the namespace, in the kernel's order.
    pub async fn addresses(&self) -> io::Result<Vec<Address>> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let addresses: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(into_io)?;
        Ok(addresses.iter().filter_map(read_address).collect())
    }

    /// The source address that packets to `destination` get; `None` without a route.
    pub async fn route_source(&self, destination: Ipv4Addr) -> io::Result<Option<Ipv4Addr>> {
        let message =
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32).build();
        let route = match self.handle.route().get(message).execute().try_next().await {
            Ok(route) => route,
            Err(rtnetlink::Error::NetlinkError(e)) if is_unreachable(&e.to_io()) => None,
            Err(e) => return Err(into_io(e)),
        };
        Ok(route.and_then(|route| {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
                _ => None,
            })
        }))
    }

    pub async fn create(&self, wanted: &WantedLink) -> io::Result<()> {
        let message = ipip_message(wanted);
        self.handle.link().add(message).execute().await.map_err(into_io)
    }

    /// Gives an existing `ipip` link its remote, local and ports. The kernel resets what a change
    /// leaves out, so the whole set is sent (`ipip_changelink` in net/ipv4/ipip.c).
    pub async fn change(&self, wanted: &WantedLink) -> io::Result<()> {
        let message = ipip_message(wanted);
        let request = self.handle.link().add(message).set_flags(NLM_F_REQUEST | NLM_F_ACK);
        request.execute().await.map_err(into_io)
    }

    /// Labels a link, sets its reverse path filter, and brings it up.
    pub async fn dress(&self, wanted: &WantedLink) -> io::Result<()> {
        let mut builder = LinkUnspec::new_with_name(wanted.device.as_str())
            .append_extra_attribute(LinkAttribute::IfAlias(LABEL.to_owned()));
        if let Some(value) = rp_filter(wanted.source_check) {
            // As `inet_set_link_af` in net/ipv4/devinet.c takes it: no file under /proc/sys is
            // written, so a service that sees them read-only can do it.
            let mut conf = InetDevConf::default(); // zeros are not sent
            conf.rp_filter = value.cast_signed();
            builder = builder.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![
                AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]),
            ]));
        }
        self.handle.link().set(builder.up().build()).execute().await.map_err(into_io)
    }

    pub async fn remove(&self, device: &DeviceName) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(device.as_str()).build();
        self.handle.link().del_with_message(message).execute().await.map_err(into_io)
    }

    /// Adds the point-to-point address of a tunnel.
    pub async fn add_inner(&self, wanted: &WantedLink) -> io::Result<()> {
        let index = self.index_of(&wanted.device).await?;
        let message = address_message(&Address {
            interface: index,
            local: wanted.inner,
            peer: wanted.inner_peer,
            prefix: 32,
        });
        self.add_address(message).await
    }

    /// Adds a private local address to the loopback interface, as /32 of host scope: good for a
    /// socket to be bound to, and never chosen as a source.
    pub async fn add_private(&self, private: Ipv4Addr) -> io::Result<()> {
        let mut message = address_message(&self.private_address(private).await?);
        message.header.scope = AddressScope::Host;
        self.add_address(message).await
    }

    pub async fn remove_private(&self, private: Ipv4Addr) -> io::Result<()> {
        self.remove_address(&self.private_address(private).await?).await
    }

    pub async fn remove_address(&self, address: &Address) -> io::Result<()> {
        self.handle.address().del(address_message(address)).execute().await.map_err(into_io)
    }

    async fn add_address(&self, message: AddressMessage) -> io::Result<()> {
        let mut request = self.handle.address().add(0, Ipv4Addr::UNSPECIFIED.into(), 0);
        *request.message_mut() = message;
        request.execute().await.map_err(into_io)
    }

    async fn private_address(&self, private: Ipv4Addr) -> io::Result<Address> {
        let interface = self.interfaces().await?.into_iter().find(|i| i.loopback);
        let interface = interface.ok_or_else(|| io::Error::from_raw_os_error(super::ENODEV))?;
        Ok(Address { interface: interface.index, local: private, peer: private, prefix: 32 })
    }

    async fn index_of(&self, device: &DeviceName) -> io::Result<u32> {
        let request = self.handle.link().get().match_name(device.to_string());
        let link = request.execute().try_next().await.map_err(into_io)?;
        link.map(|l| l.header.index).ok_or_else(|| io::Error::from_raw_os_error(super::ENODEV))
    }
}

fn ipip_message(wanted: &WantedLink) -> LinkMessage {
    let link = &wanted.link;
    let mut builder = LinkIpIp::new(wanted.device.as_str())
        .local(link.local)
        .remote(link.remote)
        .ttl(link.ttl)
        .pmtudisc(link.path_mtu_discovery)
        .protocol(netlink_packet_route::IpProtocol::Ipip);
    if let Some(index) = link.bound_to {
        builder = builder.dev(index);
    }
    if let Encapsulation::Fou { source_port, destination_port, checksum } = link.encapsulation {
        let flags = if checksum { TunnelEncapFlags::CSum } else { TunnelEncapFlags::empty() };
        builder = builder
            .encap_type(TunnelEncapType::Fou)
            .encap_flags(flags)
            .encap_sport(source_port)
            .encap_dport(destination_port);
    }
    builder.build()
}

fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(address.interface)
        .address(address.local, address.prefix)
        .build();
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address.local)),
        AddressAttribute::Address(IpAddr::V4(address.peer)),
    ];
    message
}

fn read_interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        label: None,
        rp_filter: None,
        kind: InterfaceKind::Other,
        traffic: Traffic::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::IfAlias(label) => interface.label = Some(label.clone()),
            LinkAttribute::LinkInfo(infos) => interface.kind = read_kind(infos),
            LinkAttribute::AfSpecUnspec(specs) => interface.rp_filter = read_rp_filter(specs),
            LinkAttribute::Stats64(stats) => {
                interface.traffic = Traffic {
                    rx_bytes: stats.rx_bytes,
                    rx_packets: stats.rx_packets,
                    tx_bytes: stats.tx_bytes,
                    tx_packets: stats.tx_packets,
                };
            }
            _ => {}
        }
    }
    interface
}

fn read_kind(infos: &[LinkInfo]) -> InterfaceKind {
    let is_ipip = infos
        .iter()
        .any(|info| matches!(info, LinkInfo::Kind(netlink_packet_route::link::InfoKind::IpIp)));
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::IpTunnel(data)) => Some(data),
        _ => None,
    });
    match data {
        Some(data) if is_ipip => InterfaceKind::Ipip(read_ipip(data)),
        _ => InterfaceKind::Other,
    }
}

fn read_ipip(data: &[InfoIpTunnel]) -> IpipLink {
    let mut link = IpipLink {
        local: Ipv4Addr::UNSPECIFIED,
        remote: Ipv4Addr::UNSPECIFIED,
        bound_to: None,
        ttl: 0,
        path_mtu_discovery: false,
        encapsulation: Encapsulation::NoneOrOther,
    };
    let (mut fou, mut source_port, mut destination_port, mut checksum) = (false, 0, 0, false);
    for attribute in data {
        match attribute {
            InfoIpTunnel::Local(IpAddr::V4(address)) => link.local = *address,
            InfoIpTunnel::Remote(IpAddr::V4(address)) => link.remote = *address,
            InfoIpTunnel::Link(index) => link.bound_to = Some(*index).filter(|&i| i != 0),
            InfoIpTunnel::Ttl(ttl) => link.ttl = *ttl,
            InfoIpTunnel::PMtuDisc(on) => link.path_mtu_discovery = *on,
            InfoIpTunnel::EncapType(kind) => fou = *kind == TunnelEncapType::Fou,
            InfoIpTunnel::EncapFlags(flags) => checksum = flags.contains(TunnelEncapFlags::CSum),
            InfoIpTunnel::EncapSPort(port) => source_port = *port,
            InfoIpTunnel::EncapDPort(port) => destination_port = *port,
            _ => {}
        }
    }
    if fou {
        link.encapsulation = Encapsulation::Fou { source_port, destination_port, checksum };
    }
    link
}

fn read_rp_filter(specs: &[AfSpecUnspec]) -> Option<u32> {
    specs.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet(inet) => inet.iter().find_map(|attribute| match attribute {
            AfSpecInet::DevConf(conf) => u32::try_from(conf.rp_filter).ok(),
            _ => None,
        }),
        _ => None,
    })
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => peer = Some(*address),
            _ => {}
        }
    }
    let local = local.or(peer)?;
    Some(Address {
        interface: message.header.index,
        local,
        peer: peer.unwrap_or(local),
        prefix: message.header.prefix_len,
    })
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
}

/// The kernel's errno, where there is one.
fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
