//! Links, over route netlink (rtnetlink(7)).

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use futures_util::TryStreamExt;
use libc::RTM_GETLINK;
use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, Nla as _, Parseable,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind,
    LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage, TunnelEncapFlags, TunnelEncapType,
};
use rtnetlink::{LinkGetRequest, LinkIpIp, LinkUnspec};

use super::link_message;
use super::netlink::Lists;
use crate::engine::config::DeviceName;
use crate::engine::host::step::KernelLink;
use crate::engine::host::wanted::{LinkKind, WantedLink, rp_filter};
use crate::engine::host::{Encapsulation, Interface, Interfaces, LinkForwarding};

/// `IFLA_INET_CONF` in linux/if_link.h, and settings of linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const IPV4_DEVCONF_SEND_REDIRECTS: u16 = 6;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// Index of the loopback interface (`LOOPBACK_IFINDEX` in linux/netdevice.h).
pub(super) const LOOPBACK: u32 = 1;

/// A route netlink socket, served by the async runtime in which it was opened.
#[derive(Clone)]
pub struct Links {
    pub(super) handle: rtnetlink::Handle,
}

impl Links {
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Links { handle })
    }

    /// Every interface of the namespace, without its counters. They are read one at a time: there may be
    /// thousands, and the kernel tells much more of each than is kept.
    pub fn interfaces(&self) -> io::Result<Interfaces> {
        all(
            Lists::ROUTE,
            RTM_GETLINK,
            &without_counters(),
            |found: &mut Interfaces, link: LinkMessage| {
                found.insert(link_message::read(&link));
            },
        )
    }

    /// The interfaces of a kind; the kernel filters the list (`link_kind_filtered` in
    /// net/core/rtnetlink.c).
    fn of_kind(&self, kind: InfoKind) -> io::Result<Vec<Interface>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        all(Lists::ROUTE, RTM_GETLINK, &request, |found: &mut Vec<_>, link: LinkMessage| {
            found.push(link_message::read(&link));
        })
    }

    /// The interface of this name, if there is one.
    pub async fn named(&self, name: &str) -> io::Result<Option<Interface>> {
        one(self.handle.link().get().match_name(name)).await
    }

    /// The interface with this index, if there is one.
    pub async fn at(&self, index: u32) -> io::Result<Option<Interface>> {
        one(self.handle.link().get().match_index(index)).await
    }

    /// Makes an `ipip` link.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of this name, or with this pair of addresses.
    pub async fn create(&self, wanted: &KernelLink) -> io::Result<()> {
        let made = self.handle.link().add(ipip_message(wanted)).execute().await.map_err(into_io);
        let Err(error) = made else { return Ok(()) };
        // The kernel says the same of a name and of a pair of addresses.
        if error.kind() == io::ErrorKind::AlreadyExists
            && self.named(wanted.device.as_str()).await?.is_some()
        {
            let text = "an interface of that name is there, and is not ours: remove or rename it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Err(error)
    }

    /// Changes the remote, local address and ports of an existing `ipip` link. Of the fields that a
    /// request omits, the kernel resets some and keeps others, so all of them are sent
    /// (`ipip_changelink` in net/ipv4/ipip.c).
    pub async fn change(&self, wanted: &KernelLink) -> io::Result<()> {
        let request =
            self.handle.link().add(ipip_message(wanted)).set_flags(NLM_F_REQUEST | NLM_F_ACK);
        request.execute().await.map_err(into_io)
    }

    /// Labels a link, sets its reverse path filter, lets its addresses be replaced one after the other,
    /// and brings it up.
    pub async fn configure(&self, wanted: &WantedLink) -> io::Result<()> {
        if matches!(wanted.kind, LinkKind::Tun) {
            self.shield(wanted.device.as_str()).await;
        }
        let builder = LinkUnspec::new_with_name(wanted.device.as_str())
            .append_extra_attribute(LinkAttribute::IfAlias(wanted.forwards.label().to_owned()));
        // The format is that of `inet_set_link_af` in net/ipv4/devinet.c. No file under /proc/sys is
        // written, so a service that has these mounted read-only can do it.
        let mut conf = InetDevConf::default(); // zeros are not sent
        conf.promote_secondaries = 1;
        if let Some(value) = rp_filter(wanted.source_check) {
            conf.rp_filter = value.cast_signed();
        }
        conf.forwarding = (wanted.forwards != LinkForwarding::HostDefault).into();
        let builder =
            builder.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(
                vec![AfSpecInet::DevConfRequest(conf)],
            )]));
        self.handle.link().set(builder.up().build()).execute().await.map_err(into_io)
    }

    /// Keeps an interface that is not up yet from accepting configuration from the network: it gets no
    /// link-local address, asks for no routers, and believes neither routers nor redirects. Nor does it tell
    /// peers of a shorter way to each other than through this host: there is none.
    ///
    /// The source check of the datapath must not rely on this: netlink cannot set all of it, a service
    /// may have /proc/sys read-only, and a kernel without IPv6 has none of it. So errors are ignored.
    async fn shield(&self, interface: &str) {
        let message = LinkUnspec::new_with_name(interface)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
            ])]))
            .build();
        let _ = self.handle.link().set(message).execute().await;
        for setting in [IPV4_DEVCONF_ACCEPT_REDIRECTS, IPV4_DEVCONF_SEND_REDIRECTS] {
            let _ = self.set_ipv4_setting(interface, setting, 0).await;
        }
        for setting in ["accept_ra", "accept_redirects"] {
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"), "0");
        }
    }

    pub async fn remove(&self, device: &DeviceName) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(device.as_str()).build();
        self.handle.link().del_with_message(message).execute().await.map_err(into_io)
    }

    /// Sets whether IPv4 packets that come in by an interface are forwarded.
    pub async fn set_forwarding(&self, interface: &str, on: bool) -> io::Result<()> {
        self.set_ipv4_setting(interface, IPV4_DEVCONF_FORWARDING, on.into()).await
    }

    /// Sets the reverse path filter of an interface.
    pub async fn set_rp_filter(&self, interface: &str, value: u32) -> io::Result<()> {
        self.set_ipv4_setting(interface, IPV4_DEVCONF_RP_FILTER, value).await
    }

    /// Sets one of an interface's settings below net.ipv4.conf. `InetDevConf` cannot express zero, so
    /// the attribute is written by hand.
    async fn set_ipv4_setting(&self, interface: &str, key: u16, value: u32) -> io::Result<()> {
        let setting = DefaultNla::new(key, value.to_ne_bytes().to_vec());
        let mut bytes = vec![0; setting.buffer_len()];
        setting.emit(&mut bytes);
        let settings = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, bytes));
        let message = LinkUnspec::new_with_name(interface)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
                settings,
            ])]))
            .build();
        self.handle.link().set(message).execute().await.map_err(into_io)
    }

    /// The interfaces of the kinds that ipipou makes.
    pub fn tunnels(&self) -> io::Result<Vec<Interface>> {
        let mut found = self.of_kind(InfoKind::Tun)?;
        found.extend(self.ipip()?);
        Ok(found)
    }

    /// The `ipip` interfaces, with their counters.
    pub fn ipip(&self) -> io::Result<Vec<Interface>> {
        // For a kind that it does not know, the kernel would list all links. (A built-in module has a
        // directory too, for its parameter.)
        if !Path::new("/sys/module").exists() || Path::new("/sys/module/ipip").exists() {
            return self.of_kind(InfoKind::IpIp);
        }
        Ok(Vec::new())
    }

    /// How many queues programs have attached to a TUN interface; `None` when it can have only one.
    pub async fn tun_queues(&self, device: &DeviceName) -> io::Result<Option<u32>> {
        let request = self.handle.link().get().match_name(device.to_string());
        let link = request.execute().try_next().await.map_err(into_io)?;
        let attributes = link.iter().flat_map(|link| &link.attributes);
        let infos = attributes.flat_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.as_slice(),
            _ => &[],
        });
        let data = infos.flat_map(|info| match info {
            LinkInfo::Data(InfoData::Tun(data)) => data.as_slice(),
            _ => &[],
        });
        let counts = data.filter(|nla| {
            [IFLA_TUN_NUM_QUEUES, IFLA_TUN_NUM_DISABLED_QUEUES].contains(&nla.kind())
        });
        let counts = counts.filter_map(|nla| {
            let mut bytes = [0; 4];
            (nla.value_len() == bytes.len()).then(|| nla.emit_value(&mut bytes))?;
            Some(u32::from_ne_bytes(bytes))
        });
        Ok(counts.reduce(u32::saturating_add))
    }

    /// Sets the MTU of an interface.
    pub async fn set_mtu(&self, device: &DeviceName, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_name(device.as_str()).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(into_io)
    }

    pub(super) async fn index_of(&self, device: &DeviceName) -> io::Result<u32> {
        let link = self.named(device.as_str()).await?;
        link.map(|l| l.index).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }
}

