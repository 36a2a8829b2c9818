//! What peers ask of a datapath: whether one that is requested can do it, and what one that runs does of it.

use super::Failure;
use crate::engine::config::{Config, Datapath, DatapathChoice};
use crate::engine::peers_file::{PeerEntry, PeerName, PeerSet};

/// What a table or files of peers ask of a datapath.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// How many remotes it has at most.
    pub remotes: usize,
    /// A peer that is to reach no other peer.
    pub isolated: Option<String>,
}

/// Checks that the datapath that was requested can do what is asked of it.
///
/// # Errors
/// When it cannot.
pub fn suits(config: &Config, demand: &Demand) -> Result<(), Failure> {
    let DatapathChoice::Only(datapath) = config.tunnel.datapath else { return Ok(()) };
    let datapath = match datapath {
        Datapath::Kernel | Datapath::KernelShared => in_kernel(config, demand),
        Datapath::Tun => Datapath::Tun,
    };
    let (name, can) = (datapath.name(), datapath.capabilities());
    let most = can.most_remotes;
    if demand.remotes > most {
        let what = said(config, demand);
        return Err(Failure::Usage(format!(
            "--datapath {name}: {what}, and this datapath carries {most} at most; leave the option out"
        )));
    }
    match &demand.isolated {
        Some(isolated) if !can.isolates => Err(Failure::Usage(format!(
            "--datapath {name}: peer {isolated} has `isolate`, which needs the userspace datapath; \
             leave the option out"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Which of the kernel's datapaths fits: links of their own for a few, one that all share for many.
pub fn in_kernel(config: &Config, demand: &Demand) -> Datapath {
    let few = Datapath::Kernel.capabilities().many_remotes;
    // The rules of a shared link would spoil the checksum of outer packets.
    let may_share = config.hub().is_some() && config.tunnel.checksum != Some(true);
    match may_share && demand.remotes > few {
        true => Datapath::KernelShared,
        false => Datapath::Kernel,
    }
}

/// Says where the peers come from, and how many there are.
pub fn said(config: &Config, Demand { remotes, .. }: &Demand) -> String {
    match config.hub() {
        Some(_) => format!("the files of peers name {remotes} peers"),
        None => format!("the table of hosts has {remotes} remotes"),
    }
}

/// What these peers ask of a datapath.
pub fn of_peers(set: &PeerSet) -> Demand {
    Demand { remotes: set.len(), isolated: isolated(set).map(|it| it.name.to_string()) }
}

fn isolated(set: &PeerSet) -> Option<&PeerEntry> {
    set.peers().iter().find(|peer| peer.isolate && peer.enabled)
}

/// Why a running tunnel cannot carry all these peers, and what becomes of them, in one line.
pub fn exceeds(set: &PeerSet, datapath: Datapath, choice: DatapathChoice) -> Option<String> {
    let can = datapath.capabilities();
    let mend = match choice {
        DatapathChoice::Auto => "restart it",
        DatapathChoice::Only(_) => "leave `datapath` out of its options, and restart it",
    };
    if let Some(peer) = isolated(set).filter(|_| !can.isolates) {
        return Some(format!(
            "{}: peer {}: `isolate` needs the userspace datapath, and this tunnel runs on the kernel's: \
             {mend}; until then, such peers are not let in, and those that it had are not isolated; all \
             else is taken",
            peer.origin, peer.name
        ));
    }
    let most = can.most_remotes;
    (set.len() > most).then(|| {
        format!(
            "the files name {} peers, and the datapath of this tunnel carries {most} at most: {mend}; until \
             then, no new peer is let in; all else is taken",
            set.len()
        )
    })
}

/// What a datapath can carry of peers that exceed it: whoever was taken away or disabled is out all the same.
/// `before`: what was said of such a peer before. Who is to be apart goes on only if it was not, and may come in.
pub fn reduced<'a>(
    set: PeerSet,
    datapath: Datapath,
    before: impl Fn(&PeerName) -> Option<&'a PeerEntry>,
) -> PeerSet {
    let can = datapath.capabilities();
    let is_full = set.len() > can.most_remotes;
    set.filter_map(|mut peer| {
        let before = before(&peer.name);
        let was_among_others = before.is_some_and(|before| {
            before.enabled && !before.isolate && before.public_key() == peer.public_key()
        });
        let is_apart = peer.isolate && peer.enabled && !can.isolates;
        peer.isolate &= !is_apart;
        let stays = if is_apart { was_among_others } else { before.is_some() || !is_full };
        stays.then_some(peer)
    })
}
