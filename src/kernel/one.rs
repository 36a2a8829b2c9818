//! Admits one remote, or stops admitting one, without touching what is there for the others.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::Request;

use super::elements::Elements;
use super::entries::{Change, Verb, sets};
use super::quoted::{self, QuotedRule};
use super::words::{Contents, elements};
use crate::engine::host::Admitted;
use crate::host::netlink::Lists;

impl Elements {
    /// Stops admitting one remote, and admits another, in one transaction, but for one with thousands of networks.
    pub fn exchange(&mut self, old: Option<&Admitted>, new: Option<&Admitted>) -> io::Result<()> {
        let gone = old.map(|old| only_of(old, &self.let_in, None)).unwrap_or_default();
        let come = new.map(|new| only_of(new, &self.let_in, old)).unwrap_or_default();
        let mut going = Vec::new();
        for rule in quoted::rules(&gone) {
            going.extend(self.handle(&rule)?.map(|handle| (rule.chain(), handle)));
        }
        let coming = quoted::rules(&come);
        let changes = [(gone, Verb::Delete), (come, Verb::Add)];
        let changes = changes.iter().flat_map(|(contents, verb)| {
            let filled = sets(contents, self.shared).into_iter();
            filled.map(|(set, elements)| Change { set, verb: *verb, elements })
        });
        let changes: Vec<Change> = changes.collect();
        let before = self.intact_since.take();
        let count = self.change(changes, &going, &coming)?;
        // Unless somebody else changed something meanwhile.
        let ours = |now: &u32| before.is_some_and(|before| now.wrapping_sub(before) <= count);
        self.intact_since = self.table.generation().filter(ours);
        old.map(|old| self.let_in.remove(old));
        self.let_in.extend(new.cloned());
        Ok(())
    }

    /// The number of a rule, by which alone it can be deleted.
    fn handle(&mut self, rule: &QuotedRule) -> io::Result<Option<u64>> {
        let mut request = Request::new().op_getrule_dump(&self.table.header);
        request.encode().push_table(&self.table.name).push_chain_bytes(rule.chain().as_bytes());
        Lists::NETFILTER.read(&request, |found: &mut Option<u64>, (_, one)| {
            if one.get_expressions().is_ok_and(|expressions| rule.is(expressions)) {
                *found = one.get_handle().ok();
            }
            Ok(())
        })
    }
}

/// The contents that are there for this remote alone: others, but for one that goes, may be at its address.
fn only_of(one: &Admitted, all: &BTreeSet<Admitted>, going: Option<&Admitted>) -> Contents {
    let mut own = elements(&BTreeSet::from([one.clone()]));
    let at = |port, alternate| Admitted {
        alternate,
        ..Admitted::direct(SocketAddrV4::new(*one.remote.ip(), port))
    };
    let there = all.range(at(0, None)..=at(u16::MAX, Some(Ipv4Addr::BROADCAST)));
    for other in there.filter(|other| *other != one && Some(*other) != going) {
        own.known_addresses.clear();
        if other.alternate.is_none() {
            own.addresses.clear();
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(remote: &str, alternate: Option<Ipv4Addr>) -> Admitted {
        Admitted { alternate, ..Admitted::direct(remote.parse().unwrap()) }
    }

    #[test]
    fn what_others_at_the_same_address_need_is_not_its_own() {
        let alternate = Some(Ipv4Addr::new(172, 30, 0, 1));
        let all = BTreeSet::from([
            admitted("198.51.100.7:1", None),
            admitted("198.51.100.7:2", alternate),
            admitted("198.51.100.8:1", None),
            admitted("198.51.100.6:65535", None),
        ]);
        for one in &all {
            let mut others = all.clone();
            others.remove(one);
            let (with, without, own) =
                (elements(&all), elements(&others), only_of(one, &all, None));
            let less = |with: &BTreeSet<Ipv4Addr>, without| with - without;
            assert_eq!(own.remotes, &with.remotes - &without.remotes);
            assert_eq!(own.known, &with.known - &without.known);
            assert_eq!(own.addresses, less(&with.addresses, &without.addresses));
            assert_eq!(own.known_addresses, less(&with.known_addresses, &without.known_addresses));
            assert_eq!(own.alternates.len(), usize::from(one.alternate.is_some()));
            // The same remote that comes when the others are there adds exactly that.
            let coming = only_of(one, &others, None);
            assert_eq!((coming.addresses, coming.known), (own.addresses, own.known));
            // One that only gets another port needs at its address what it needed.
            let port = SocketAddrV4::new(*one.remote.ip(), 9);
            let coming = only_of(&Admitted { remote: port, ..one.clone() }, &all, Some(one));
            assert_eq!(coming.known_addresses, own.known_addresses);
        }
    }
}
