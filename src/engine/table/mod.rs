//! The table of a tunnel with many peers: which inner addresses are behind which remote.
//!
//! ```json
//! {"nodes": {
//!     "192.168.100.2": {"host": "vps2.example.org", "port": 7777},
//!     "10.7.0.0/16": {"host": "203.0.113.9"},
//!     "fd00::2": {"host": "2001:db8::1"}
//! }}
//! ```
//!
//! A key is an inner address or a prefix, a host is an address or a name; without a port it is the
//! tunnel's own. Fields that begin with `_` are comments; any other unknown field is a mistake.
//!
//! A table with one mistake is not used at all: half a table sends packets astray silently. At the
//! start the program ends; later the last good table stays. A name that cannot be looked up is not a
//! mistake: its node alone is left out, and the name is looked up again.

mod error;
mod json;
pub mod nodes;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::ser::{Serialize, Serializer};

use crate::engine::config::{HostName, is_host_name};
pub use error::{NodeError, TableError};
use error::{json_error, line_at, shortened};
use json::{Written, line_of, read};

/// The most bytes that a table may have; those who read one stop there. With 18 bytes for the shortest
/// node, a table has fewer than 65,536 nodes.
pub const MAX_SIZE: usize = 1 << 20;

/// A table without mistakes: no two prefixes overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostTable(Vec<Entry>); // by `inner`

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    inner: IpNet,
    host: HostName,
    port: Option<NonZeroU16>,
}

/// Inner addresses, and the remote they are behind, its name looked up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// An address, as a prefix of full length, or a network behind the node.
    pub inner: IpNet,
    /// The outer address and UDP port that it is reached at.
    pub remote: SocketAddr,
}

impl HostTable {
    /// Reads a table.
    ///
    /// # Errors
    /// The first mistake, and where it is.
    pub fn parse(text: &[u8]) -> Result<Self, TableError> {
        let text = str::from_utf8(text)
            .map_err(|e| TableError::NotUtf8 { line: line_at(text, e.valid_up_to()) })?;
        let written = read(text, None).map_err(|e| json_error(&e))?;
        let wrong = |i: usize, fault| {
            let key = shortened(&written[i].0);
            TableError::Node { line: line_of(text, i), key, fault }
        };
        let mut entries = Vec::with_capacity(written.len());
        for (i, (key, node)) in written.iter().enumerate() {
            let entry = entry(key, node).map_err(|fault| wrong(i, fault))?;
            entries.push((entry, i));
        }
        // A prefix now stands before those that are in it, and one of them is next to it.
        entries.sort_by_key(|(entry, i)| (entry.inner, *i));
        for pair in entries.windows(2) {
            let [(one, i), (other, j)] = pair else { continue };
            let (first, later) = (*i.min(j), *i.max(j));
            if one.inner == other.inner {
                return Err(wrong(later, NodeError::Twice { first: line_of(text, first) }));
            }
            if one.inner.contains(&other.inner) {
                let (other, line) = (shortened(&written[first].0), line_of(text, first));
                return Err(wrong(later, NodeError::Overlaps { other, line }));
            }
        }
        Ok(HostTable(entries.into_iter().map(|(entry, _)| entry).collect()))
    }

    /// Inner addresses and the host they are behind.
    pub fn hosts(&self) -> impl Iterator<Item = (IpNet, &HostName)> {
        self.0.iter().map(|entry| (entry.inner, &entry.host))
    }

    /// The names that have to be looked up, each once.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0
            .iter()
            .filter_map(|entry| match &entry.host {
                HostName::Address(_) => None,
                HostName::Name(name) => Some(name.as_str()),
            })
            .collect()
    }

    /// How many remotes there are at most: two names may have one address.
    pub fn remotes(&self) -> usize {
        let remotes: BTreeSet<_> = self.0.iter().map(|e| (e.host.to_string(), e.port)).collect();
        remotes.len()
    }

    /// The nodes whose host has an address, sorted by inner addresses.
    pub fn resolve(
        &self,
        default_port: NonZeroU16,
        address_of: impl Fn(&HostName) -> Option<IpAddr>,
    ) -> Vec<Node> {
        let node = |entry: &Entry| {
            let port = entry.port.unwrap_or(default_port).get();
            let remote = SocketAddr::new(address_of(&entry.host)?, port);
            Some(Node { inner: entry.inner, remote })
        };
        self.0.iter().filter_map(node).collect()
    }
}

/// The form that [`HostTable::parse`] reads.
impl Serialize for HostTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([("nodes", Nodes(&self.0))])
    }
}

struct Nodes<'a>(&'a [Entry]);

