//! What `ipipou show` shows: JSON for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One process and its tunnels. Field names are part of the interface; fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub version: String,
    pub pid: u32,
    /// `server` or `client`.
    pub role: String,
    /// `kernel`, or `tun` when this process carries the packets.
    pub datapath: String,
    /// The offloads in use, when the datapath is `tun`.
    pub offloads: Option<String>,
    /// Seconds since the start.
    pub uptime: u64,
    /// `installed`, `missing`, or `unavailable` on a client without nftables.
    pub rules: String,
    pub tunnels: Vec<TunnelStatus>,
    /// Authentication packets that were accepted.
    pub accepted: u64,
    /// Times a tunnel moved to another remote address or port.
    pub moved: u64,
    /// Authentication packets and replies that were sent.
    pub sent: u64,
    /// Things that had gone missing on the host and were put back.
    pub repaired: u64,
    /// Authentication packets that were refused, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Packets that the rules dropped in the kernel, by reason (none with `--no-nft-counter`), or
    /// that the userspace datapath did.
    pub dropped: BTreeMap<String, Dropped>,
    /// Inner addresses that were learned (`--learn`).
    pub learned: Vec<Learned>,
}

/// An inner address that was learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    pub inner: String,
    pub remote: String,
    /// Seconds since it was last heard of.
    pub silent: u64,
}

/// A remote of a tunnel with many ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatus {
    pub remote: String,
    /// Inner addresses behind it, as far as a table says.
    pub networks: Vec<String>,
}

/// One tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelStatus {
    pub interface: String,
    pub up: bool,
    /// Our outer address and UDP port, `null` while the interface has none.
    pub local: Option<String>,
    /// The private local address, while another tunnel holds the outer one.
    pub private: Option<String>,
    /// The other end's outer address and UDP port, `null` while it is not known.
    pub remote: Option<String>,
    /// All remotes of a tunnel with many ends.
    pub remotes: Option<Vec<RemoteStatus>>,
    /// Whether data from the remote is let in.
    pub admitted: bool,
    pub inner: String,
    pub inner_peer: String,
    pub inner6: Option<String>,
    /// Unix time: accepted by a server, sent by a client.
    pub last_authentication: Option<u64>,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

/// Packets that were dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    pub packets: u64,
    /// Counted in the kernel's datapath only.
    pub bytes: Option<u64>,
}

const HEADINGS: [&str; 12] = [
    "INTERFACE",
    "ROLE",
    "DATAPATH",
    "STATE",
    "LOCAL",
    "REMOTE",
    "INNER",
    "LAST AUTH",
    "RX",
    "TX",
    "ACCEPTED",
    "REFUSED",
];

/// The table, one line a tunnel. `now` is Unix time.
pub fn table(processes: &[ProcessStatus], now: u64) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
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
                tunnel.last_authentication.map_or_else(|| "-".to_owned(), |at| age(now, at)),
                bytes(tunnel.rx_bytes),
                bytes(tunnel.tx_bytes),
                process.accepted.to_string(),
                refused.to_string(),
            ]);
        }
    }
    let mut widths = [0; HEADINGS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
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

/// Everything about one process, a line each.
pub fn details(process: &ProcessStatus) -> String {
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
    for (reason, count) in &process.rejected {
        let _ = writeln!(text, "refused {count}: {}", reason.replace('_', " "));
    }
    for (reason, dropped) in process.dropped.iter().filter(|(_, d)| d.packets > 0) {
        let reason = reason.replace('_', " ");
        let _ = writeln!(text, "dropped {}: {reason}", dropped.packets);
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

fn remote(tunnel: &TunnelStatus) -> String {
    match &tunnel.remotes {
        None => or_dash(tunnel.remote.as_deref()),
        Some(remotes) => format!("{} remotes", remotes.len()),
    }
}

fn state(tunnel: &TunnelStatus) -> &'static str {
    match (tunnel.up, tunnel.admitted) {
        (true, true) => "up",
        (true, false) => "expired",
        (false, _) => "waiting",
    }
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn age(now: u64, at: u64) -> String {
    format!("{} ago", duration(now.saturating_sub(at)))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        172_800.. => format!("{}d", seconds / 86400),
    }
}

/// Powers of 1024, as `ip -s -h` with IEC units has them.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(duration(119), "119s");
        assert_eq!(duration(7200), "2h");
    }
}
