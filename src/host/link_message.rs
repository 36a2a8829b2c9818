//! Reads what route netlink tells of a link.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoData, InfoIpTunnel, InfoKind, InfoPortKind,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, TunnelEncapFlags, TunnelEncapType,
};

use crate::engine::host::{Encapsulation, Interface, InterfaceKind, IpipLink, Master, Traffic};

/// The interface that a message is about.
pub fn read(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        label: None,
        rp_filter: None,
        forwarding: None,
        promotes: None,
        mtu: 0,
        master: None,
        queueing: None,
        kind: InterfaceKind::Other,
        traffic: Traffic::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::IfAlias(label) => interface.label = Some(label.clone()),
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = read_kind(infos);
                interface.master = infos.iter().find_map(master);
            }
            LinkAttribute::Qdisc(kind) => interface.queueing = Some(kind.clone()),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::AfSpecUnspec(specs) => {
                let conf = read_conf(specs);
                interface.rp_filter = conf.and_then(|conf| u32::try_from(conf.rp_filter).ok());
                interface.forwarding = conf.map(|conf| conf.forwarding != 0);
                interface.promotes = conf.map(|conf| conf.promote_secondaries != 0);
            }
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

/// What the interface is a part of, if that is said here.
fn master(info: &LinkInfo) -> Option<Master> {
    match info {
        LinkInfo::PortKind(InfoPortKind::Vrf) => Some(Master::Vrf),
        LinkInfo::PortKind(_) => Some(Master::Switch),
        _ => None,
    }
}

fn read_kind(infos: &[LinkInfo]) -> InterfaceKind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::IpTunnel(data)) => Some(data),
        _ => None,
    });
    match (kind, data) {
        (Some(InfoKind::IpIp), Some(data)) => InterfaceKind::Ipip(read_ipip(data)),
        (Some(InfoKind::Tun), _) => InterfaceKind::Tun,
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
        mark: 0,
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
            InfoIpTunnel::FwMark(mark) => link.mark = *mark,
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

fn read_conf(specs: &[AfSpecUnspec]) -> Option<&InetDevConf> {
    specs.iter().find_map(|spec| match spec {
        AfSpecUnspec::Inet(inet) => inet.iter().find_map(|attribute| match attribute {
            AfSpecInet::DevConf(conf) => Some(conf),
            _ => None,
        }),
        _ => None,
    })
}
