//! Servers with one client each, as the old program has them, become peers of one server.
//!
//! Their clients stay as they are: each goes on sending the same packets to the same port of the same
//! address, and has the same address inside its tunnel. Whatever would have to change for that is a
//! hindrance, and said with file and line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use toml_edit::{Array, DocumentMut, Item, Key, Table, value};

use super::PeerName;
use super::inside::is_for_hosts;
use crate::auth::{SharedSecret, Token, key_text};
use crate::engine::config::{Outer, TunnelConfig};

/// The shortest lifetime of a peer's authentication.
const SHORTEST: Duration = Duration::from_secs(30);

/// A server with one client, as its own file says it.
#[derive(Debug, Clone)]
pub struct OldServer {
    /// What its client is to be called.
    pub name: PeerName,
    /// What messages call its file.
    pub file: String,
    /// The lines in which options stand last, by their long names.
    pub lines: BTreeMap<&'static str, usize>,
    /// Its end of the tunnel.
    pub tunnel: TunnelConfig,
    /// What its client proves; `None`: nothing.
    pub proof: Option<OldProof>,
    /// How long an authentication is good for; `None`: for ever.
    pub lifetime: Option<Duration>,
}

/// What a client of an old server proves.
#[derive(Debug, Clone)]
pub enum OldProof {
    /// That it has the private half of this key, and the secret.
    Key([u8; 32], Kept<SharedSecret>),
    /// That it has the token.
    Token(Kept<Token>),
}

/// A secret, and the file that it is from, if it has one.
#[derive(Debug, Clone)]
pub struct Kept<T> {
    /// The secret itself.
    pub secret: T,
    /// An absolute path.
    pub file: Option<PathBuf>,
}

/// What is to be written of one peer.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its table.
    pub text: String,
    /// The bytes of its `token-file`, and where that is to be.
    pub token: Option<(PathBuf, Vec<u8>)>,
    /// Files of secrets that are there already.
    pub named: Vec<PathBuf>,
    /// What the operator has to do for its client, or should know.
    pub notes: Vec<String>,
}

