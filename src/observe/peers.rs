//! The part of `ipipou show` about the peers of a server whose peers are named in files, and about
//! a client's connection to such a server.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::text::{WIDTH, age, bytes, duration, without_middle};

/// One peer. Field names are part of the interface; fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub name: String,
    /// Its ed25519 key in base64.
    pub public_key: Option<String>,
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
    /// Microseconds there and back, where they are known.
    #[serde(default)]
    pub rtt_us: Option<u64>,
    /// How often its remote changed in this session.
    pub moves: u64,
    /// Unix time at which it may not come in any more.
    pub expires: Option<u64>,
    /// Where it is named: file and line.
    pub file: String,
    pub note: Option<String>,
    /// What came from it and went to it in this session, as inner packets; `null` while it is not
    /// connected.
    #[serde(default)]
    pub rx_bytes: Option<u64>,
    #[serde(default)]
    pub rx_packets: Option<u64>,
    #[serde(default)]
    pub tx_bytes: Option<u64>,
    #[serde(default)]
    pub tx_packets: Option<u64>,
    /// The last hello of it that was refused, since this process started.
    #[serde(default)]
    pub last_refusal: Option<RefusalStatus>,
}

/// Why a peer was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalStatus {
    /// Unix time.
    pub at: u64,
    /// In words.
    pub why: String,
}

/// The last reading of the files of peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Unix time.
    pub at: u64,
    /// Whether they had no mistake. If they had one, the counts are those of the last time without.
    #[serde(default = "yes")]
    pub ok: bool,
    /// The mistakes, a line each.
    #[serde(default)]
    pub errors: Vec<String>,
    pub added: usize,
    pub changed: usize,
    pub removed: usize,
    pub untouched: usize,
}

/// A process that is older than this field had no mistake to tell of.
fn yes() -> bool {
    true
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
    /// The servers of `-r` in their order, where there are several.
    #[serde(default)]
    pub servers: Vec<ServerStatus>,
}

/// One of several servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name or address, and its port, as they are configured.
    pub name: String,
    /// Its outer address and UDP port, as far as its name was looked up.
    pub remote: Option<String>,
    /// Whether it has our data.
    pub in_use: bool,
}

const HEADINGS: [&str; 8] = ["PEER", "STATE", "REMOTE", "ADDRESS", "SEEN", "RTT", "RX", "TX"];

/// Columns that give way when a line is too long: names may have 63 characters, an IPv6 address and port 47.
const GIVE_WAY: [usize; 3] = [0, 2, 3];

/// No column is made narrower than this.
const LEAST: usize = 12;

