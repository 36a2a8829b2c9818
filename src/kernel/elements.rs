//! The parts of nftables that are wanted often or fast: which remotes are let in, whether our
//! rules are still there, what they counted. Netlink only, no program is run
//! (Documentation/netlink/specs/nftables.yaml).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_bindings::nftables::{
    Chained, IterableDataAttrs, IterableSetelemAttrs, Nfgenmsg, ObjData, ObjectType,
    PushSetelemListAttrs, PushSetelemListElemAttrs, Request, SetelemListElemAttrs,
};
use netlink_bindings::utils::RequestBuf;
use netlink_socket2::NetlinkSocket;

use crate::engine::host::Admitted;

/// (address . port) of remotes whose packets keep our outer address.
pub const SET_REMOTES: &str = "remotes";
/// Addresses of the same remotes.
pub const SET_ADDRESSES: &str = "addresses";
/// (address . port) of remotes whose packets are given a private local address.
pub const SET_PRIVATES: &str = "privates";

const AF_INET: u8 = 2;
/// `NFNL_SUBSYS_NFTABLES` in linux/netfilter/nfnetlink.h: what a batch is for.
const SUBSYSTEM: u16 = 10;
/// Messages in one transaction, at most: begin, three flushes, three additions, end.
const TRANSACTION: u32 = 8;

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
}

impl Elements {
    /// `table` must not hold a NUL byte; the options see to that.
    pub fn in_table(table: &str) -> Self {
        let table = CString::new(table.replace('\0', "")).unwrap_or_default();
        Elements { socket: NetlinkSocket::new(), table }
    }

    /// The handles of all rules in the table; none when there is no such table. A rule that was
    /// replaced, or a table that was made anew, has other handles.
    pub fn rule_handles(&mut self) -> io::Result<BTreeSet<u64>> {
        let mut request = Request::new().op_getrule_dump(&header());
        request.encode().push_table(&self.table);
        let mut replies = self.socket.request(&request)?;
        let mut handles = BTreeSet::new();
        while let Some(reply) = replies.recv() {
            match reply {
                Ok((_, rule)) => handles.extend(rule.get_handle()),
                Err(e) if is_absent(e.as_io_error()) => return Ok(BTreeSet::new()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(handles)
    }

    /// The remotes that are let in.
    pub fn admitted(&mut self) -> io::Result<BTreeSet<Admitted>> {
        let direct = self.dump(SET_REMOTES, |element| {
            Some(Admitted { remote: read_remote(element.get_key().ok()?)?, private: None })
        })?;
        let private = self.dump(SET_PRIVATES, |element| {
            let remote = read_remote(element.get_key().ok()?)?;
            let private = read_address(element.get_data().ok()?)?;
            Some(Admitted { remote, private: Some(private) })
        })?;
        Ok(direct.into_iter().chain(private).collect())
    }

    fn dump<T>(
        &mut self,
        set: &str,
        read: impl Fn(&IterableSetelemAttrs<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut request = Request::new().op_getsetelem_dump(&header());
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
        Ok(found)
    }

    /// Lets exactly these remotes in, in one transaction.
    pub fn admit(&mut self, admitted: &BTreeSet<Admitted>) -> io::Result<()> {
        let table = self.table.clone();
        let mut batch = Chained::new(self.socket.reserve_seq(TRANSACTION));
        batch.request().op_batch_begin_do(&batch_header());
        for set in [SET_REMOTES, SET_ADDRESSES, SET_PRIVATES] {
            // Without elements this means all of them (`nf_tables_delsetelem`).
            batch
                .request()
                .op_delsetelem_do(&header())
                .encode()
                .push_table(&table)
                .push_set_bytes(set.as_bytes());
        }
        let direct = || admitted.iter().filter(|a| a.private.is_none());
        if direct().next().is_some() {
            let mut list = add_to(&mut batch, &table, SET_REMOTES);
            for one in direct() {
                list = push_element(list, &remote_key(one.remote), None);
            }
            let addresses: BTreeSet<_> = direct().map(|one| *one.remote.ip()).collect();
            drop(list);
            let mut list = add_to(&mut batch, &table, SET_ADDRESSES);
            for address in addresses {
                list = push_element(list, &address.octets(), None);
            }
        }
        if admitted.iter().any(|a| a.private.is_some()) {
            let mut list = add_to(&mut batch, &table, SET_PRIVATES);
            for one in admitted {
                if let Some(private) = one.private {
                    list = push_element(list, &remote_key(one.remote), Some(private));
                }
            }
        }
        self.commit(batch)
    }

    pub fn delete_table(&mut self) -> io::Result<()> {
        let table = self.table.clone();
        let mut batch = Chained::new(self.socket.reserve_seq(TRANSACTION));
        batch.request().op_batch_begin_do(&batch_header());
        batch.request().op_deltable_do(&header()).encode().push_name(&table);
        self.commit(batch)
    }

    fn commit(&mut self, mut batch: Chained<'static>) -> io::Result<()> {
        batch.request().op_batch_end_do(&batch_header());
        let batch = batch.finalize();
        self.socket.request_chained(&batch)?.recv_all().map_err(io::Error::from)
    }

    /// Our named counters.
    pub fn counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        let mut request = Request::new().op_getobj_dump(&header());
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
fn add_to<'a>(batch: &'a mut Chained<'static>, table: &CString, set: &str) -> ElementList<'a> {
    batch
        .request()
        .set_create()
        .op_newsetelem_do(&header())
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

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: AF_INET, ..Nfgenmsg::default() }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}
