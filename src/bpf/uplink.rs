//! The interface that outer packets leave by.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use netlink_bindings::ethtool::Request;
use netlink_bindings::traits::Pusher as _;
use netlink_socket2::NetlinkSocket;
use rustix::net::netdevice::{index_to_name, name_to_index};
use socket2::{Domain, Socket, Type};

use crate::engine::config::DeviceName;
use crate::engine::host::{FastPathEnds, LinkHeader};

/// `ETHTOOL_MSG_FEATURES_GET` in linux/ethtool_netlink.h.
const FEATURES_GET: u8 = 11;
/// What an interface needs to take superpackets with UDP around: it segments TCP and UDP in there, or
/// hands them on as they are (Documentation/networking/segmentation-offloads.rst). A veth does.
const NEEDED: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp-segmentation"];

/// `ARPHRD_RAWIP` in linux/if_arp.h.
const RAW_IP: u16 = 519;

/// Whether an interface takes superpackets with UDP around; not if it does not tell.
pub fn passes_superpackets(socket: &mut NetlinkSocket, interface: u32) -> bool {
    let mut has = [false; NEEDED.len()];
    let mut read = || -> io::Result<()> {
        let mut request = Request::new().op_features_get_do();
        let mut message = request.encode();
        // netlink-bindings 0.3.5 has the attributes right and numbers the commands without their gaps.
        if let Some(command) = message.as_vec_mut().first_mut() {
            *command = FEATURES_GET;
        }
        message.nested_header().push_dev_index(interface).end_nested();
        let mut replies = socket.request(&request)?;
        let reply = replies.recv_one().map_err(io::Error::from)?;
        // The list has those that are on.
        let on = reply.get_active().and_then(|active| active.get_bits());
        for bit in on.iter().flat_map(|bits| bits.get_bit()) {
            let name = bit.get_name().map(|name| name.to_bytes()).unwrap_or_default();
            for (has, needed) in has.iter_mut().zip(NEEDED) {
                *has |= name == needed.as_bytes();
            }
        }
        Ok(())
    };
    read().is_ok() && has == [true; NEEDED.len()]
}

/// The name of an interface.
///
/// # Errors
/// `NotFound`.
pub fn name_of(interface: u32) -> io::Result<String> {
    Ok(index_to_name(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, interface)?)
}

/// The index of an interface.
///
/// # Errors
/// `NotFound`.
pub fn index_of(name: &DeviceName) -> io::Result<u32> {
    Ok(name_to_index(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, name.as_str())?)
}

/// What an interface puts before its packets, where that is known. GRE tunnels, for example, show the outer
/// header there (`__ipgre_rcv` in net/ipv4/ip_gre.c).
pub fn header_of(interface: u32) -> Option<LinkHeader> {
    match hardware(interface).ok()? {
        libc::ARPHRD_ETHER => Some(LinkHeader::Ethernet),
        // Of the kinds without a header of their own (`dev_is_mac_header_xmit` in linux/if_arp.h) those that
        // hand in packets as they are, with `skb->mac_header` at the IP header: ppp
        // (`ppp_receive_nonmp_frame`), WireGuard (`wg_reset_packet`), TUN (`tun_get_user`), raw IP of
        // modems (`qmi_wwan_rx_fixup`, `rmnet_deliver_skb`), and ipip (`ipip_tunnel_rcv`; before 5.14
        // the outer headers are there, and the program takes nothing).
        libc::ARPHRD_PPP | libc::ARPHRD_NONE | RAW_IP | libc::ARPHRD_TUNNEL => {
            Some(LinkHeader::Bare)
        }
        _ => None,
    }
}

/// The kind of an interface's addresses: `ARPHRD_*` of linux/if_arp.h.
fn hardware(interface: u32) -> io::Result<libc::sa_family_t> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let name = index_to_name(&socket, interface)?;
    // SAFETY: a structure of numbers and unions of these.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let to = request.ifr_name.iter_mut();
    to.zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
    // SAFETY: the structure is that of netdevice(7), and the name, of 15 bytes at most, ends with zero.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in an address.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// Asks the kernel how long packets may be, as the routes and what routers said have it.
pub struct PathMtu(Socket);

impl PathMtu {
    /// Asks for packets as the fast path sends them by an uplink.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or the uplink is gone.
    pub fn of(ends: &FastPathEnds, uplink: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        let uplink = index_to_name(&socket, uplink)?;
        socket.bind_device(Some(uplink.as_bytes()))?;
        if ends.mark != 0 {
            socket.set_mark(ends.mark)?;
        }
        socket.bind(&SocketAddrV4::new(ends.outer, 0).into())?;
        Ok(PathMtu(socket))
    }

    /// Bytes of the longest packet to a remote.
    ///
    /// # Errors
    /// When there is no route.
    pub fn to(&self, remote: SocketAddrV4) -> io::Result<u32> {
        // Nothing is sent.
        self.0.connect(&remote.into())?;
        let (mut mtu, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
        let at = std::ptr::from_mut(&mut mtu).cast();
        // SAFETY: the kernel writes a number of four bytes.
        let result = unsafe {
            libc::getsockopt(self.0.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU, at, &mut length)
        };
        match (result, u32::try_from(mtu)) {
            (0, Ok(mtu)) => Ok(mtu),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