/// A table of peers, one line for each, at most 100 columns wide. `now` is Unix time.
pub fn table(status: &PeersStatus, now: u64) -> String {
    const GAP: usize = 2;
    let rows: Vec<_> = std::iter::once(HEADINGS.map(str::to_owned))
        .chain(status.peers.iter().map(|peer| row(peer, now)))
        .collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let mut widths: [usize; 8] = std::array::from_fn(width);
    let room = WIDTH - GAP * (HEADINGS.len() - 1);
    while widths.iter().sum::<usize>() > room {
        let widest = GIVE_WAY.into_iter().max_by_key(|&column| widths[column]);
        match widest.filter(|&column| widths[column] > LEAST) {
            Some(column) => widths[column] -= 1,
            None => break,
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{:<width$}  ", without_middle(cell, width)); // a String takes all
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(peer: &PeerStatus, now: u64) -> [String; 8] {
    let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    [
        peer.name.clone(),
        peer.state.clone(),
        or_dash(peer.remote.clone()),
        peer.addresses.join(","),
        or_dash(peer.last_hello.map(|at| age(now, at))),
        or_dash(peer.rtt_us.map(milliseconds)),
        or_dash(peer.rx_bytes.map(bytes)),
        or_dash(peer.tx_bytes.map(bytes)),
    ]
}

fn milliseconds(us: u64) -> String {
    match us {
        0..=99_949 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        99_950.. => format!("{} ms", us / 1000),
    }
}

/// Everything about one peer, one fact per line.
pub fn one(peer: &PeerStatus, now: u64) -> String {
    let mut text = format!("{}: {}\n", peer.name, peer.state);
    text += &match &peer.public_key {
        Some(key) => format!("public key {key}\n"),
        None => "a token, sent in the clear\n".to_owned(),
    };
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
    say("round trip", peer.rtt_us.map(milliseconds));
    let carried = |size: Option<u64>, packets: Option<u64>| {
        Some(format!("{} in {} packets", bytes(size?), packets?))
    };
    say("received", carried(peer.rx_bytes, peer.rx_packets));
    say("sent", carried(peer.tx_bytes, peer.tx_packets));
    let refusal = peer.last_refusal.as_ref();
    say("refused", refusal.map(|refused| format!("{}: {}", age(now, refused.at), refused.why)));
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
    if let Some(ReloadStatus { at, ok: false, errors, .. }) = &status.reload {
        let at = age(now, *at);
        let _ = writeln!(text, "the files of peers had mistakes {at}, and nothing was taken:");
        text.extend(errors.iter().map(|error| format!("  {error}\n")));
    }
    if let Some(ReloadStatus { at, ok: true, errors: _, added, changed, removed, untouched }) =
        &status.reload
    {
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
        let _ = writeln!(text, "round trip {}", milliseconds(rtt));
    }
    if let Some(seen) = &status.seen_as {
        let _ = writeln!(text, "seen by the server at {seen}");
    }
    if !status.servers.is_empty() {
        let server = |server: &ServerStatus| match server.in_use {
            true => format!("{} (in use)", server.name),
            false => server.name.clone(),
        };
        let servers: Vec<_> = status.servers.iter().map(server).collect();
        let _ = writeln!(text, "servers: {}", servers.join(", "));
    }
    if !status.inner.is_empty() {
        let _ = writeln!(text, "inside, the server has us at {}", status.inner.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, remote: &str, address: &str) -> PeerStatus {
        PeerStatus {
            name: name.to_owned(),
            public_key: Some(String::new()),
            state: "connected".to_owned(),
            protocol: 2,
            remote: Some(remote.to_owned()),
            addresses: vec![address.to_owned()],
            routes: Vec::new(),
            since: Some(1),
            last_hello: Some(1),
            lease_until: Some(2),
            rtt_us: Some(999_000),
            moves: 0,
            expires: None,
            file: String::new(),
            note: None,
            rx_bytes: Some(1_022_000),
            rx_packets: Some(1),
            tx_bytes: Some(u64::MAX),
            tx_packets: Some(1),
            last_refusal: None,
        }
    }

    fn shown(peers: Vec<PeerStatus>) -> String {
        let status = PeersStatus {
            public_key: String::new(),
            reload: None,
            by_state: BTreeMap::new(),
            hellos: BTreeMap::new(),
            peers,
        };
        table(&status, 120)
    }

    #[test]
    fn a_line_has_a_hundred_columns_at_most_and_is_cut_only_for_that() {
        const V6: &str = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        let long = "a-name-that-has-as-many-characters-as-any-may-have-which-is-63";
        let text = shown(vec![peer(long, V6, V6), peer("anna", "192.0.2.7:4000", "10.8.0.7")]);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{}: {line}", line.chars().count());
        }
        assert!(text.contains("5535  "), "the port is there: {text}");
        let usual = shown(vec![peer("anna-and-bob-home", "203.0.113.200:52011", "10.8.120.7")]);
        let line = usual.lines().nth(1).unwrap();
        assert_eq!(
            line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>(),
            [
                "anna-and-bob-home",
                "connected",
                "203.0.113.200:52011",
                "10.8.120.7",
                "119s ago",
                "999 ms",
                "998 KiB",
                "16.0 EiB"
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let away = PeerStatus {
            remote: None,
            last_hello: None,
            rtt_us: None,
            rx_bytes: None,
            tx_bytes: None,
            ..peer("anna", "", "10.8.0.7")
        };
        let text = shown(vec![away]);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["anna", "connected", "-", "10.8.0.7", "-", "-", "-", "-"]);
    }
}