/// The indexes of all interfaces of the namespace. (if_nameindex(3) may lack some.)
///
/// # Errors
/// When the kernel refuses to tell.
pub fn all_interfaces() -> io::Result<Vec<u32>> {
    all(
        Lists::ROUTE,
        RTM_GETLINK,
        &without_counters(),
        |found: &mut Vec<u32>, link: LinkMessage| {
            found.push(link.header.index);
        },
    )
}

fn without_counters() -> LinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

async fn one(request: LinkGetRequest) -> io::Result<Option<Interface>> {
    match request.execute().try_next().await.map_err(into_io) {
        Ok(link) => Ok(link.as_ref().map(link_message::read)),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

fn ipip_message(KernelLink { device, link, mtu }: &KernelLink) -> LinkMessage {
    let mut builder = LinkIpIp::new(device.as_str())
        .mtu(*mtu)
        .local(link.local)
        .remote(link.remote)
        .ttl(link.ttl)
        .pmtudisc(link.path_mtu_discovery)
        .fwmark(link.mark)
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

/// Asks for a list over route netlink.
pub(super) fn all<C: Default + PartialEq, M: Emitable + Parseable<[u8]>>(
    lists: Lists,
    kind: u16,
    request: &M,
    mut take: impl FnMut(&mut C, M),
) -> io::Result<C> {
    let mut body = vec![0; request.buffer_len()];
    request.emit(&mut body);
    lists.list(kind, &body, |found, message| {
        let message = M::parse(message);
        take(found, message.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?);
        Ok(ControlFlow::Continue(()))
    })
}

/// The kernel's errno, where there is one.
pub(super) fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
