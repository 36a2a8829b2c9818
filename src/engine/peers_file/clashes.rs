//! What two peers cannot both have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::Origin;
use super::fault::{Fault, Mistake};
use super::name::PeerName;
use super::peer::{Draft, Written};
use crate::auth::hint;
use crate::engine::table::Inner;
use crate::wire::control::Hint;

/// Takes away the peers whose name an earlier one has, which would clash in everything.
pub fn names(drafts: Vec<Draft>, faults: &mut Vec<Fault>) -> Vec<Draft> {
    let mut first: BTreeMap<PeerName, Origin> = BTreeMap::new();
    let mut is_new = |draft: &Draft| match first.get(&draft.name) {
        Some(origin) => {
            let what = format!("the name stands in {origin} as well");
            let mistake = Mistake::new(what, "give one of the two another name");
            faults.push(fault(draft, None, draft.origin.line, mistake));
            false
        }
        None => {
            first.insert(draft.name.clone(), draft.origin.clone());
            true
        }
    };
    drafts.into_iter().filter(|draft| is_new(draft)).collect()
}

/// Adds the peers that have the key of an earlier one, or one that begins like it.
pub fn keys(drafts: &[Draft], faults: &mut Vec<Fault>) {
    let mut first: BTreeMap<Hint, (&Draft, &[u8; 32])> = BTreeMap::new();
    for draft in drafts {
        let Some(key) = &draft.key else { continue };
        let Some((other, its)) = first.get(&hint(&key.value)) else {
            first.insert(hint(&key.value), (draft, &key.value));
            continue;
        };
        let place = place(other, other.key.as_ref().map_or(0, |key| key.line));
        let mistake = match **its == key.value {
            true => Mistake::new(
                format!("both have the same `public-key` (the other in {place})"),
                "give each its own, as one key is one peer",
            ),
            false => Mistake::new(
                format!("their public keys begin with the same 8 bytes (the other in {place})"),
                "make another key pair for one of them, as packets name a key by those bytes",
            ),
        };
        faults.push(fault(draft, Some(other), key.line, mistake));
    }
}

/// Adds the peers with the old program that know the server by an address of a peer, or by one behind it.
pub fn server_addresses(drafts: &[Draft], faults: &mut Vec<Fault>) {
    for draft in drafts {
        let Some(Written { value: address, line }) = draft.server_address else { continue };
        let address = IpAddr::V4(address);
        let has = |other: &&Draft| {
            other.addresses.iter().any(|its| its.value == address)
                || other.routes.iter().any(|its| its.value.contains(&address))
        };
        let Some(other) = drafts.iter().find(has) else { continue };
        let place = place(other, other.origin.line);
        let what = format!("`server-address` {address} is that of a peer, or behind it ({place})");
        let todo = "give the one that the old server had inside the tunnel";
        let other = (other.name != draft.name).then_some(other);
        faults.push(fault(draft, other, line, Mistake::new(what, todo)));
    }
}

/// Adds the first peer with the old program, where another one is to reach no peer: packets between the two
/// are in two tunnels, neither of which knows all peers.
pub fn isolation(drafts: &[Draft], faults: &mut Vec<Fault>) {
    let is_enabled = |draft: &&Draft| draft.settings.enabled();
    let isolated = |draft: &&Draft| draft.old.is_none() && draft.settings.isolate();
    let Some(isolated) = drafts.iter().filter(is_enabled).find(isolated) else { return };
    let old = drafts.iter().filter(is_enabled).filter_map(|draft| Some((draft, draft.old?)));
    for (draft, Written { line, .. }) in old.take(1) {
        let place = place(isolated, isolated.origin.line);
        let what = format!("it has `old`, and the other has `isolate` ({place})");
        let todo =
            "give one of them a server of its own, as peers with the old program reach all others";
        faults.push(fault(draft, Some(isolated), line, Mistake::new(what, todo)));
    }
}

