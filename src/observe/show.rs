//! `ipipou show` for people: a table of tunnels, and everything about one.

use std::fmt::Write as _;

use super::peers;
use super::status::{FastPathStatus, ProcessStatus, TunnelStatus, Unreachable};
use super::text::{WIDTH, age, bytes, duration, without_middle};

/// An address is never shortened below this, whatever else is in its line.
const LEAST_REMOTE: usize = 12;

const REMOTE: &str = "REMOTE";

/// A column: its heading, and whether only `--wide` shows it.
const COLUMNS: [(&str, bool); 12] = [
    ("INTERFACE", false),
    ("ROLE", false),
    ("DATAPATH", false),
    ("STATE", false),
    ("LOCAL", true),
    (REMOTE, false),
    ("INNER", true),
    ("LAST AUTH", false),
    ("RX", false),
    ("TX", false),
    ("ACCEPTED", true),
    ("REFUSED", true),
];

/// The table, with one line for each tunnel, and below it what is wrong with them. `now` is Unix time.
/// Unless it is `wide`, no line has more than 100 columns: in an address that is too long for that, the
/// middle is left out.
pub fn table(processes: &[ProcessStatus], now: u64, wide: bool) -> String {
    let mut rows = vec![COLUMNS.map(|(heading, _)| heading.to_owned())];
    let mut notes = String::new();
    for process in processes {
        let refused: u64 = process.rejected.values().sum();
        for tunnel in &process.tunnels {
            rows.push([
                tunnel.interface.clone(),
                process.role.clone(),
                process.datapath.clone(),
                state(tunnel).to_owned(),
                or_dash(tunnel.local.as_deref()),
                remote(tunnel),
                format!("{} > {}", tunnel.inner, tunnel.inner_peer),
                last_authentication(tunnel, now),
                bytes(tunnel.rx_bytes),
                bytes(tunnel.tx_bytes),
                process.accepted.to_string(),
                refused.to_string(),
            ]);
            let said = [why_not_connected(tunnel, now), unreachable(tunnel, now)];
            for note in said.into_iter().flatten() {
                let _ = writeln!(notes, "{}: {note}", tunnel.interface);
            }
        }
    }
    let rows: Vec<Vec<_>> = rows.into_iter().map(|row| shown(row, wide)).collect();
    lines(rows, wide) + &notes
}

/// The cells of a row that are shown, each with its heading.
fn shown(row: [String; COLUMNS.len()], wide: bool) -> Vec<(&'static str, String)> {
    let cells = COLUMNS.into_iter().zip(row);
    cells
        .filter(|((_, of_wide), _)| wide || !of_wide)
        .map(|((name, _), cell)| (name, cell))
        .collect()
}

