//! What an entry of the files says of a member.

use ipnet::IpNet;

use crate::engine::peers_file::PeerEntry;

/// The inner addresses of a member and the networks behind it.
pub(super) fn networks(entry: &PeerEntry) -> Vec<IpNet> {
    entry.addresses.iter().copied().map(IpNet::from).chain(entry.routes.iter().copied()).collect()
}
