//! The parts of nftables that are wanted often or fast: which remotes are let in, whether our
//! rules are still there, what they counted. Netlink only, no program is run
//! (Documentation/netlink/specs/nftables.yaml).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::{
    Chained, IterableDataAttrs, IterableSetelemAttrs, Nfgenmsg, ObjData, ObjectType,
    PushSetelemListAttrs, PushSetelemListElemAttrs, Request, SetelemListElemAttrs,
};
use netlink_bindings::utils::RequestBuf;
use netlink_socket2::NetlinkSocket;

use super::quoted::{self, QuotedRule};
use super::transaction::Transaction;
use crate::engine::host::{Admitted, Family};

/// (address . port) of remotes whose packets keep our outer address.
pub const SET_REMOTES: &str = "remotes";
/// Addresses of the same remotes.
pub const SET_ADDRESSES: &str = "addresses";
/// (address . port) of remotes whose packets are given an alternate local address.
pub const SET_ALTERNATES: &str = "privates";
/// (address . port) of all of them.
pub const SET_KNOWN: &str = "known";
/// Addresses of all of them.
pub const SET_KNOWN_ADDRESSES: &str = "known_addresses";

/// What is in our sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub remotes: BTreeSet<SocketAddrV4>,
    pub addresses: BTreeSet<Ipv4Addr>,
    pub alternates: BTreeMap<SocketAddrV4, Ipv4Addr>,
    pub known: BTreeSet<SocketAddrV4>,
    pub known_addresses: BTreeSet<Ipv4Addr>,
}

/// What has to be in our sets for these remotes.
pub fn elements(admitted: &BTreeSet<Admitted>) -> Contents {
    let mut contents = Contents::default();
    for Admitted { remote, alternate } in admitted {
        contents.known.insert(*remote);
        contents.known_addresses.insert(*remote.ip());
        match alternate {
            Some(alternate) => {
                contents.alternates.insert(*remote, *alternate);
            }
            None => {
                contents.remotes.insert(*remote);
                contents.addresses.insert(*remote.ip());
            }
        }
    }
    contents
}

/// What a table is known by. Rules are numbered anew in every table, tables in all of the namespace
/// (`nf_tables_newrule`, `nf_tables_newtable`): a table that was loaded from a dump of ours has
/// another number, and one that a dump was loaded into has more rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handles {
    pub table: u64,
    pub rules: BTreeSet<u64>,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `NFNL_SUBSYS_NFTABLES` in linux/netfilter/nfnetlink.h: what a batch is for.
const SUBSYSTEM: u16 = 10;
/// Messages in one transaction, at most: begin, five sets and two chains to flush, five sets to fill,
/// end; and the rules about what is quoted.
const TRANSACTION: u32 = 14 + PORTION;
/// Rules about what is quoted that are made in one transaction. It is sent as a whole: together with
/// the sets of 1024 remotes these are some 190 kB, and a socket may send 208 (`net.core.wmem_default`).
const PORTION: u32 = 200;

/// What one of our named counters has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCounter {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Our table, seen over netlink.
pub struct Elements {
    socket: NetlinkSocket,
    table: CString,
    header: Nfgenmsg,
}

impl Elements {
    /// `table` must not hold a NUL byte; the options see to that.
    pub fn in_table(family: Family, table: &str) -> Self {
        let table = CString::new(table.replace('\0', "")).unwrap_or_default();
        let nfgen_family = match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let header = Nfgenmsg { nfgen_family, ..Nfgenmsg::default() };
        Elements { socket: NetlinkSocket::new(), table, header }
    }

