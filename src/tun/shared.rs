//! The state that the threads of the userspace datapath share.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use super::device::Interface;
use super::drops::{Drops, Reason};
use super::lanes::{Inlet, Lane};
use super::path::Paths;
use super::socket::{UdpSocket, Word};
use super::table::Forwarding;
use super::wake::{self, Wake};
use super::{lock, read, unreachable, write};

/// The state that the threads share.
pub(super) struct Shared {
    pub(super) forwarding: RwLock<Forwarding>,
    /// Counts the changes of `forwarding`.
    pub(super) generation: AtomicU64,
    /// Whether it is known what is to be forwarded; nothing is read before that.
    pub(super) open: AtomicBool,
    pub(super) interface: RwLock<Option<Arc<Interface>>>,
    pub(super) socket: RwLock<Option<Arc<UdpSocket>>>,
    pub(super) control: Inlet,
    pub(super) drops: Drops,
    /// How many packets of admitted remotes were not data.
    pub(super) answers: AtomicU64,
    pub(super) paths: Paths,
    pub(super) unreachable: Mutex<unreachable::Last>,
    /// Numbers the datagrams that were fragmented; it begins anywhere.
    pub(super) fragmented: AtomicU16,
    pub(super) stopping: AtomicBool,
    /// Wakes the reader of the socket: there is another socket, another interface, or the end.
    pub(super) changed: Wake,
}

impl Shared {
    /// The state of a datapath without interface and socket, which passes control packets to `control`.
    ///
    /// # Errors
    /// Too many open files.
    pub(super) fn new(control: Inlet) -> io::Result<Self> {
        Ok(Shared {
            forwarding: RwLock::default(),
            generation: AtomicU64::new(0),
            open: AtomicBool::new(false),
            interface: RwLock::new(None),
            socket: RwLock::new(None),
            control,
            drops: Drops::new(),
            answers: AtomicU64::new(0),
            paths: Paths::default(),
            unreachable: Mutex::default(),
            fragmented: AtomicU16::new(anything()),
            stopping: AtomicBool::new(false),
            changed: Wake::new()?,
        })
    }

    pub(super) fn forwarding(&self) -> RwLockReadGuard<'_, Forwarding> {
        read(&self.forwarding)
    }

    /// Changes what is forwarded. `change` returns whether it changed anything.
    pub(super) fn change_forwarding(&self, change: impl FnOnce(&mut Forwarding) -> bool) {
        if change(&mut write(&self.forwarding)) {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn interface(&self) -> Option<Arc<Interface>> {
        read(&self.interface).clone()
    }

    pub(super) fn socket(&self) -> Option<Arc<UdpSocket>> {
        read(&self.socket).clone()
    }

    /// Notes that the interface was deleted, unless there is a new one already.
    pub(super) fn interface_gone(&self, gone: &Arc<Interface>) {
        gone.give_up();
        let mut interface = write(&self.interface);
        if interface.as_ref().is_some_and(|interface| Arc::ptr_eq(interface, gone)) {
            *interface = None;
            // The reader of the socket holds a queue open as well.
            self.changed.wake();
        }
    }

    /// Reads what the kernel and routers say about packets that were sent.
    pub(super) fn read_errors(&self, socket: &UdpSocket) {
        socket.read_errors(|word| {
            let word = match word {
                Word::TooLong(word) => word,
                Word::Unreachable(word) => {
                    if self.forwarding().is_remote(word.to) {
                        *lock(&self.unreachable) = Some((word, wake::now()));
                    }
                    return;
                }
            };
            let is_remote = self.forwarding().is_remote(word.to);
            if let Some(mtu) = self.paths.note(&word, is_remote, wake::now()) {
                tracing::warn!(
                    "somebody says that the path to {} takes packets of {} bytes only; that is not \
                     believed, as anybody can say so: if large packets do not pass, give --mtu {mtu}",
                    word.to,
                    word.mtu
                );
            }
        });
    }

    pub(super) fn pass_control(&self, lane: Lane, from: SocketAddr, payload: &[u8]) {
        if !self.control.put(lane, from, payload) {
            self.drops.add(Reason::ControlOverflow, 1);
        }
    }
}

/// A number that nobody can predict.
fn anything() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}
