//! Keeps the sessions of a server with the userspace datapath for the next process: in memory that the service
//! manager holds, like the interface and the socket (memfd_create(2), `FileDescriptorStoreMax=` in
//! systemd.service(5)). Nothing of it is on the disk.
//!
//! A header, then a record of 64 bytes for each session, at any place; numbers in network byte order:
//!
//! | bytes | what |
//! |---|---|
//! | 2 | 0: no record; 4, 6: the family of the address |
//! | 2 | UDP port |
//! | 4 | scope of an IPv6 address (`sin6_scope_id`) |
//! | 16 | address, IPv4 in the last four |
//! | 32 | digest of the keys and the secret ([`crate::auth::keys_digest`]) |
//! | 8 | end of the lease, in nanoseconds of CLOCK_BOOTTIME |

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

use crate::engine::ResumableSession;
use crate::engine::control::PeerId;
use crate::tun;

/// The last byte is the version.
const HEADER: [u8; RECORD] = {
    let mut header = [0; RECORD];
    let (name, mut at) = (b"ipipou\0\x02", 0);
    while at < name.len() {
        header[at] = name[at];
        at += 1;
    }
    header
};
const RECORD: usize = 64;
/// More than this many bytes are not read.
const MOST: u64 = 1 << 26;

/// What the next process is to find of the sessions of this one.
#[derive(Default)]
pub enum Keeping {
    /// Nothing yet.
    #[default]
    NotYet,
    /// All of them.
    All(SessionFile),
    /// Nothing until the host is read again, because they could not be kept.
    Failed,
}

/// The sessions of this process, where the next one finds them.
pub struct SessionFile {
    file: File,
    /// Where the record of each peer is.
    places: HashMap<PeerId, u64>,
    /// Places whose record is gone.
    free: Vec<u64>,
    /// The first place that never had a record.
    end: u64,
}

/// The sessions that an earlier process left; none where it left nothing that can be read.
pub fn read(file: OwnedFd) -> Vec<ResumableSession> {
    let file = File::from(file);
    let size = file.metadata().map(|data| data.len()).unwrap_or_default();
    let mut bytes = vec![0; usize::try_from(size.min(MOST)).unwrap_or_default()];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return Vec::new();
    }
    let (records, _) = bytes.as_chunks();
    match records.split_first() {
        Some((&HEADER, records)) => records.iter().filter_map(session).collect(),
        Some(_) | None => Vec::new(),
    }
}

impl SessionFile {
    /// An empty one, of which the service manager does not know yet.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memory()?);
        file.write_all_at(&HEADER, 0)?;
        Ok(SessionFile { file, places: HashMap::new(), free: Vec::new(), end: 1 })
    }

    /// Has the service manager keep it, in place of one of before.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn store(&self) -> io::Result<()> {
        tun::keep_sessions(Some(self.file.as_fd()))
    }

    /// Notes the session that a peer has now.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn note(&mut self, id: PeerId, session: Option<&ResumableSession>) -> io::Result<()> {
        let place = match (session, self.places.get(&id)) {
            (_, Some(place)) => *place,
            (None, None) => return Ok(()),
            (Some(_), None) => self.free.pop().unwrap_or_else(|| {
                self.end += 1;
                self.end - 1
            }),
        };
        match session {
            Some(_) => drop(self.places.insert(id, place)),
            None => {
                self.places.remove(&id);
                self.free.push(place);
            }
        }
        let record = session.map_or_else(|| vec![0; RECORD], record);
        self.file.write_all_at(&record, place * RECORD as u64)
    }
}

/// Memory that nobody can execute, which is all that `vm.memfd_noexec=2` permits. Linux before 6.3 does not know
/// the flag.
fn memory() -> rustix::io::Result<OwnedFd> {
    let name = "ipipou-sessions";
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC),
        made => made,
    }
}

