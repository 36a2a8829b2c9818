//! Finds out whether a UDP port is free, and which process uses it.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use crate::engine::config::DeviceName;

/// The user of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortUser {
    Process {
        pid: u32,
        name: String,
    },
    /// No process that can be seen: the kernel, for one.
    Unseen,
}

/// Binds the port and closes it again, to see whether it can be had.
///
/// # Errors
/// `AddrInUse` when it is taken.
pub fn probe_port(at: SocketAddr, device: Option<&DeviceName>) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(device.map(|device| device.as_str().as_bytes()))?;
    socket.bind(&at.into())
}

/// The process that uses a port of this address, as far as /proc tells.
pub fn user_of_port(at: SocketAddr) -> PortUser {
    let table = if at.is_ipv4() { "udp" } else { "udp6" };
    // An IPv6 socket that is not limited to IPv6 may use the port of an IPv4 address too.
    let tables = [table, "udp6"].map(|table| format!("/proc/self/net/{table}"));
    let texts = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    let inodes: Vec<u64> = texts
        .flat_map(|text| text.lines().filter_map(|l| inode(l, at)).collect::<Vec<_>>())
        .collect();
    inodes.into_iter().find_map(owner).unwrap_or(PortUser::Unseen)
}

/// The inode of a socket, from a line of /proc/net/udp (proc_net(5)), if it has this port and this
/// address or the unspecified one.
fn inode(line: &str, at: SocketAddr) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let any = address.bytes().all(|digit| digit == b'0');
    let same_port = u16::from_str_radix(port, 16) == Ok(at.port());
    (same_port && (any || is_same(address, at.ip()))).then(|| words.nth(7)?.parse().ok())?
}

/// The kernel prints each 32 bits of an address as a number in this machine's byte order.
fn is_same(hex: &str, address: IpAddr) -> bool {
    let words = |bytes: &[u8]| -> String {
        let words = bytes.as_chunks::<4>().0.iter();
        words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
    };
    match address {
        IpAddr::V4(v4) if hex.len() == 8 => hex == words(&v4.octets()),
        IpAddr::V4(v4) => hex == words(&v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => hex == words(&v6.octets()),
    }
}

/// The process that has a socket open, if it can be seen.
fn owner(inode: u64) -> Option<PortUser> {
    let link = format!("socket:[{inode}]");
    let has_it = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to.as_os_str() == &*link)
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbered = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    });
    let (pid, path) = numbered.find(|(_, path)| has_it(path))?;
    let name = fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
    Some(PortUser::Process { pid, name })
}

impl fmt::Display for PortUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortUser::Process { pid, name } => write!(f, "{name}, process {pid}"),
            PortUser::Unseen => f.write_str("another program or FOU listener"),
        }
    }
}

/// What to do about a port that cannot be had, for a person.
pub fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => {
            "the UDP port is in use by another program or FOU listener; see `ss -lunp` and \
             `ip fou show`, or choose another port with -b :PORT"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "the address is not one of this host's; see `ip addr`".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_user_of_a_port_is_found() {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = socket.local_addr().unwrap();
        let PortUser::Process { pid, .. } = user_of_port(at) else { panic!("not found") };
        assert_eq!(pid, std::process::id());
        assert_eq!(probe_port(at, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let elsewhere = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), at.port());
        assert_eq!(user_of_port(elsewhere), PortUser::Unseen);
        assert!(probe_port(elsewhere, None).is_ok());
    }

    #[test]
    fn a_socket_of_both_families_is_found() {
        let Ok(socket) = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)) else {
            return; // a kernel without IPv6
        };
        let port = socket.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let at = SocketAddr::new(address.parse().unwrap(), port);
            assert!(matches!(user_of_port(at), PortUser::Process { .. }), "{address}");
        }
    }
}
