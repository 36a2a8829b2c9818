//! FOU listeners, over generic netlink (net/ipv4/fou_nl.c, Documentation/netlink/specs/fou.yaml).

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::fou;
use netlink_socket2::NetlinkSocket;

use crate::engine::host::Listener;

const AF_INET: u8 = 2;
const IPPROTO_IPIP: u8 = 4;
/// `FOU_ENCAP_DIRECT` in linux/fou.h: the UDP payload is the inner packet.
const ENCAP_DIRECT: u8 = 1;

/// The `fou` family of generic netlink; opened when it is first used.
#[derive(Default)]
pub struct Fou {
    socket: NetlinkSocket,
}

impl Fou {
    /// All IPIP listeners.
    pub fn listeners(&mut self) -> io::Result<BTreeSet<Listener>> {
        let request = fou::Request::new().op_get_dump();
        let mut replies = self.socket.request(&request)?;
        let mut listeners = BTreeSet::new();
        while let Some(reply) = replies.recv() {
            let reply = reply?;
            let Ok(port) = reply.get_port() else { continue };
            if reply.get_ipproto().ok() != Some(IPPROTO_IPIP)
                || reply.get_type().ok() != Some(ENCAP_DIRECT)
            {
                continue;
            }
            let local = reply.get_local_v4().ok().map(|raw| Ipv4Addr::from(raw.to_ne_bytes()));
            let bound_to = reply.get_ifindex().ok().and_then(|i| u32::try_from(i).ok());
            listeners.insert(Listener {
                port,
                local: local.filter(|address| !address.is_unspecified()),
                bound_to: bound_to.filter(|&index| index != 0),
            });
        }
        Ok(listeners)
    }

    pub fn add(&mut self, listener: &Listener) -> io::Result<()> {
        let mut request = fou::Request::new().op_add_do();
        let attributes = request
            .encode()
            .push_port(listener.port)
            .push_af(AF_INET)
            .push_ipproto(IPPROTO_IPIP)
            .push_type(ENCAP_DIRECT);
        push_binding(attributes, listener);
        self.socket.request(&request)?.recv_ack().map_err(io::Error::from)
    }

    pub fn remove(&mut self, listener: &Listener) -> io::Result<()> {
        let mut request = fou::Request::new().op_del_do();
        let attributes = request.encode().push_port(listener.port).push_af(AF_INET);
        push_binding(attributes, listener);
        self.socket.request(&request)?.recv_ack().map_err(io::Error::from)
    }
}

fn push_binding(mut attributes: fou::PushFou<&mut Vec<u8>>, listener: &Listener) {
    if let Some(local) = listener.local {
        attributes = attributes.push_local_v4(u32::from_ne_bytes(local.octets()));
    }
    if let Some(index) = listener.bound_to {
        attributes.push_ifindex(index.cast_signed());
    }
}