fn record(session: &ResumableSession) -> Vec<u8> {
    let ResumableSession { keys, remote, until } = session;
    let (family, scope, address) = match remote {
        SocketAddr::V4(v4) => (4u16, 0, v4.ip().to_ipv6_compatible().octets()),
        SocketAddr::V6(v6) => (6, v6.scope_id(), v6.ip().octets()),
    };
    let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
    let mut record = Vec::with_capacity(RECORD);
    record.extend(family.to_be_bytes());
    record.extend(remote.port().to_be_bytes());
    record.extend(scope.to_be_bytes());
    record.extend(address);
    record.extend(keys);
    record.extend(until.to_be_bytes());
    record
}

fn session(record: &[u8; RECORD]) -> Option<ResumableSession> {
    let (family, rest) = record.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let (scope, rest) = rest.split_first_chunk()?;
    let (address, rest) = rest.split_first_chunk()?;
    let (keys, rest) = rest.split_first_chunk()?;
    let (until, _) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    let v6 = Ipv6Addr::from(*address);
    let remote = match u16::from_be_bytes(*family) {
        4 => SocketAddr::new(IpAddr::V4(v4(v6)), port),
        6 => SocketAddrV6::new(v6, port, 0, u32::from_be_bytes(*scope)).into(),
        _ => return None,
    };
    Some(ResumableSession {
        keys: *keys,
        remote,
        until: Duration::from_nanos(u64::from_be_bytes(*until)),
    })
}

/// An IPv4 address at the end of an IPv6 one.
fn v4(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn file(file: &SessionFile) -> OwnedFd {
        file.file.as_fd().try_clone_to_owned().unwrap()
    }

    fn sorted(mut sessions: Vec<ResumableSession>) -> Vec<ResumableSession> {
        sessions.sort_by_key(|session| session.remote);
        sessions
    }

    fn any_session() -> impl Strategy<Value = ResumableSession> {
        let remote = prop_oneof![
            any::<(Ipv4Addr, u16)>().prop_map(SocketAddr::from),
            any::<(Ipv6Addr, u16, u32)>()
                .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip, port, 0, scope).into()),
        ];
        (any::<[u8; 32]>(), remote, any::<u64>()).prop_map(|(keys, remote, until)| {
            ResumableSession { keys, remote, until: Duration::from_nanos(until) }
        })
    }

    proptest! {
        /// Whatever begins, moves and ends: what is read is what each peer has last.
        #[test]
        fn the_next_process_reads_what_the_last_one_noted(
            changes in proptest::collection::vec((0u32..9, proptest::option::of(any_session())), 0..40)
        ) {
            let mut kept = SessionFile::new().unwrap();
            let mut now = HashMap::new();
            for (peer, session) in changes {
                kept.note(PeerId(peer), session.as_ref()).unwrap();
                now.insert(peer, session);
            }
            let now = now.into_values().flatten().collect();
            prop_assert_eq!(sorted(read(file(&kept))), sorted(now));
            // Places are used again.
            prop_assert!(kept.file.metadata().unwrap().len() <= 10 * RECORD as u64);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let kept = SessionFile::new().unwrap();
            kept.file.write_all_at(&bytes, RECORD as u64).unwrap();
            read(file(&kept));
            kept.file.write_all_at(&bytes, 0).unwrap();
            read(file(&kept));
        }
    }

    /// Where the kernel can have it so, since Linux 6.3.
    #[test]
    fn nobody_can_execute_what_is_kept() {
        let is_known = memfd_create("known", MemfdFlags::NOEXEC_SEAL).is_ok();
        let mode = SessionFile::new().unwrap().file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, if is_known { 0 } else { 0o111 });
    }

    #[test]
    fn a_file_of_another_version_is_not_read() {
        let mut kept = SessionFile::new().unwrap();
        let remote = "192.0.2.1:1000".parse().unwrap();
        let session = ResumableSession { keys: [7; 32], remote, until: Duration::from_secs(9) };
        kept.note(PeerId(1), Some(&session)).unwrap();
        assert_eq!(read(file(&kept)), [session]);
        kept.file.write_all_at(&[1], 7).unwrap();
        assert_eq!(read(file(&kept)), []);
    }
}