    /// The numbers of the table and all rules in it; none when there is no such table.
    pub fn handles(&mut self) -> io::Result<Handles> {
        let mut request = Request::new().op_gettable_do(&self.header);
        request.encode().push_name(&self.table);
        let table = match self.socket.request(&request)?.recv_one() {
            Ok((_, table)) => table.get_handle().unwrap_or(0),
            Err(e) if is_absent(e.as_io_error()) => return Ok(Handles::default()),
            Err(e) => return Err(e.into()),
        };
        let mut request = Request::new().op_getrule_dump(&self.header);
        request.encode().push_table(&self.table);
        let mut replies = self.socket.request(&request)?;
        let mut rules = BTreeSet::new();
        while let Some(reply) = replies.recv() {
            match reply {
                Ok((_, rule)) => rules.extend(rule.get_handle()),
                Err(e) if is_absent(e.as_io_error()) => return Ok(Handles::default()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Handles { table, rules })
    }

    /// The remotes that are let in; `None` when the sets contradict each other.
    pub fn admitted(&mut self) -> io::Result<Option<BTreeSet<Admitted>>> {
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
        };
        let direct =
            found.remotes.iter().map(|remote| Admitted { remote: *remote, alternate: None });
        let alternate = found
            .alternates
            .iter()
            .map(|(remote, alternate)| Admitted { remote: *remote, alternate: Some(*alternate) });
        let admitted: BTreeSet<_> = direct.chain(alternate).collect();
        Ok(Some(admitted).filter(|admitted| elements(admitted) == found))
    }

    fn dump<T, C: FromIterator<T>>(
        &mut self,
        set: &str,
        read: impl Fn(&IterableSetelemAttrs<'_>) -> Option<T>,
    ) -> io::Result<C> {
        let mut request = Request::new().op_getsetelem_dump(&self.header);
        request.encode().push_table(&self.table).push_set_bytes(set.as_bytes());
        let mut replies = self.socket.request(&request)?;
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let (_, list) = reply?;
            let Ok(elements) = list.get_elements() else { continue };
            for element in elements {
                if let Ok(SetelemListElemAttrs::Elem(element)) = element {
                    found.extend(read(&element));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Lets exactly these remotes in, in one transaction. Where there are many, some of the rules about
    /// what is quoted follow.
    pub fn admit(&mut self, admitted: &BTreeSet<Admitted>) -> io::Result<()> {
        let table = self.table.clone();
        let wanted = elements(admitted);
        let quoted = quoted::rules(&wanted);
        let mut portions = quoted.chunks(PORTION as usize);
        let mut batch = self.begin();
        for chain in quoted::CHAINS {
            // Without a handle this means all of them (`nf_tables_delrule`).
            batch
                .request()
                .op_delrule_do(&self.header)
                .encode()
                .push_table(&table)
                .push_chain_bytes(chain.as_bytes());
        }
        self.add_rules(&mut batch, portions.next().unwrap_or_default());
        let remotes = |remotes: &BTreeSet<SocketAddrV4>| -> Vec<_> {
            remotes.iter().map(|remote| (remote_key(*remote).to_vec(), None)).collect()
        };
        let addresses = |addresses: &BTreeSet<Ipv4Addr>| -> Vec<_> {
            addresses.iter().map(|address| (address.octets().to_vec(), None)).collect()
        };
        let alternate = |(remote, alternate): (&SocketAddrV4, &Ipv4Addr)| {
            (remote_key(*remote).to_vec(), Some(*alternate))
        };
        let sets = [
            (SET_REMOTES, remotes(&wanted.remotes)),
            (SET_ADDRESSES, addresses(&wanted.addresses)),
            (SET_ALTERNATES, wanted.alternates.iter().map(alternate).collect()),
            (SET_KNOWN, remotes(&wanted.known)),
            (SET_KNOWN_ADDRESSES, addresses(&wanted.known_addresses)),
        ];
        for (set, elements) in sets {
            // Without elements this means all of them (`nf_tables_delsetelem`).
            batch
                .request()
                .op_delsetelem_do(&self.header)
                .encode()
                .push_table(&table)
                .push_set_bytes(set.as_bytes());
            if elements.is_empty() {
                continue;
            }
            let mut list = add_to(&mut batch, &self.header, &table, set);
            for (key, data) in elements {
                list = push_element(list, &key, data);
            }
        }
        self.commit(batch)?;
        for portion in portions {
            let mut batch = self.begin();
            self.add_rules(&mut batch, portion);
            self.commit(batch)?;
        }
        Ok(())
    }

    fn add_rules(&self, batch: &mut Chained<'static>, rules: &[QuotedRule]) {
        for rule in rules {
            let mut message = batch.request().set_create().set_append().op_newrule_do(&self.header);
            rule.push(message.encode(), &self.table);
        }
    }

    pub fn delete_table(&mut self) -> io::Result<()> {
        let table = self.table.clone();
        let mut batch = self.begin();
        batch.request().op_deltable_do(&self.header).encode().push_name(&table);
        self.commit(batch)
    }

    fn begin(&mut self) -> Chained<'static> {
        let mut batch = Chained::new(self.socket.reserve_seq(TRANSACTION));
        batch.request().op_batch_begin_do(&batch_header());
        batch
    }

    fn commit(&mut self, mut batch: Chained<'static>) -> io::Result<()> {
        batch.request().op_batch_end_do(&batch_header());
        let batch = Transaction::of(batch.finalize());
        self.socket.request_chained(&batch)?.recv_all().map_err(io::Error::from)
    }

    /// Our named counters.
    pub fn counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        let mut request = Request::new().op_getobj_dump(&self.header);
        request.encode().push_table(&self.table).push_type(ObjectType::Counter as u32);
        let mut replies = self.socket.request(&request)?;
        let mut counters = Vec::new();
        while let Some(reply) = replies.recv() {
            let (_, object) = match reply {
                Ok(reply) => reply,
                Err(e) if is_absent(e.as_io_error()) => break,
                Err(e) => return Err(e.into()),
            };
            if let (Ok(name), Ok(ObjData::Counter(counter))) =
                (object.get_name(), object.get_data())
            {
                counters.push(RuleCounter {
                    name: name.to_string_lossy().into_owned(),
                    packets: counter.get_packets().unwrap_or(0),
                    bytes: counter.get_bytes().unwrap_or(0),
                });
            }
        }
        Ok(counters)
    }
}

type ElementList<'a> = PushSetelemListElemAttrs<PushSetelemListAttrs<RequestBuf<'a>>>;

/// Starts a message that adds elements to a set; it ends when the list is dropped.
fn add_to<'a>(
    batch: &'a mut Chained<'static>,
    header: &Nfgenmsg,
    table: &CString,
    set: &str,
) -> ElementList<'a> {
    batch
        .request()
        .set_create()
        .op_newsetelem_do(header)
        .into_encoder()
        .push_table(table)
        .push_set_bytes(set.as_bytes())
        .nested_elements()
}

fn push_element<'a>(list: ElementList<'a>, key: &[u8], data: Option<Ipv4Addr>) -> ElementList<'a> {
    let element = list.nested_elem().nested_key().push_value(key).end_nested();
    match data {
        Some(address) => {
            element.nested_data().push_value(&address.octets()).end_nested().end_nested()
        }
        None => element.end_nested(),
    }
}

/// A concatenation: every part takes a whole number of 32-bit words, in network byte order.
fn remote_key(remote: SocketAddrV4) -> [u8; 8] {
    let [a, b, c, d] = remote.ip().octets();
    let [high, low] = remote.port().to_be_bytes();
    [a, b, c, d, high, low, 0, 0]
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

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}
