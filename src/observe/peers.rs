//! What `ipipou show` says of the peers of a server whose peers are named in files, and of a client's
//! conversation with such a server.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::text::{age, duration, without_middle};

/// One peer. Field names are part of the interface; fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    /// Its ed25519 key in base64.
    pub public_key: String,
    /// `connected`, `away` (it was here), `new` (it was never here), `expired` or `disabled`.
    pub state: String,
    /// Version of the control protocol.
    pub protocol: u8,
    /// Its outer address and UDP port, while it is connected.
    pub remote: Option<String>,
    pub addresses: Vec<String>,
    /// The networks behind it.
    pub routes: Vec<String>,
    /// Unix time since which it is connected.
    pub since: Option<u64>,
    /// Unix time of the last hello that was accepted.
    pub last_hello: Option<u64>,
    /// Unix time at which its session ends if it says nothing more.
    pub lease_until: Option<u64>,
    /// How often its remote changed in this session.
    pub moves: u64,
    /// Unix time at which it may not come in any more.
    pub expires: Option<u64>,
    /// Where it is named: file and line.
    pub file: String,
    pub note: Option<String>,
}

/// What the last reading of the files of peers changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Unix time.
    pub at: u64,
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
    pub untouched: usize,
}

/// The peers of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// The server's own ed25519 key in base64, which its clients need.
    pub public_key: String,
    pub reload: Option<ReloadStatus>,
    /// How many peers are in each state.
    pub by_state: BTreeMap<String, usize>,
    /// Hellos, by what became of them.
    pub hellos: BTreeMap<String, u64>,
    pub peers: Vec<PeerStatus>,
}

/// What a client's server has told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Seconds since the server let us in; `null`: it has not.
    pub connected_for: Option<u64>,
    /// Why we are not connected.
    pub why: Option<String>,
    /// Microseconds between a hello and its answer.
    pub rtt_us: Option<u64>,
    /// Our address and port as the server sees them.
    pub seen_as: Option<String>,
    /// Seconds that the server keeps us without another hello.
    pub lease: Option<u64>,
    /// Our inner addresses as the server has them.
    pub inner: Vec<String>,
    /// Bytes of the largest packet inside the server's tunnel.
    pub mtu: Option<u16>,
}

/// A table of peers, one line for each, at most 100 columns wide. `now` is Unix time.
pub fn table(status: &PeersStatus, now: u64) -> String {
    const HEADINGS: [&str; 5] = ["PEER", "STATE", "REMOTE", "ADDRESS", "SEEN"];
    /// A name may have 63 characters, an IPv6 address and port 47.
    const MOST: [usize; 5] = [24, 9, 24, 22, 10];
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(status.peers.iter().map(|peer| {
        [
            peer.name.clone(),
            peer.state.clone(),
            peer.remote.clone().unwrap_or_else(|| "-".to_owned()),
            peer.addresses.join(","),
            peer.last_hello.map_or_else(|| "-".to_owned(), |at| age(now, at)),
        ]
    }));
    let mut widths = [0; 5];
    for row in &mut rows {
        for ((cell, most), width) in row.iter_mut().zip(MOST).zip(&mut widths) {
            *cell = without_middle(cell, most);
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:<width$}  "); // a String takes everything
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Everything about one peer, one fact per line.
pub fn one(peer: &PeerStatus, now: u64) -> String {
    let mut text = format!("{}: {}\npublic key {}\n", peer.name, peer.state, peer.public_key);
    let mut say = |what: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = writeln!(text, "{what} {value}"); // a String takes everything
        }
    };
    say("address", Some(peer.addresses.join(", ")));
    say("route", Some(peer.routes.join(", ")));
    say("remote", peer.remote.clone());
    say("connected since", peer.since.map(|at| age(now, at)));
    say("moved", (peer.moves > 0).then(|| format!("{} times", peer.moves)));
    say("last hello", peer.last_hello.map(|at| age(now, at)));
    let left = |at: u64| format!("in {}", duration(at.saturating_sub(now)));
    say("lease ends", peer.lease_until.map(left));
    say("expires", peer.expires.map(|at| if at > now { left(at) } else { age(now, at) }));
    say("note", peer.note.clone());
    say("from", Some(peer.file.clone()));
    text
}

/// Everything about the peers of one server but the table of them.
pub fn details(status: &PeersStatus, now: u64) -> String {
    let mut text = format!("public key {}\n", status.public_key);
    let states = status.by_state.iter().filter(|(_, count)| **count > 0);
    let states: Vec<_> = states.map(|(state, count)| format!("{count} {state}")).collect();
    let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
    let _ = writeln!(text, "peers: {states}");
    if let Some(ReloadStatus { at, added, changed, removed, untouched }) = &status.reload {
        let _ = writeln!(
            text,
            "peers read {}: {added} added, {changed} changed, {removed} removed, {untouched} untouched",
            age(now, *at)
        );
    }
    for (what, count) in status.hellos.iter().filter(|(_, count)| **count > 0) {
        let _ = writeln!(text, "hellos {}: {count}", what.replace('_', " "));
    }
    text
}

/// Everything that a client's server told it.
pub fn connection(status: &ConnectionStatus) -> String {
    let mut text = match (&status.why, status.connected_for) {
        (Some(why), _) => format!("not connected: {why}\n"),
        (None, Some(seconds)) => format!("connected for {}\n", duration(seconds)),
        (None, None) => "not connected yet\n".to_owned(),
    };
    if let Some(rtt) = status.rtt_us {
        let (ms, us) = (rtt / 1000, rtt % 1000);
        let _ = writeln!(text, "round trip {ms}.{:01} ms", us / 100);
    }
    if let Some(seen) = &status.seen_as {
        let _ = writeln!(text, "seen by the server at {seen}");
    }
    if !status.inner.is_empty() {
        let _ = writeln!(text, "inside, the server has us at {}", status.inner.join(", "));
    }
    text
}
