//! Netlink messages that come as they are, because no crate has their types.

use netlink_packet_core::{NLA_HEADER_SIZE, NetlinkBuffer, NlasIterator};

/// The header of a message of netfilter, before its attributes: `struct nfgenmsg` in
/// linux/netfilter/nfnetlink.h.
const NETFILTER_HEADER: usize = 4;

/// The first message: its type, what is in it after the header, and what comes after it.
pub fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let message = NetlinkBuffer::new_checked(bytes).ok()?;
    let length = usize::try_from(message.length()).ok()?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message.message_type(), message.payload(), next))
}

/// An attribute's value in a message of netfilter.
pub fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let attribute = NlasIterator::new(message.get(NETFILTER_HEADER..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == wanted)?;
    let value = NLA_HEADER_SIZE..attribute.length().into();
    attribute.into_inner().get(value)
}
