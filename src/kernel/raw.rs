//! Sends from a UDP port that the kernel's FOU listener owns: whole packets, through a raw socket
//! (raw(7), `IPPROTO_RAW`).

use std::io;
use std::net::{SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::Outgoing;
use crate::engine::config::DeviceName;
use crate::wire::udp;

const IPPROTO_RAW: i32 = 255;

/// The TTL if nothing else sets one.
const TTL: u8 = 64;

/// A raw socket, which needs CAP_NET_RAW.
pub struct RawSender {
    socket: Socket,
    device: Option<DeviceName>,
    default_ttl: u8,
}

impl RawSender {
    /// Opens the socket. Packets leave by `device` or, without one, as the routes say.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_NET_RAW.
    pub fn open(device: Option<&DeviceName>) -> io::Result<Self> {
        let socket =
            Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::from(IPPROTO_RAW)))?;
        let default_ttl = std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(TTL);
        Ok(RawSender { socket, device: device.cloned(), default_ttl })
    }

    /// # Errors
    /// What the kernel says: no route, no buffer, a payload longer than a datagram. `Unsupported`
    /// for IPv6.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (out.from, out.to) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "only for IPv4"));
        };
        let packet = udp::build(from, to, out.ttl.unwrap_or(self.default_ttl), &out.payload)
            .map_err(io::Error::other)?;
        if let Some(mark) = out.mark {
            self.socket.set_mark(mark)?;
        }
        // The kernel keeps the number of an interface, and one that is made again has another.
        self.socket.bind_device(self.device.as_ref().map(|d| d.as_str().as_bytes()))?;
        // The kernel looks up the route with the address to which the socket is bound, and not with the
        // one in the packet (`raw_sendmsg` in net/ipv4/raw.c); policy rules may match on it.
        self.socket.bind(&SocketAddrV4::new(*from.ip(), 0).into())?;
        // The port of the destination is in the packet; the one in this address means nothing.
        self.socket.send_to(&packet, &SocketAddrV4::new(*to.ip(), 0).into())?;
        Ok(())
    }
}