fn lines(mut rows: Vec<Vec<(&str, String)>>, wide: bool) -> String {
    const GAP: usize = 2;
    let columns = rows.first().map_or(0, Vec::len);
    let length = |cell: &str| cell.chars().count();
    let width = |rows: &[Vec<(&str, String)>], column: usize| {
        rows.iter().map(|row| length(&row[column].1)).max().unwrap_or_default()
    };
    let others = |name: &str| name != REMOTE;
    let taken: usize = (0..columns)
        .filter(|&column| others(rows[0][column].0))
        .map(|column| width(&rows, column) + GAP)
        .sum();
    let room = if wide { usize::MAX } else { WIDTH.saturating_sub(taken).max(LEAST_REMOTE) };
    for (_, cell) in rows.iter_mut().flatten().filter(|(name, _)| !others(name)) {
        *cell = without_middle(cell, room);
    }
    let widths: Vec<_> = (0..columns).map(|column| width(&rows, column)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((_, cell), width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  "); // a String takes everything
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Everything about one process, one fact per line.
pub fn details(process: &ProcessStatus, now: u64) -> String {
    let mut text = format!(
        "pid {}, version {}, up {}, {}\naccepted {}, moved {}, sent {}, repaired {}\n",
        process.pid,
        process.version,
        duration(process.uptime),
        datapath(process),
        process.accepted,
        process.moved,
        process.sent,
        process.repaired,
    );
    text.extend(process.fast_path.as_ref().map(fast_path));
    for tunnel in &process.tunnels {
        text.push_str(&addresses(tunnel, now));
    }
    for (reason, count) in process.rejected.iter().filter(|(_, count)| **count > 0) {
        let _ = writeln!(text, "refused {count}: {}", reason.replace('_', " "));
    }
    for (reason, dropped) in process.dropped.iter().filter(|(_, d)| d.packets > 0) {
        let reason = reason.replace('_', " ");
        let _ = writeln!(text, "dropped {}: {reason}", dropped.packets);
    }
    if process.queued_by_others > 0 {
        let _ = writeln!(text, "passed {}: queued by others", process.queued_by_others);
    }
    if let Some(status) = &process.peers {
        text.push_str(&peers::details(status, now));
        text.push_str(&peers::table(status, now));
        return text;
    }
    for remote in process.tunnels.iter().flat_map(|tunnel| tunnel.remotes.iter().flatten()) {
        let networks = remote.networks.join(", ");
        let separator = if networks.is_empty() { "" } else { ": " };
        let _ = writeln!(text, "remote {}{separator}{networks}", remote.remote);
    }
    for learned in &process.learned {
        let silent = duration(learned.silent);
        let _ = writeln!(text, "learned {} at {}, {silent} ago", learned.inner, learned.remote);
    }
    text
}

fn datapath(process: &ProcessStatus) -> String {
    match &process.offloads {
        None => format!("datapath {}, rules {}", process.datapath, process.rules),
        Some(offloads) => format!("datapath {}, offloads {offloads}", process.datapath),
    }
}

fn fast_path(status: &FastPathStatus) -> String {
    let FastPathStatus { uplinks, remotes, why_not } = status;
    match (uplinks.as_slice(), why_not) {
        ([], Some(why_not)) => format!("no fast path: {why_not}\n"),
        ([], None) => String::new(),
        (uplinks, None) => format!("fast path by {}, remotes {remotes}\n", uplinks.join(", ")),
        (uplinks, Some(limit)) => {
            format!("fast path by {}, remotes {remotes}, {limit}\n", uplinks.join(", "))
        }
    }
}

/// The addresses, for which the table has no room.
fn addresses(tunnel: &TunnelStatus, now: u64) -> String {
    let mut text = format!(
        "{}: local {}, remote {}, inside {} > {}\n",
        tunnel.interface,
        or_dash(tunnel.local.as_deref()),
        remote(tunnel),
        tunnel.inner,
        tunnel.inner_peer
    );
    let times = [
        ("authentication sent", tunnel.last_sent),
        ("authentication accepted", tunnel.last_accepted),
        ("data received", tunnel.last_data),
        ("reply received", tunnel.last_reply),
    ];
    for (what, at) in times {
        if let Some(at) = at {
            let _ = writeln!(text, "last {what}: {}", age(now, at));
        }
    }
    text.extend(tunnel.connection.as_ref().map(peers::connection));
    text
}

fn remote(tunnel: &TunnelStatus) -> String {
    match &tunnel.remotes {
        None => or_dash(tunnel.remote.as_deref()),
        Some(remotes) => format!("{} remotes", remotes.len()),
    }
}

fn state(tunnel: &TunnelStatus) -> &'static str {
    match (tunnel.up, tunnel.connected, tunnel.admitted) {
        (false, _, _) => "waiting",
        (true, Some(true), _) => "connected",
        (true, Some(false), _) => "not connected",
        (true, None, true) => "up",
        (true, None, false) => "expired",
    }
}

/// Why a client's tunnel is not connected, as far as that is known.
fn why_not_connected(tunnel: &TunnelStatus, now: u64) -> Option<String> {
    if !tunnel.up || tunnel.connected != Some(false) {
        return None;
    }
    if let Some(why) = tunnel.connection.as_ref().and_then(|connection| connection.why.clone()) {
        return Some(why);
    }
    let remote = or_dash(tunnel.remote.as_deref());
    Some(match (tunnel.unanswered, tunnel.last_data.max(tunnel.last_reply)) {
        (Some(seconds), Some(at)) => format!(
            "packets go out for {} and none come back; the last came {}",
            duration(seconds),
            age(now, at)
        ),
        _ => format!(
            "nothing has come back from {remote} yet: an idle tunnel is silent, so try a ping"
        ),
    })
}

/// What routers and hosts say about the path to the remote.
fn unreachable(tunnel: &TunnelStatus, now: u64) -> Option<String> {
    let Unreachable { what, by, at } = tunnel.unreachable.as_ref()?;
    let by = by.as_deref().unwrap_or("somebody");
    Some(format!("{what}, says {by}, {}", age(now, *at)))
}

/// When a server accepted a packet, or a client sent one: a client does not know more.
fn last_authentication(tunnel: &TunnelStatus, now: u64) -> String {
    match (tunnel.last_accepted, tunnel.last_sent) {
        (Some(at), _) => age(now, at),
        (None, Some(at)) => format!("sent {}", age(now, at)),
        (None, None) => "-".to_owned(),
    }
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::observe::status::SCHEMA;

    /// A process whose cells are all as long as they can be.
    fn widest(interface: &str, remote: &str) -> ProcessStatus {
        let tunnel = TunnelStatus {
            interface: interface.to_owned(),
            up: true,
            local: Some(remote.to_owned()),
            alternate: None,
            remote: Some(remote.to_owned()),
            remotes: None,
            admitted: true,
            inner: "255.255.255.254".to_owned(),
            inner_peer: "255.255.255.253".to_owned(),
            inner6: None,
            last_authentication: Some(1),
            last_accepted: None,
            last_sent: Some(1),
            last_data: Some(1),
            last_reply: None,
            unreachable: Some(Unreachable {
                what: "destination unreachable".to_owned(),
                by: Some("2001:db8:1111:2222:3333:4444:5555:6666".to_owned()),
                at: 1,
            }),
            connected: Some(false),
            unanswered: Some(119),
            connection: None,
            rx_bytes: 1_022_000,
            rx_packets: 1,
            tx_bytes: 1_022_000,
            tx_packets: 1,
        };
        ProcessStatus {
            schema: SCHEMA,
            version: String::new(),
            tunnel: String::new(),
            interface: String::new(),
            local: None,
            public_key: None,
            offloads_used: Vec::new(),
            fast_path: None,
            started: 0,
            pid: 1,
            role: "server".to_owned(),
            datapath: "kernel".to_owned(),
            offloads: None,
            uptime: 0,
            rules: String::new(),
            tunnels: vec![tunnel],
            accepted: u64::MAX,
            moved: 0,
            sent: 0,
            repaired: 0,
            rejected: BTreeMap::new(),
            dropped: BTreeMap::new(),
            queued_by_others: 0,
            learned: Vec::new(),
            peers: None,
        }
    }

    #[test]
    fn a_line_has_a_hundred_columns_at_most() {
        const V6: &str = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
        for (interface, remote) in [
            ("ipipou0", "255.255.255.255:65535"),
            ("fifteen-bytes-x", "255.255.255.255:65535"),
            ("fifteen-bytes-x", V6),
        ] {
            let process = widest(interface, remote);
            let shown = table(std::slice::from_ref(&process), 120, false);
            for line in shown.lines() {
                assert!(line.chars().count() <= WIDTH, "{}: {line}", line.chars().count());
            }
            assert!(shown.contains("5535  sent 119s ago"), "the port is there: {shown}");
            assert!(table(&[process], 120, true).contains(&format!(" {remote}  255.255")));
        }
        let usual = table(&[widest("ipipou0", "203.0.113.200:52011")], 120, false);
        assert!(usual.contains(" 203.0.113.200:52011 "), "nothing is cut: {usual}");
    }

    #[test]
    fn a_client_shows_whether_its_server_answers() {
        let mut process = widest("ipipou0", "203.0.113.1:10000");
        let shown = table(std::slice::from_ref(&process), 121, false);
        assert!(shown.contains(" not connected "), "{shown}");
        assert!(
            shown.contains("ipipou0: packets go out for 119s and none come back; the last came")
        );
        process.tunnels[0].unanswered = None;
        process.tunnels[0].last_reply = Some(100);
        process.tunnels[0].unanswered = Some(11);
        process.tunnels[0].last_data = None;
        let shown = table(std::slice::from_ref(&process), 121, false);
        assert!(shown.contains("none come back; the last came 21s ago"), "{shown}");
        process.tunnels[0].unanswered = None;
        process.tunnels[0].last_reply = None;
        let shown = table(std::slice::from_ref(&process), 121, false);
        assert!(shown.contains("nothing has come back from 203.0.113.1:10000 yet"), "{shown}");
        assert!(
            shown.contains("ipipou0: destination unreachable, says 2001:db8:1111:2222:3333:4444:"),
            "{shown}"
        );
        process.tunnels[0].unreachable = None;
        process.tunnels[0].connected = Some(true);
        let shown = table(std::slice::from_ref(&process), 121, false);
        assert!(shown.contains(" connected ") && shown.lines().count() == 2, "{shown}");
        assert!(shown.contains(" sent 2m ago "), "{shown}");
        process.tunnels[0].last_accepted = Some(120);
        let shown = table(&[process], 121, false);
        assert!(shown.contains(" 1s ago "), "{shown}");
    }
}
