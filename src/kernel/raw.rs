//! Sending from a UDP port that the kernel's FOU listener owns: whole packets, through a raw
//! socket (raw(7), `IPPROTO_RAW`).

use std::io;
use std::net::{SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::Outgoing;
use crate::engine::config::DeviceName;
use crate::wire::udp;

const IPPROTO_RAW: i32 = 255;

/// The TTL of last resort.
const TTL: u8 = 64;

/// A raw socket. Needs CAP_NET_RAW.
pub struct RawSender {
    socket: Socket,
    device: Option<DeviceName>,
    default_ttl: u8,
}

impl RawSender {
    /// Packets leave by `device`, or by whatever the routes say.
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
        // The kernel remembers the number of an interface, and one that returns has another.
        self.socket.bind_device(self.device.as_ref().map(|d| d.as_str().as_bytes()))?;
        // The route is looked up with the address that the socket is bound to: what the packet says
        // is not looked at (`raw_sendmsg` in net/ipv4/raw.c), and policy rules may ask for it.
        self.socket.bind(&SocketAddrV4::new(*from.ip(), 0).into())?;
        // The port of the destination is in the packet; that of the address means nothing here.
        self.socket.send_to(&packet, &SocketAddrV4::new(*to.ip(), 0).into())?;
        Ok(())
    }
}
