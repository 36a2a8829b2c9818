//! Whether the host translates the addresses or ports of our outer packets: a fast path does not.

use std::io;
use std::net::SocketAddrV4;

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{SHORT_HEADER, ask, attribute};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET` in linux/netfilter/nfnetlink_conntrack.h, as are the
/// attributes.
const GET: u16 = (1 << 8) | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const AF_INET: u8 = 2;
const UDP: u8 = 17;

/// Whether the host translates what it sends from this address to that; `None` as long as it tracks no such
/// connection, or that cannot be found out.
pub fn is_translated(from: SocketAddrV4, to: SocketAddrV4) -> Option<bool> {
    match entry(from, to) {
        Ok(entry) => entry.map(|[there, back]| there != [back[1], back[0]]),
        Err(error) => {
            tracing::debug!("cannot ask for the connection to {to}: {error}");
            None
        }
    }
}

/// From where, and to where.
type Tuple = [SocketAddrV4; 2];

/// The entry for packets of this direction, whichever was the first one.
fn entry(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<Option<[Tuple; 2]>> {
    // struct nfgenmsg: the family, a version, and 16 more bits.
    let mut request = vec![AF_INET, 0, 0, 0];
    let ip = [plain(CTA_IP_V4_SRC, &from.ip().octets()), plain(CTA_IP_V4_DST, &to.ip().octets())];
    let ports = [
        plain(CTA_PROTO_NUM, &[UDP]),
        plain(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes()),
        plain(CTA_PROTO_DST_PORT, &to.port().to_be_bytes()),
    ];
    let both = [nested(CTA_TUPLE_IP, &ip.concat()), nested(CTA_TUPLE_PROTO, &ports.concat())];
    request.extend(nested(CTA_TUPLE_ORIG, &both.concat()));
    match ask(NETLINK_NETFILTER, GET, &request, |answer| {
        Some([tuple(answer, CTA_TUPLE_ORIG)?, tuple(answer, CTA_TUPLE_REPLY)?])
    }) {
        Ok(entry) => Ok(Some(entry)),
        // There is none; or this kernel tracks nothing, or does not tell.
        Err(e) if [Some(libc::ENOENT), Some(libc::EINVAL)].contains(&e.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

fn plain(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(NLA_HEADER_SIZE + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    plain(kind | NLA_F_NESTED, value)
}

fn tuple(answer: &[u8], which: u16) -> Option<Tuple> {
    let tuple = attribute(answer, SHORT_HEADER, which)?;
    let (ip, ports) = (attribute(tuple, 0, CTA_TUPLE_IP)?, attribute(tuple, 0, CTA_TUPLE_PROTO)?);
    let address = |kind| Some(*attribute(ip, 0, kind)?.first_chunk::<4>()?);
    let port = |kind| Some(u16::from_be_bytes(*attribute(ports, 0, kind)?.first_chunk()?));
    Some([
        SocketAddrV4::new(address(CTA_IP_V4_SRC)?.into(), port(CTA_PROTO_SRC_PORT)?),
        SocketAddrV4::new(address(CTA_IP_V4_DST)?.into(), port(CTA_PROTO_DST_PORT)?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read() {
        let ip = [plain(CTA_IP_V4_SRC, &[192, 0, 2, 1]), plain(CTA_IP_V4_DST, &[192, 0, 2, 2])];
        let ports = [
            plain(CTA_PROTO_NUM, &[UDP]),
            plain(CTA_PROTO_SRC_PORT, &[0x27, 0x10]),
            plain(CTA_PROTO_DST_PORT, &[0x11, 0x94]),
        ];
        let both = [nested(CTA_TUPLE_IP, &ip.concat()), nested(CTA_TUPLE_PROTO, &ports.concat())];
        let answer = [vec![2, 0, 0, 0], nested(CTA_TUPLE_REPLY, &both.concat())].concat();
        let expected = ["192.0.2.1:10000".parse().unwrap(), "192.0.2.2:4500".parse().unwrap()];
        assert_eq!(tuple(&answer, CTA_TUPLE_REPLY), Some(expected));
        assert_eq!(tuple(&answer, CTA_TUPLE_ORIG), None);
    }
}