impl OldServer {
    /// File and line of the first of these options that stands in the file, as a message begins.
    fn at(&self, options: &[&'static str]) -> String {
        match options.iter().find_map(|option| self.lines.get(option).map(|line| (option, line))) {
            Some((option, line)) => format!("{}:{line}: {option}", self.file),
            None => self.file.clone(),
        }
    }

    fn address(&self) -> Ipv4Addr {
        self.tunnel.inner_peer.addr()
    }

    /// Our UDP port, to which its client sends.
    pub fn port(&self) -> NonZeroU16 {
        self.tunnel.port
    }

    /// Why its client cannot become a peer of the server `hub` as it is, a line each.
    pub fn hindrances(&self, hub: &TunnelConfig) -> Vec<String> {
        let mut found = Vec::new();
        let mut say = |options: &[&'static str], what: String| {
            found.push(format!("{}: {what}", self.at(options)));
        };
        let (old, address) = (&self.tunnel, self.address());
        for option in ["auth-by-remote-ip", "auth-by-remote-port"] {
            if self.lines.contains_key(option) {
                let what = "a peer may be anywhere, what it proves is enough: take the line out if that \
                            will do";
                say(&[option], what.to_owned());
            }
        }
        if self.proof.is_none() {
            let what = "the client proves nothing, and a peer needs a key or a token";
            say(&[], what.to_owned());
        }
        if old.port == hub.port {
            let todo = "give that another one, with `number` or `fou-local-port` in its file";
            let port = old.port;
            let what =
                format!("the port {port} is the one of the server that takes the peers: {todo}");
            say(&["fou-local-port", "number", "queue-number", "fou-local"], what);
        }
        if let Some(what) = looks_elsewhere(&old.outer, &hub.outer) {
            say(&["fou-local", "fou-local-ip", "fou-dev"], what);
        }
        let network = hub.inner_peer.trunc();
        let hosts = |network: Ipv4Net| {
            network.contains(&address) && is_for_hosts(address.into(), IpNet::V4(network))
        };
        if !hosts(network) {
            let what = format!(
                "the client has {address} inside the tunnel, which no host of {network} has, the network \
                 of the server that takes the peers: give that a larger one by `tunl-ip`, or leave this \
                 server alone"
            );
            say(&["tunl-peer-ip", "tunl-ip", "number", "queue-number"], what);
        } else if address == hub.inner {
            let what =
                format!("the client has {address}, the address of the server that takes the peers");
            say(&["tunl-peer-ip", "tunl-ip", "number", "queue-number"], what);
        }
        if old.inner6.is_some() {
            say(&["ip6"], "peers with the old program have no IPv6 inside the tunnel".to_owned());
        }
        if let Some(route) = old.gateway.routes.iter().find(|route| matches!(route, IpNet::V6(_))) {
            say(&["route"], format!("{route}: peers with the old program have IPv4 routes only"));
        }
        if self.lines.contains_key("rp-filter") && old.source_check != hub.source_check {
            let what = "a peer sends from its address and its routes only: take the line out, and give a \
                        `route` for each network behind the client";
            say(&["rp-filter"], what.to_owned());
        }
        let gateway = (&old.gateway, &hub.gateway);
        for (option, is_missing) in [
            ("forward", gateway.0.forward && !gateway.1.forward),
            (
                "masquerade",
                gateway.0.masquerade.is_some() && gateway.0.masquerade != gateway.1.masquerade,
            ),
        ] {
            if is_missing {
                let what = "this is for all peers or for none: write it into the file of the server that \
                            takes the peers, too";
                say(&[option], what.to_owned());
            }
        }
        if old.mtu.is_some_and(|old| hub.mtu.is_none_or(|hub| hub > old)) {
            let what =
                "the server that takes the peers has a larger one: give that the smallest of all";
            say(&["mtu"], what.to_owned());
        }
        if self.lifetime.is_some_and(|lifetime| lifetime < SHORTEST) {
            let what = format!("a peer has at least {} s", SHORTEST.as_secs());
            say(&["auth-lifetime"], what);
        }
        found
    }

    /// What stands in the peers files for it. `beside` is the directory for a file with its token.
    pub fn imported(&self, name: &PeerName, hub: &TunnelConfig, beside: &Path) -> Imported {
        let (mut fields, mut token, mut named) = (Table::new(), None, Vec::new());
        let path = |path: &Path| value(path.display().to_string());
        let many = |values: Vec<String>| match values.as_slice() {
            [one] => value(one.as_str()),
            many => value(many.iter().collect::<Array>()),
        };
        match &self.proof {
            Some(OldProof::Key(key, secret)) => {
                fields.insert("public-key", value(key_text(key)));
                match (&secret.file, std::str::from_utf8(secret.secret.as_bytes())) {
                    (None, Ok(text)) => drop(fields.insert("secret", value(text))),
                    (Some(file), _) => {
                        fields.insert("secret-file", path(file));
                        named.push(file.clone());
                    }
                    (None, Err(_)) => {} // what stands in a `.conf` file is text
                }
            }
            Some(OldProof::Token(Kept { file: Some(file), .. })) => {
                fields.insert("token-file", path(file));
                named.push(file.clone());
            }
            Some(OldProof::Token(Kept { secret, file: None })) => {
                let file = beside.join(format!("{name}.token"));
                fields.insert("token-file", path(&file));
                token = Some((file, in_a_file(secret.as_bytes())));
            }
            None => {}
        }
        fields.insert("address", value(self.address().to_string()));
        fields.insert("old", value(i64::from(self.port().get())));
        if self.tunnel.inner != hub.inner {
            fields.insert("server-address", value(self.tunnel.inner.to_string()));
        }
        let routes = &self.tunnel.gateway.routes;
        if !routes.is_empty() {
            fields.insert("route", many(routes.iter().map(ToString::to_string).collect()));
        }
        if let Some(lifetime) = self.lifetime {
            let seconds = lifetime.as_secs() + u64::from(lifetime.subsec_nanos() > 0);
            fields.insert("lifetime", value(format!("{seconds}s")));
        }
        let head = Key::new(name.as_str());
        let text = format!("# From {}.\n[peer.{}]\n{fields}", self.file, head.display_repr());
        Imported { text, token, named, notes: self.notes(name) }
    }

    fn notes(&self, name: &PeerName) -> Vec<String> {
        let mut notes = Vec::new();
        for (option, what) in [
            ("reply-on-auth-ok", "peers with the old program are not answered"),
            (
                "auth-max-time-discrepancy",
                "clocks are not compared: a packet counts once, and only after those before it",
            ),
        ] {
            if self.lines.contains_key(option) {
                notes.push(format!("{name}: {}: {what}", self.at(&[option])));
            }
        }
        notes
    }
}

/// Why a client that sends to the server `old` may not reach the server `hub`; `None`: it does.
fn looks_elsewhere(old: &Outer, hub: &Outer) -> Option<String> {
    let of = |outer: &Outer| match outer.device() {
        Some(device) => format!("one address of {device}, whichever that is"),
        None => "an address that the routes of the host say".to_owned(),
    };
    let another = "the server that takes the peers listens at another address or interface, where this \
                   client does not look for it";
    match (old.address(), hub.address()) {
        (Some(old), None) => {
            return Some(format!(
                "the client sends to {old}, and the server that takes the peers listens at {}: give \
                 that `fou-local-ip {old}` too",
                of(hub)
            ));
        }
        (None, Some(hub)) => {
            return Some(format!(
                "this server listens at {}, and the server that takes the peers at {hub}: if the client \
                 sends to that, write `fou-local-ip {hub}` into this file too",
                of(old)
            ));
        }
        (old, hub) if old != hub => return Some(another.to_owned()),
        (Some(_), Some(_)) | (None, None) => {}
    }
    match (old.device(), hub.device()) {
        (None, Some(device)) => Some(format!(
            "the server that takes the peers takes packets from {device} alone, and this server from any \
             interface: take `fou-dev` out of its file, or write it into this one too"
        )),
        (Some(old), Some(hub)) if old != hub => Some(another.to_owned()),
        (Some(_) | None, None) | (Some(_), Some(_)) => None,
    }
}

/// A token as its file has it: one newline at the end of the file does not belong to it, nor does a carriage
/// return before that.
fn in_a_file(token: &[u8]) -> Vec<u8> {
    let end: &[u8] = if token.ends_with(b"\r") { b"" } else { b"\n" };
    [token, end].concat()
}

/// The lines that an imported peer needs besides in a file with this text, so that it is let in as before
/// whatever the defaults of that file say. A secret and a lifetime of their own the imported have anyway, or
/// defaults of them do not count for peers with the old program.
pub fn against_defaults(text: &str) -> String {
    const OTHERWISE: [(&str, &str); 3] =
        [("expires", "\"never\""), ("enabled", "true"), ("isolate", "false")];
    let document = text.parse::<DocumentMut>().ok();
    let defaults =
        document.as_ref().and_then(|it| it.get("defaults")).and_then(Item::as_table_like);
    let needed =
        OTHERWISE.iter().filter(|(field, _)| defaults.is_some_and(|it| it.contains_key(field)));
    needed.map(|(field, value)| format!("{field} = {value}\n")).collect()
}

/// What the files have in common that only one peer can have, a line each.
pub fn clashes(servers: &[OldServer]) -> Vec<String> {
    let (mut ports, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    let mut found = Vec::new();
    for server in servers {
        if let Some(other) = ports.insert(server.port(), &server.file) {
            let at = server.at(&["fou-local-port", "number", "queue-number", "fou-local"]);
            found.push(format!("{at}: the port {} is that of {other}, too", server.port()));
        }
        if let Some(other) = addresses.insert(server.address(), &server.file) {
            let at = server.at(&["tunl-peer-ip", "tunl-ip", "number", "queue-number"]);
            let address = server.address();
            found.push(format!("{at}: the client's address {address} is that of {other}, too"));
        }
    }
    found
}

/// The smallest network around the server's address in which all these clients can be, with the server's
/// address, as `tunl-ip` has it; `None`: the one that it has will do, or there is none.
pub fn network_for(servers: &[OldServer], hub: &TunnelConfig) -> Option<Ipv4Net> {
    let addresses: BTreeSet<_> = servers.iter().map(OldServer::address).collect();
    let holds = |network: &Ipv4Net| {
        let has = |address: &Ipv4Addr| {
            network.contains(address) && is_for_hosts((*address).into(), IpNet::V4(network.trunc()))
        };
        addresses.iter().all(has)
    };
    if holds(&hub.inner_peer.trunc()) || addresses.contains(&hub.inner) {
        return None;
    }
    let around = (8..hub.inner_peer.prefix_len()).rev();
    around.filter_map(|length| Ipv4Net::new(hub.inner, length).ok()).find(holds)
}
