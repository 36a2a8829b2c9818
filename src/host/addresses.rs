//! Addresses of interfaces, over route netlink (rtnetlink(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use libc::RTM_GETADDR;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::AddressMessageBuilder;

use super::links::{LOOPBACK, Links, all, into_io};
use super::netlink::Lists;
use crate::engine::config::DeviceName;
use crate::engine::host::{Address, AddressState, InterfaceAddress, Scope};

impl Links {
    /// Every address of the namespace, in the kernel's order.
    pub fn addresses(&self) -> io::Result<Vec<Address>> {
        let request = AddressMessage::default();
        all(Lists::ROUTE, RTM_GETADDR, &request, |found: &mut Vec<_>, message: AddressMessage| {
            found.extend(read_address(&message));
        })
    }

    /// Adds an address of a tunnel.
    pub async fn add_inner(&self, device: &DeviceName, value: InterfaceAddress) -> io::Result<()> {
        let interface = self.index_of(device).await?;
        self.add_address(address_message(&Address::new(interface, value))).await
    }

    /// Adds an alternate local address to the loopback interface, as /32 of host scope: good for a
    /// socket to be bound to, and never chosen as a source.
    pub async fn add_alternate(&self, alternate: Ipv4Addr) -> io::Result<()> {
        let mut message = address_message(&self.alternate_address(alternate).await?);
        message.header.scope = AddressScope::Host;
        self.add_address(message).await
    }

    pub async fn remove_alternate(&self, alternate: Ipv4Addr) -> io::Result<()> {
        self.remove_address(&self.alternate_address(alternate).await?).await
    }

    pub async fn remove_address(&self, address: &Address) -> io::Result<()> {
        self.handle.address().del(address_message(address)).execute().await.map_err(into_io)
    }

    async fn add_address(&self, message: AddressMessage) -> io::Result<()> {
        let mut request = self.handle.address().add(0, Ipv4Addr::UNSPECIFIED.into(), 0);
        *request.message_mut() = message;
        request.execute().await.map_err(into_io)
    }

    async fn alternate_address(&self, alternate: Ipv4Addr) -> io::Result<Address> {
        let interface = self.at(LOOPBACK).await?;
        let interface = interface.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let local = IpAddr::V4(alternate);
        let value = InterfaceAddress::new(local, local.into());
        Ok(Address::new(interface.index, value))
    }
}

fn address_message(address: &Address) -> AddressMessage {
    let InterfaceAddress { local, network } = address.value;
    let prefix = network.prefix_len();
    let mut message = match local {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().address(v4, prefix).build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new().address(v6, prefix).build(),
    };
    message.header.index = address.interface;
    message.attributes =
        vec![AddressAttribute::Local(local), AddressAttribute::Address(network.addr())];
    if local.is_ipv6() {
        // No other host can have it: the address need not wait for duplicates to be looked for.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    // The header has room for the first eight flags only.
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let local = local.or(peer)?;
    let network = IpNet::new(peer.unwrap_or(local), message.header.prefix_len).ok()?;
    Some(Address {
        interface: message.header.index,
        value: InterfaceAddress { local, network },
        scope: match message.header.scope {
            AddressScope::Link => Scope::Link,
            AddressScope::Host | AddressScope::Nowhere => Scope::Host,
            _ => Scope::Global,
        },
        state: read_state(flags),
    })
}

fn read_state(flags: AddressFlags) -> AddressState {
    let waits =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    if waits || flags.contains(AddressFlags::Dadfailed) {
        AddressState::Tentative
    } else if flags.contains(AddressFlags::Deprecated) {
        AddressState::Deprecated
    } else if flags.contains(AddressFlags::Secondary) {
        AddressState::Secondary
    } else {
        AddressState::Preferred
    }
}
