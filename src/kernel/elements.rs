//! The remotes that are let in: the sets of our table, changed over netlink, so that no program is run
//! when a peer moves (Documentation/netlink/specs/nftables.yaml).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::{
    Chained, IterableDataAttrs, IterableSetelemAttrs, PushSetelemListAttrs,
    PushSetelemListElemAttrs, Request, SetelemListElemAttrs,
};
use netlink_bindings::utils::RequestBuf;

use super::entries::{Change, Verb, sets, transactions};
use super::quoted::{self, QuotedRule};
use super::words::{
    Contents, SET_ADDRESSES, SET_ALTERNATES, SET_KNOWN, SET_KNOWN_ADDRESSES, SET_REMOTES, elements,
};
use crate::engine::host::Admitted;
use crate::host::netlink::Lists;
use crate::host::table::Table;

/// The most messages in one transaction: five sets and two chains to flush, five sets to fill, and the
/// rules about what is quoted.
const TRANSACTION: u32 = 12 + PORTION;
/// How many rules about what is quoted are made in one transaction. It is sent as a whole: together
/// with the sets of 1024 remotes these are some 190 kB, and a socket may send 208
/// (`net.core.wmem_default`).
const PORTION: u32 = 200;

/// The sets of a tunnel's table.
pub struct Elements {
    pub table: Table,
    /// The remotes that were let in last.
    pub(super) let_in: BTreeSet<Admitted>,
    /// Whether they all share a link.
    pub(super) shared: bool,
    /// The transaction after which all was as it should be, with these remotes: until there is another one, it
    /// need not be read again.
    pub(super) intact_since: Option<u32>,
}

impl Elements {
    pub fn of(table: Table) -> Self {
        Elements { table, let_in: BTreeSet::new(), shared: false, intact_since: None }
    }

