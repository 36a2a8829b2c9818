//! What an entry of the files says of a member.

use ipnet::IpNet;

use crate::engine::Now;
use crate::engine::peers_file::PeerEntry;

/// Whether the time of a member is over.
pub(super) fn is_expired(entry: &PeerEntry, now: &Now) -> bool {
    entry.expires.is_some_and(|expires| expires <= now.unix)
}

/// The inner addresses of a member and the networks behind it.
pub(super) fn networks(entry: &PeerEntry) -> Vec<IpNet> {
    entry.addresses.iter().copied().map(IpNet::from).chain(entry.routes.iter().copied()).collect()
}

/// Whether two entries say the same of a peer, wherever they stand.
pub(super) fn is_as(one: &PeerEntry, other: &PeerEntry) -> bool {
    let PeerEntry {
        name,
        public_key,
        addresses,
        routes,
        secret,
        lease,
        expires,
        enabled,
        isolate,
        note,
        origin: _,
    } = one;
    *name == other.name
        && *public_key == other.public_key
        && *addresses == other.addresses
        && *routes == other.routes
        && secret.as_bytes() == other.secret.as_bytes()
        && *lease == other.lease
        && *expires == other.expires
        && *enabled == other.enabled
        && *isolate == other.isolate
        && *note == other.note
}
