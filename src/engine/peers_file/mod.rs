//! The peers files of a server: who its peers are, and what is wrong with what was written of them.
//!
//! ```toml
//! [defaults]                               # for the peers of this file
//! lifetime = "3m"
//!
//! [peer.anna-router]
//! public-key = "6uHIeTtVl8Sz9JDnasMRcsQ5aQ+O4UFCu4UaYfmknw4="
//! address = ["10.8.0.7", "fd00:8::7"]      # her own addresses inside the tunnel
//! route = "192.168.7.0/24"                 # networks behind her
//! expires = 2027-01-31                     # until the end of that day, UTC
//! ```
//!
//! All files of a server are one set, and a set with one mistake is not used at all: a peer that is left
//! out silently is looked for elsewhere. So that nobody has to mend them one by one, every mistake of
//! every file is found at once. Peers that are disabled or have expired count like all others: what they
//! have is kept for them.

mod clashes;
mod document;
pub mod edit;
mod entry;
mod fault;
mod field;
pub mod import;
mod inside;
mod key;
mod lines;
mod name;
mod peer;
pub mod pool;
mod reader;
pub mod removal;
mod secrets;
mod settings;
mod syntax;
mod value;

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::auth::SharedSecret;
use peer::Draft;
use reader::Findings;
use secrets::Secrets;

pub use entry::{OldPeer, OldProof, Origin, PeerEntry, Speaks};
pub use fault::Fault;
pub use name::{NameError, PeerName};

/// The text of a file, wiped when dropped: it may hold secrets.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SourceFile {
    /// What messages call it: its path.
    #[zeroize(skip)]
    pub name: String,
    /// All of it.
    pub text: String,
}

/// What the files are held against, and what they may leave out.
pub struct Context<'a> {
    /// The server's public key (RFC 8032), if it has one: no peer has the same.
    pub own_public_key: Option<[u8; 32]>,
    /// The server's UDP port, which no peer with the old program has for itself.
    pub port: Option<NonZeroU16>,
    /// The server's address inside the tunnel.
    pub inner: Ipv4Addr,
    /// The network inside the tunnel, which the peers' addresses are from.
    pub network: Ipv4Net,
    /// The server's IPv6 address inside the tunnel, with the network that the peers' are from.
    pub inner6: Option<Ipv6Net>,
    /// The secret of the peers that have none of their own.
    pub default_secret: &'a SharedSecret,
    /// Reads all bytes of a `secret-file`, whose path is absolute; or says in half a sentence why it
    /// cannot. Each path is asked for once.
    pub read_secret: &'a dyn Fn(&Path) -> Result<Vec<u8>, String>,
}

/// Peers that go together: no two have the same name, key or addresses.
#[derive(Debug, Clone, Default)]
pub struct PeerSet {
    peers: Vec<PeerEntry>, // by name
}

impl PeerSet {
    /// The peers, sorted by name.
    pub fn peers(&self) -> &[PeerEntry] {
        &self.peers
    }

    /// The peers, sorted by name, to keep.
    pub fn into_peers(self) -> Vec<PeerEntry> {
        self.peers
    }

    /// The peer of that name.
    pub fn get(&self, name: &PeerName) -> Option<&PeerEntry> {
        let at = self.peers.binary_search_by(|peer| peer.name.cmp(name)).ok()?;
        self.peers.get(at)
    }

    /// Those of which `keep` returns something, as it returns them. Their names stay as they are.
    pub fn filter_map(self, keep: impl FnMut(PeerEntry) -> Option<PeerEntry>) -> Self {
        PeerSet { peers: self.peers.into_iter().filter_map(keep).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

/// The most peers of a server.
const MOST_PEERS: usize = 32_768;

/// The most peers with the old program: each has a tunnel of its own.
const MOST_OLD: usize = 64;

/// Reads all files of a server. No file, or none with a peer in it, is an empty set.
///
/// # Errors
/// Every mistake of all files, sorted by file and line.
pub fn parse(files: &[SourceFile], context: &Context) -> Result<PeerSet, Vec<Fault>> {
    let (mut secrets, mut findings) = (Secrets::new(context.read_secret), Findings::default());
    let mut drafts = Vec::new();
    for file in files {
        drafts.extend(document::read(file, context, &mut secrets, &mut findings));
    }
    let Findings { mut faults, keys } = findings;
    key::check(keys, &mut faults);
    let drafts = clashes::names(drafts, &mut faults);
    clashes::keys(&drafts, &mut faults);
    clashes::ranges(&drafts, &mut faults);
    clashes::ports(&drafts, &mut faults);
    clashes::isolation(&drafts, &mut faults);
    clashes::server_addresses(&drafts, &mut faults);
    let too_many = |draft: &Draft, what: String| Fault {
        file: draft.origin.file.to_string(),
        line: draft.origin.line,
        peers: vec![draft.name.clone()],
        what,
        todo: "give the others a server of their own".to_owned(),
    };
    if let Some(draft) = drafts.get(MOST_PEERS) {
        faults.push(too_many(draft, format!("there are more than {MOST_PEERS} peers")));
    }
    if let Some(draft) = drafts.iter().filter(|draft| draft.old.is_some()).nth(MOST_OLD) {
        let what = format!("there are more than {MOST_OLD} peers with the old program");
        faults.push(too_many(draft, what));
    }
    if !faults.is_empty() {
        faults.sort();
        return Err(faults);
    }
    let entry = |draft| entry(draft, context.default_secret);
    let mut peers: Vec<PeerEntry> = drafts.into_iter().filter_map(entry).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(PeerSet { peers })
}

/// The peer of a draft without faults: it has a key, or a token.
fn entry(draft: Draft, default_secret: &SharedSecret) -> Option<PeerEntry> {
    let Draft {
        name,
        origin,
        key,
        token,
        old,
        server_address,
        addresses,
        routes,
        settings,
        own_lifetime,
        note,
    } = draft;
    let speaks = match (key, token, old) {
        (Some(key), _, None) => Speaks::Hellos(key.value),
        (key, token, Some(port)) => Speaks::Old(OldPeer {
            port: port.value,
            server_address: server_address.map(|address| address.value),
            proof: match token {
                Some(token) => OldProof::Token(token),
                None => OldProof::Key(key?.value),
            },
            lifetime: own_lifetime,
        }),
        (None, _, None) => return None,
    };
    Some(PeerEntry {
        name,
        speaks,
        addresses: addresses.into_iter().map(|address| address.value).collect(),
        routes: routes.into_iter().map(|route| route.value).collect(),
        secret: settings.secret(default_secret).clone(),
        lease: settings.lease(),
        expires: settings.expires(),
        enabled: settings.enabled(),
        isolate: settings.isolate(),
        note,
        origin,
    })
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SourceFile({}, {} bytes)", self.name, self.text.len())
    }
}
