//! Checks whether this process alone is bound to an address and port.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether another socket of this namespace is bound to exactly this address and port. Sockets in
/// `ours` do not count.
///
/// # Errors
/// When the kernel does not tell.
pub fn has_another(address: SocketAddr, ours: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let table = match address {
        SocketAddr::V4(_) => "/proc/net/udp",
        SocketAddr::V6(_) => "/proc/net/udp6",
    };
    let own: Vec<u64> = ours.iter().map(|socket| inode(*socket)).collect::<io::Result<_>>()?;
    let text = fs::read_to_string(table)?;
    Ok(holders(&text, address).any(|inode| !own.contains(&inode)))
}

/// The inodes of the sockets in such a table (`udp4_format_sock` in net/ipv4/udp.c) that have this
/// address and port.
fn holders(table: &str, address: SocketAddr) -> impl Iterator<Item = u64> {
    let wanted = text(address);
    table.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let is_wanted = words.nth(1)? == wanted;
        // The columns before it: remote address, state, queues, timer, retransmissions, user, timeout.
        let inode = words.nth(7)?.parse().ok()?;
        is_wanted.then_some(inode)
    })
}

/// An address as the kernel prints it: its 32-bit words in the byte order of memory.
fn text(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let words = bytes.as_chunks().0.iter();
    let words: String = words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
    format!("{words}:{:04X}", address.port())
}

fn inode(socket: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers, of which zero is one.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: one stat is written.
    match unsafe { libc::fstat(socket.as_raw_fd(), &raw mut stat) } {
        0 => Ok(stat.st_ino),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn another_socket_on_the_port_is_found_in_the_kernels_table() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(any).unwrap();
            let address = socket.local_addr().unwrap();
            assert!(has_another(address, &[]).unwrap(), "{address}: somebody has it");
            assert!(!has_another(address, &[socket.as_fd()]).unwrap(), "{address}: we do");
        }
    }
}