/// Adds the peers with the old program that have the port of an earlier one.
pub fn ports(drafts: &[Draft], faults: &mut Vec<Fault>) {
    let mut first: BTreeMap<NonZeroU16, (&Draft, usize)> = BTreeMap::new();
    for draft in drafts {
        let Some(Written { value: port, line }) = draft.old else { continue };
        match first.get(&port) {
            None => drop(first.insert(port, (draft, line))),
            Some((other, other_line)) => {
                let place = place(other, *other_line);
                let what = format!("both have `old` {port} (the other in {place})");
                let todo = "give each the port that it alone sends to";
                faults.push(fault(draft, Some(other), line, Mistake::new(what, todo)));
            }
        }
    }
}

/// An address or a network of one peer.
struct Range {
    net: IpNet,
    field: &'static str,
    line: usize,
    /// Its number among the drafts.
    draft: usize,
}

/// Adds the addresses and networks that overlap those of another peer.
pub fn ranges(drafts: &[Draft], faults: &mut Vec<Fault>) {
    let mut ranges = Vec::new();
    for (number, draft) in drafts.iter().enumerate() {
        ranges.extend(draft.addresses.iter().map(|address| Range {
            net: address.value.into(),
            field: "address",
            line: address.line,
            draft: number,
        }));
        ranges.extend(draft.routes.iter().map(|route| Range {
            net: route.value,
            field: "route",
            line: route.line,
            draft: number,
        }));
    }
    // A network now stands before those that are in it.
    ranges.sort_by_key(|range| (range.net, range.draft, range.line));
    // Those that hold the next one, each smaller than the one before it: 129 at most.
    let mut around: Vec<&Range> = Vec::new();
    for range in &ranges {
        while around.pop_if(|outer| !outer.net.contains(&range.net)).is_some() {}
        let same = around.last().filter(|last| last.net == range.net);
        let other = around.iter().rev().find(|outer| outer.draft != range.draft);
        match (other, same) {
            (Some(other), _) => faults.push(overlap(drafts, range, other)),
            (None, Some(same)) => faults.push(twice(drafts, range, same)),
            (None, None) => {}
        }
        if same.is_none() {
            around.push(range);
        }
    }
}

fn overlap(drafts: &[Draft], one: &Range, other: &Range) -> Fault {
    let is_later = (one.draft, one.line) > (other.draft, other.line);
    let (later, first) = if is_later { (one, other) } else { (other, one) };
    let (draft, holder) = (&drafts[later.draft], &drafts[first.draft]);
    let (words, place) = (later.words(), place(holder, first.line));
    let (what, todo) = match (later.net == first.net, later.field == first.field) {
        (true, true) => {
            (format!("both have {words} (the other in {place})"), "give it to one of them")
        }
        (true, false) => (
            format!("{words} is the other's `{}` ({place})", first.field),
            "give it to one of them",
        ),
        (false, _) => (
            format!("{words} overlaps the other's {} ({place})", first.words()),
            "give each address and network to one of them",
        ),
    };
    fault(draft, Some(holder), later.line, Mistake::new(what, todo))
}

/// A value that one peer has twice.
fn twice(drafts: &[Draft], range: &Range, first: &Range) -> Fault {
    let draft = &drafts[range.draft];
    let what = format!("{} is there twice", range.words());
    let place = place(draft, first.line);
    fault(
        draft,
        None,
        range.line,
        Mistake::new(what, format!("leave one out (the other is in {place})")),
    )
}

impl Range {
    fn words(&self) -> String {
        format!("`{}` {}", self.field, Inner(self.net))
    }
}

fn place(draft: &Draft, line: usize) -> Origin {
    Origin { file: draft.origin.file.clone(), line }
}

/// A fault of `draft`, and of another peer that has a part in it.
fn fault(draft: &Draft, other: Option<&Draft>, line: usize, mistake: Mistake) -> Fault {
    let Mistake { what, todo } = mistake;
    let peers =
        [Some(draft), other].into_iter().flatten().map(|draft| draft.name.clone()).collect();
    Fault { file: draft.origin.file.to_string(), line, peers, what, todo }
}
