//! Admits one remote beside the others, or withdraws one, without touching what is there for the
//! others.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::Request;

use super::elements::{Elements, add_to, push_element, sets};
use super::quoted::{self, QuotedRule};
use super::words::{Contents, elements};
use crate::engine::host::Admitted;

/// The most messages in one transaction: five sets, and two rules about what is quoted.
const TRANSACTION: u32 = 7;

impl Elements {
    /// Lets one remote in, in one transaction.
    pub fn admit_too(&mut self, one: &Admitted) -> io::Result<()> {
        let own = only_of(one, &self.let_in);
        let (table, rules) = (self.table.name.clone(), quoted::rules(&own));
        let mut batch = self.table.begin(TRANSACTION);
        for (set, elements) in sets(&own).into_iter().filter(|(_, all)| !all.is_empty()) {
            let mut list = add_to(&mut batch, &self.table.header, &table, set);
            for (key, data) in elements {
                list = push_element(list, &key, data);
            }
        }
        self.add_rules(&mut batch, &rules);
        self.table.commit(batch)?;
        self.let_in.insert(*one);
        Ok(())
    }

    /// Stops admitting one remote, in one transaction.
    pub fn admit_no_more(&mut self, one: &Admitted) -> io::Result<()> {
        let own = only_of(one, &self.let_in);
        let table = self.table.name.clone();
        let mut handles = Vec::new();
        for rule in quoted::rules(&own) {
            handles.extend(self.handle(&rule)?.map(|handle| (rule.chain(), handle)));
        }
        let mut batch = self.table.begin(TRANSACTION);
        for (chain, handle) in handles {
            batch
                .request()
                .op_delrule_do(&self.table.header)
                .encode()
                .push_table(&table)
                .push_chain_bytes(chain.as_bytes())
                .push_handle(handle);
        }
        for (set, elements) in sets(&own).into_iter().filter(|(_, all)| !all.is_empty()) {
            let mut list = batch
                .request()
                .op_delsetelem_do(&self.table.header)
                .into_encoder()
                .push_table(&table)
                .push_set_bytes(set.as_bytes())
                .nested_elements();
            for (key, _) in elements {
                list = push_element(list, &key, None);
            }
        }
        self.table.commit(batch)?;
        self.let_in.remove(one);
        Ok(())
    }

    /// The number of a rule, by which alone it can be deleted.
    fn handle(&mut self, rule: &QuotedRule) -> io::Result<Option<u64>> {
        let mut request = Request::new().op_getrule_dump(&self.table.header);
        request.encode().push_table(&self.table.name).push_chain_bytes(rule.chain().as_bytes());
        let mut replies = self.table.socket.request(&request)?;
        let mut found = None;
        while let Some(reply) = replies.recv() {
            let (_, one) = reply?;
            if one.get_expressions().is_ok_and(|expressions| rule.is(expressions)) {
                found = one.get_handle().ok();
            }
        }
        Ok(found)
    }
}

/// The contents that are there for this remote alone: others may be at its address.
fn only_of(one: &Admitted, all: &BTreeSet<Admitted>) -> Contents {
    let mut own = elements(&BTreeSet::from([*one]));
    let at =
        |port, alternate| Admitted { remote: SocketAddrV4::new(*one.remote.ip(), port), alternate };
    let there = all.range(at(0, None)..=at(u16::MAX, Some(Ipv4Addr::BROADCAST)));
    for other in there.filter(|other| *other != one) {
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
        Admitted { remote: remote.parse().unwrap(), alternate }
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
            let (with, without, own) = (elements(&all), elements(&others), only_of(one, &all));
            let less = |with: &BTreeSet<Ipv4Addr>, without| with - without;
            assert_eq!(own.remotes, &with.remotes - &without.remotes);
            assert_eq!(own.known, &with.known - &without.known);
            assert_eq!(own.addresses, less(&with.addresses, &without.addresses));
            assert_eq!(own.known_addresses, less(&with.known_addresses, &without.known_addresses));
            assert_eq!(own.alternates.len(), usize::from(one.alternate.is_some()));
            // The same remote that comes when the others are there adds exactly that.
            let coming = only_of(one, &others);
            assert_eq!((coming.addresses, coming.known), (own.addresses, own.known));
        }
    }
}