    /// The remotes that are let in; `None` when the sets contradict each other.
    pub fn admitted(&mut self) -> io::Result<Option<BTreeSet<Admitted>>> {
        if self.shared {
            return self.admitted_shared();
        }
        let remote = |element: &IterableSetelemAttrs<'_>| read_remote(element.get_key().ok()?);
        let address = |element: &IterableSetelemAttrs<'_>| read_address(element.get_key().ok()?);
        let alternate = |element: &IterableSetelemAttrs<'_>| {
            Some((remote(element)?, read_address(element.get_data().ok()?)?))
        };
        let found = Contents {
            remotes: self.dump(SET_REMOTES, remote)?,
            addresses: self.dump(SET_ADDRESSES, address)?,
            alternates: self.dump(SET_ALTERNATES, alternate)?,
            known: self.dump(SET_KNOWN, remote)?,
            known_addresses: self.dump(SET_KNOWN_ADDRESSES, address)?,
            behind: BTreeMap::new(),
        };
        let direct = found.remotes.iter().map(|remote| Admitted::direct(*remote));
        let alternate = found.alternates.iter().map(|(remote, alternate)| Admitted {
            alternate: Some(*alternate),
            ..Admitted::direct(*remote)
        });
        let admitted: BTreeSet<_> = direct.chain(alternate).collect();
        Ok(Some(admitted).filter(|admitted| elements(admitted) == found))
    }

    pub(super) fn dump<T: PartialEq, C: FromIterator<T>>(
        &mut self,
        set: &str,
        read: impl Fn(&IterableSetelemAttrs<'_>) -> Option<T>,
    ) -> io::Result<C> {
        let mut request = Request::new().op_getsetelem_dump(&self.table.header);
        request.encode().push_table(&self.table.name).push_set_bytes(set.as_bytes());
        let found = Lists::NETFILTER.read(&request, |found: &mut Vec<T>, (_, list)| {
            for element in list.get_elements().into_iter().flatten() {
                if let Ok(SetelemListElemAttrs::Elem(element)) = element {
                    found.extend(read(&element));
                }
            }
            Ok(())
        });
        Ok(found?.into_iter().collect())
    }

    /// Lets exactly these remotes in, in one transaction. Where there are many, some of the rules about
    /// what is quoted follow in later ones. On a link that all share, only what differs is changed.
    pub fn admit(&mut self, admitted: &BTreeSet<Admitted>) -> io::Result<()> {
        self.intact_since = None;
        if self.shared {
            return self.admit_shared(admitted);
        }
        let table = self.table.name.clone();
        let wanted = elements(admitted);
        let quoted = quoted::rules(&wanted);
        let mut portions = quoted.chunks(PORTION as usize);
        let mut batch = self.table.begin(TRANSACTION);
        for chain in quoted::CHAINS {
            // Without a handle this deletes all rules (`nf_tables_delrule`).
            batch
                .request()
                .op_delrule_do(&self.table.header)
                .encode()
                .push_table(&table)
                .push_chain_bytes(chain.as_bytes());
        }
        self.add_rules(&mut batch, portions.next().unwrap_or_default());
        for (set, elements) in sets(&wanted, false) {
            // Without elements this deletes all of them (`nf_tables_delsetelem`).
            batch
                .request()
                .op_delsetelem_do(&self.table.header)
                .encode()
                .push_table(&table)
                .push_set_bytes(set.as_bytes());
            if !elements.is_empty() {
                self.push_change(&mut batch, &Change { set, verb: Verb::Add, elements });
            }
        }
        self.table.commit(batch)?;
        for portion in portions {
            let mut batch = self.table.begin(TRANSACTION);
            self.add_rules(&mut batch, portion);
            self.table.commit(batch)?;
        }
        self.let_in.clone_from(admitted);
        Ok(())
    }

    /// Makes these changes, and those of rules, in as few transactions as can be sent; how many.
    pub(super) fn change(
        &mut self,
        changes: Vec<Change>,
        going: &[(&'static str, u64)],
        coming: &[QuotedRule],
    ) -> io::Result<u32> {
        let (mut going, mut coming, mut made) = (going, coming, 0);
        for changes in transactions(changes) {
            let count = changes.len() + going.len() + coming.len();
            // To one that changes nothing, kernels before 6.10 give no answer.
            if count == 0 {
                continue;
            }
            made += 1;
            let mut batch = self.table.begin(u32::try_from(count).unwrap_or(u32::MAX));
            for (chain, handle) in std::mem::take(&mut going) {
                batch
                    .request()
                    .op_delrule_do(&self.table.header)
                    .encode()
                    .push_table(&self.table.name)
                    .push_chain_bytes(chain.as_bytes())
                    .push_handle(*handle);
            }
            changes.iter().for_each(|change| self.push_change(&mut batch, change));
            self.add_rules(&mut batch, std::mem::take(&mut coming));
            self.table.commit(batch)?;
        }
        Ok(made)
    }

    /// Adds a message that adds elements to a set, or takes them from it.
    fn push_change(&self, batch: &mut Chained<'static>, change: &Change) {
        let (header, request) = (&self.table.header, batch.request());
        let message = match change.verb {
            Verb::Add => request.set_create().op_newsetelem_do(header).into_encoder(),
            Verb::Delete => request.op_delsetelem_do(header).into_encoder(),
        };
        let message = message.push_table(&self.table.name).push_set_bytes(change.set.as_bytes());
        let mut list = message.nested_elements();
        for entry in &change.elements {
            let data = entry.data.as_deref().filter(|_| change.verb == Verb::Add);
            list = push_element(list, &entry.key, data);
        }
    }

    fn add_rules(&self, batch: &mut Chained<'static>, rules: &[QuotedRule]) {
        for rule in rules {
            let mut message =
                batch.request().set_create().set_append().op_newrule_do(&self.table.header);
            rule.push(message.encode(), &self.table.name);
        }
    }
}

type ElementList<'a> = PushSetelemListElemAttrs<PushSetelemListAttrs<RequestBuf<'a>>>;

fn push_element<'a>(list: ElementList<'a>, key: &[u8], data: Option<&[u8]>) -> ElementList<'a> {
    let element = list.nested_elem().nested_key().push_value(key).end_nested();
    match data {
        Some(data) => element.nested_data().push_value(data).end_nested().end_nested(),
        None => element.end_nested(),
    }
}

fn read_remote(key: IterableDataAttrs<'_>) -> Option<SocketAddrV4> {
    let key: &[u8; 8] = key.get_value().ok()?.first_chunk()?;
    let [a, b, c, d, high, low, _, _] = *key;
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
}

fn read_address(data: IterableDataAttrs<'_>) -> Option<Ipv4Addr> {
    let octets: &[u8; 4] = data.get_value().ok()?.first_chunk()?;
    Some(Ipv4Addr::from(*octets))
}
