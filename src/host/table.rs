//! An nftables table, read over netlink without running a program
//! (Documentation/netlink/specs/nftables.yaml).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;

use netlink_bindings::nftables::{Chained, Nfgenmsg, ObjData, ObjectType, Request};
use netlink_socket2::NetlinkSocket;

use super::netlink::Lists;
use super::transaction::Transaction;
use crate::engine::host::Family;

/// The numbers that identify a table, and what makes its rules act. Rules are numbered within their table,
/// tables within the namespace (`nf_tables_newrule`, `nf_tables_newtable`): a table that was loaded from a
/// dump of this one has another number, and one that a dump was loaded into has more rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handles {
    pub table: u64,
    pub rules: BTreeSet<u64>,
    pub acting: Acting,
}

/// When rules act, and what becomes of a packet that none of them is about. Somebody can change this and leave
/// all rules in their place: the table becomes dormant, or a chain has another policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acting {
    /// `NFTA_TABLE_FLAGS` in linux/netfilter/nf_tables.h.
    flags: u32,
    chains: BTreeSet<BaseChain>,
}

/// A chain that packets enter from a hook.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct BaseChain {
    name: CString,
    /// `NFTA_HOOK_HOOKNUM`
    hook: u32,
    priority: i32,
    /// `NF_DROP` or `NF_ACCEPT` in linux/netfilter.h.
    policy: u32,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `NFNL_SUBSYS_NFTABLES` in linux/netfilter/nfnetlink.h: the subsystem that a batch is for.
const SUBSYSTEM: u16 = 10;
/// A named counter of the table, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCounter {
    pub name: String,
    pub packets: u64,
    pub bytes: u64,
}

/// One table of one tunnel.
pub struct Table {
    socket: NetlinkSocket,
    pub(crate) name: CString,
    pub(crate) header: Nfgenmsg,
}

impl Table {
    /// `name` must not contain a NUL byte; the options see to that.
    pub fn new(family: Family, name: &str) -> Self {
        let name = CString::new(name.replace('\0', "")).unwrap_or_default();
        let nfgen_family = match family {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        };
        let header = Nfgenmsg { nfgen_family, ..Nfgenmsg::default() };
        Table { socket: NetlinkSocket::new(), name, header }
    }

    /// The names of all tables of this family.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn names(&mut self) -> io::Result<Vec<String>> {
        let request = Request::new().op_gettable_dump(&self.header);
        Lists::NETFILTER.read(&request, |names: &mut Vec<_>, (_, table)| {
            names.extend(table.get_name().map(|name| name.to_string_lossy().into_owned()));
            Ok(())
        })
    }

    /// The numbers of the table and of all rules in it, and what makes them act; empty when there is no such
    /// table.
    pub fn handles(&mut self) -> io::Result<Handles> {
        let mut request = Request::new().op_gettable_do(&self.header);
        request.encode().push_name(&self.name);
        let (table, flags) = match self.socket.request(&request)?.recv_one() {
            Ok((_, table)) => (table.get_handle().unwrap_or(0), table.get_flags().unwrap_or(0)),
            Err(e) if is_absent(e.as_io_error()) => return Ok(Handles::default()),
            Err(e) => return Err(e.into()),
        };
        let mut request = Request::new().op_getrule_dump(&self.header);
        request.encode().push_table(&self.name);
        type Read = (BTreeSet<u64>, BTreeSet<CString>);
        let read = Lists::NETFILTER.read(&request, |(rules, names): &mut Read, (_, rule)| {
            rules.extend(rule.get_handle());
            names.extend(rule.get_chain().map(CString::from));
            Ok(())
        });
        let (rules, names) = match read {
            Err(e) if is_absent(&e) => return Ok(Handles::default()),
            read => read?,
        };
        let mut chains = BTreeSet::new();
        for name in names {
            chains.extend(self.base_chain(name)?);
        }
        Ok(Handles { table, rules, acting: Acting { flags, chains } })
    }

    /// A chain of the table, unless only rules lead into it. A list would have those of all tables.
    fn base_chain(&mut self, name: CString) -> io::Result<Option<BaseChain>> {
        let mut request = Request::new().op_getchain_do(&self.header);
        request.encode().push_table(&self.name).push_name(&name);
        let mut replies = self.socket.request(&request)?;
        let (_, chain) = match replies.recv_one() {
            Ok(reply) => reply,
            Err(e) if is_absent(e.as_io_error()) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(chain.get_hook().ok().map(|hook| BaseChain {
            hook: hook.get_num().unwrap_or(0),
            priority: hook.get_priority().unwrap_or(0),
            policy: chain.get_policy().unwrap_or(0),
            name,
        }))
    }

    /// The number of the last transaction of all programs in this namespace (`NFTA_GEN_ID`); `None`: this kernel
    /// does not tell. The kernel counts each that changes something (`nf_tables_commit`).
    pub(crate) fn generation(&mut self) -> Option<u32> {
        let request = Request::new().op_getgen_do(&self.header);
        let mut replies = self.socket.request(&request).ok()?;
        let (_, generation) = replies.recv_one().ok()?;
        generation.get_id().ok()
    }

    /// Removes the table and everything in it.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn delete(&mut self) -> io::Result<()> {
        let mut batch = self.begin(1);
        batch.request().op_deltable_do(&self.header).encode().push_name(&self.name);
        self.commit(batch)
    }

    /// Starts a transaction of at most `most` messages.
    pub(crate) fn begin(&mut self, most: u32) -> Chained<'static> {
        let mut batch = Chained::new(self.socket.reserve_seq(most + 2)); // its begin and its end
        batch.request().op_batch_begin_do(&batch_header());
        batch
    }

    /// Ends a transaction: the kernel carries out all of it, or nothing.
    pub(crate) fn commit(&mut self, mut batch: Chained<'static>) -> io::Result<()> {
        batch.request().op_batch_end_do(&batch_header());
        let batch = Transaction::of(batch.finalize());
        self.socket.request_chained(&batch)?.recv_all().map_err(io::Error::from)
    }

    /// The named counters.
    pub fn counters(&mut self) -> io::Result<Vec<RuleCounter>> {
        let mut request = Request::new().op_getobj_dump(&self.header);
        request.encode().push_table(&self.name).push_type(ObjectType::Counter as u32);
        let read = Lists::NETFILTER.read(&request, |counters: &mut Vec<_>, (_, object)| {
            if let (Ok(name), Ok(ObjData::Counter(counter))) =
                (object.get_name(), object.get_data())
            {
                counters.push(RuleCounter {
                    name: name.to_string_lossy().into_owned(),
                    packets: counter.get_packets().unwrap_or(0),
                    bytes: counter.get_bytes().unwrap_or(0),
                });
            }
            Ok(())
        });
        match read {
            Err(e) if is_absent(&e) => Ok(Vec::new()),
            counters => counters,
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}