impl Serialize for Nodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|entry| {
            let host = entry.host.to_string();
            (Inner(entry.inner).to_string(), Written { host, port: entry.port })
        }))
    }
}

/// One address without its length, a prefix with it.
pub struct Inner(pub IpNet);

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

fn entry(key: &str, written: &Written) -> Result<Entry, NodeError> {
    Ok(Entry { inner: inner(key)?, host: host(&written.host)?, port: written.port })
}

fn inner(key: &str) -> Result<IpNet, NodeError> {
    let inner = match key.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => key.parse().map_err(|_| NodeError::NotAPrefix)?,
    };
    if inner != inner.trunc() {
        return Err(NodeError::HostBits(inner.trunc()));
    }
    let one = inner.prefix_len() == inner.max_prefix_len();
    match inner.addr().is_multicast() || one && !is_unicast(inner.addr()) {
        true => Err(NodeError::NotUnicast),
        false => Ok(inner),
    }
}

/// An address of one host, or a name (RFC 1123; underscores are common, so they pass).
fn host(text: &str) -> Result<HostName, NodeError> {
    let wrong = || NodeError::NotAHost(shortened(text));
    if let Ok(address) = text.parse::<IpAddr>() {
        return is_unicast(address).then_some(HostName::Address(address)).ok_or_else(wrong);
    }
    if let Some(Ok(port)) = text.rsplit_once(':').map(|(_, port)| port.parse()) {
        return Err(NodeError::PortInHost(shortened(text), port));
    }
    if !is_host_name(text) {
        return Err(wrong());
    }
    Ok(HostName::Name(text.to_owned()))
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn table(nodes: &str) -> Result<HostTable, String> {
        let text = format!("{{\"nodes\": {{\n{nodes}\n}}}}");
        HostTable::parse(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_prefixes_names_and_comments() {
        let nodes = r#""10.7.0.0/16": {"host": "203.0.113.9"},
            "fd00::2": {"host": "2001:db8::1", "_since": [2026]},
            "192.168.100.2": {"host": "vps2.example.org", "port": 7777},
            "10.8.0.0\/16": {"host": "vps2.example.org"}"#;
        let table = table(nodes).unwrap();
        assert_eq!(table.names(), BTreeSet::from(["vps2.example.org"]));
        let port = NonZeroU16::new(10000).unwrap();
        let nodes = table.resolve(port, |host| match host {
            HostName::Address(address) => Some(*address),
            HostName::Name(_) => Some(Ipv4Addr::new(198, 51, 100, 2).into()),
        });
        let nodes: Vec<_> =
            nodes.iter().map(|n| format!("{} {}", Inner(n.inner), n.remote)).collect();
        assert_eq!(
            nodes,
            [
                "10.7.0.0/16 203.0.113.9:10000",
                "10.8.0.0/16 198.51.100.2:10000",
                "192.168.100.2 198.51.100.2:7777",
                "fd00::2 [2001:db8::1]:10000",
            ]
        );
        let known = table.resolve(port, HostName::address);
        assert_eq!(known.len(), 2);
        let empty = HostTable::parse(br#"{"_by": "me", "nodes": {}}"#);
        assert_eq!(empty, Ok(HostTable::default()));
        let example = include_bytes!("../../../etc/ipipou/hosts.json");
        assert_eq!(HostTable::parse(example).unwrap().hosts().count(), 3);
    }

    #[test]
    fn a_mistake_in_a_node_is_named_with_its_line() {
        for (nodes, message) in [
            (
                "\"10.0.0.1\": {\"host\": \"a\"},\n\n\"10.0.0.1/32\": {\"host\": \"b\"}",
                r#"4: node "10.0.0.1/32" is there twice (first in line 2)"#,
            ),
            (
                "\"10.1.2.3\" :\n{\"host\": \"a\"},\n\"10.1.0.0/16\": {\"host\": \"b\"}",
                r#"4: node "10.1.0.0/16" overlaps "10.1.2.3" of line 2"#,
            ),
            (
                r#""10.0.0.1/8": {"host": "a"}"#,
                r#"2: node "10.0.0.1/8" has bits set behind its prefix length: write "10.0.0.0/8""#,
            ),
            (r#""vps2": {"host": "a"}"#, r#"2: node "vps2" is neither an IP address nor a prefix"#),
            (
                r#""224.0.0.0/4": {"host": "a"}"#,
                r#"2: node "224.0.0.0/4" holds no addresses that a host can have"#,
            ),
            (
                r#""10.0.0.1": {"host": "203.0.113.300"}"#,
                "2: node \"10.0.0.1\" has the host \"203.0.113.300\", which is neither an address \
                 of one host nor a name",
            ),
            (
                r#""10.0.0.1": {"host": "vps2:7777"}"#,
                r#"2: node "10.0.0.1" has the host "vps2:7777": write the port as "port": 7777"#,
            ),
            (r#""10.0.0.1": {"hots": "a"}"#, r#"2:19: unknown field "hots""#),
            (r#""10.0.0.1": {"port": 1}"#, "2:23: missing field `host`"),
            (
                r#""10.0.0.1": {"host": "a", "port": 65536}"#,
                "2:39: invalid value: integer `65536`, expected a port (1..65535)",
            ),
            (r#""10.0.0.1": {"host": "a", "host": "b"}"#, "2:38: duplicate field `host`"),
            (r#""10.0.0.1": {"host": "a"},"#, "3:1: trailing comma"),
        ] {
            assert_eq!(table(nodes), Err(message.to_owned()), "{nodes}");
        }
    }

    #[test]
    fn a_mistake_around_the_nodes_is_named_with_its_line() {
        for (text, message) in [
            (&b""[..], "1:0: EOF while parsing a value"),
            (b"[]", "1:0: invalid type: sequence, expected a table: {\"nodes\": {…}}"),
            (b"{}", "1:2: missing field `nodes`"),
            (b"{\"nodes\": {},\n \"nods\": {}}", "2:7: unknown field \"nods\""),
            (b"{\"nodes\": {},\n \"nodes\": {}}", "2:13: duplicate field `nodes`"),
            (b"{\"nodes\": {}} {}", "1:15: trailing characters"),
            (b"{\"nodes\":\n{\"\xff\"", "2: this is not UTF-8"),
        ] {
            let error = HostTable::parse(text).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    /// Any table; of nodes that overlap, the first is kept.
    fn any_table() -> impl Strategy<Value = HostTable> {
        let v4 = (any::<u32>(), 8..=32u8)
            .prop_map(|(ip, length)| IpNet::new(Ipv4Addr::from(ip).into(), length).unwrap());
        let v6 = (any::<u128>(), 8..=128u8)
            .prop_map(|(ip, length)| IpNet::new(IpAddr::V6(ip.into()), length).unwrap());
        let inner = prop_oneof![v4, v6].prop_map(|net| net.trunc());
        let host = prop_oneof![
            "[a-z][a-z0-9_-]{0,20}(\\.[a-z]{2,5}){0,3}\\.?",
            any::<IpAddr>().prop_map(|ip| ip.to_string()),
        ];
        let host = host.prop_filter_map("hosts only", |text| super::host(&text).ok());
        let entry = (inner, host, any::<Option<NonZeroU16>>())
            .prop_map(|(inner, host, port)| Entry { inner, host, port });
        prop::collection::vec(entry, 0..20).prop_map(|entries| {
            let mut kept: Vec<Entry> = Vec::new();
            for entry in entries {
                let apart =
                    |k: &Entry| !k.inner.contains(&entry.inner) && !entry.inner.contains(&k.inner);
                if super::inner(&entry.inner.to_string()).is_ok() && kept.iter().all(apart) {
                    kept.push(entry);
                }
            }
            kept.sort_by_key(|entry| entry.inner);
            HostTable(kept)
        })
    }

    proptest! {
        #[test]
        fn a_table_printed_and_read_is_the_same(table in any_table()) {
            let text = serde_json::to_vec_pretty(&table).unwrap();
            prop_assert_eq!(HostTable::parse(&text), Ok(table));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = HostTable::parse(&bytes);
        }

        #[test]
        fn no_text_like_a_table_makes_it_panic(
            text in r#"(\{"nodes":\{)?([\{\}\[\],:\n \\]|"(host|port|_|1\.2\.3\.4|::/0)"|7)*\}?\}?"#
        ) {
            if let Err(error) = HostTable::parse(text.as_bytes()) {
                let error = error.to_string();
                prop_assert!(!error.contains('\n') && error.len() < 1000, "{error}");
            }
        }

        #[test]
        fn overlaps_are_found(table in any_table(), pick: prop::sample::Index) {
            prop_assume!(!table.0.is_empty());
            let mut value = serde_json::to_value(&table).unwrap();
            let one = table.0[pick.index(table.0.len())].inner;
            // A prefix that is one bit shorter holds it.
            let Some(wider) = one.supernet().filter(|w| super::inner(&w.to_string()).is_ok()) else {
                return Ok(());
            };
            value["nodes"][wider.to_string()] = serde_json::json!({"host": "a"});
            let error = HostTable::parse(value.to_string().as_bytes()).unwrap_err();
            let overlaps = matches!(
                error, TableError::Node { fault: NodeError::Overlaps { .. }, .. }
            );
            prop_assert!(overlaps, "{error}");
        }
    }
}
