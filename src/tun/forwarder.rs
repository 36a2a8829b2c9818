//! The threads of the userspace datapath, and what they have in common.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::device::{Interface, Offload};
use super::drops::{Drops, Reason};
use super::fd_store::{self, StoredFds};
use super::lanes::{Inlet, Lane, Outlet, lanes};
use super::offloads::Offloads;
use super::path::Paths;
use super::socket::{UdpSocket, Word};
use super::table::Forwarding;
use super::wake::{self, Start, Wake};
use super::{lock, read, receive, transmit, unreachable, write};
use crate::engine::Outgoing;
use crate::engine::config::DeviceName;
use crate::engine::host::surroundings::Surroundings;
use crate::engine::host::{PeerTable, RemoteSpec, SocketSpec};

/// More readers than this gain nothing: one thread writes.
const MOST_QUEUES: usize = 4;

/// The threads that forward. They end, and their interface goes, when it is dropped.
pub struct Forwarder {
    shared: Arc<Shared>,
    control: tokio::sync::Mutex<Outlet>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    queues: usize,
}

/// What the threads have in common.
pub(super) struct Shared {
    pub(super) forwarding: RwLock<Forwarding>,
    /// Counts the changes of `forwarding`.
    pub(super) generation: AtomicU64,
    /// Whether it is known what is to be forwarded: until then nothing is read.
    pub(super) open: AtomicBool,
    pub(super) interface: RwLock<Option<Arc<Interface>>>,
    pub(super) socket: RwLock<Option<Arc<UdpSocket>>>,
    pub(super) control: Inlet,
    pub(super) drops: Drops,
    /// Packets of admitted remotes that were no data of theirs.
    pub(super) answers: AtomicU64,
    pub(super) paths: Paths,
    pub(super) unreachable: Mutex<unreachable::Last>,
    /// Numbers the datagrams that were fragmented, beginning anywhere.
    pub(super) fragmented: AtomicU16,
    pub(super) stopping: AtomicBool,
    /// Wakes the reader of the socket: there is another one, another interface, or the end.
    pub(super) changed: Wake,
}

impl Forwarder {
    /// Without interface and without socket. `queues`: how many threads read the interface;
    /// `None`: by the number of processors.
    ///
    /// # Errors
    /// Too many open files, too many threads.
    pub fn new(queues: Option<NonZeroUsize>) -> io::Result<Self> {
        let (inlet, outlet) = lanes();
        let shared = Arc::new(Shared {
            forwarding: RwLock::default(),
            generation: AtomicU64::new(0),
            open: AtomicBool::new(false),
            interface: RwLock::new(None),
            socket: RwLock::new(None),
            control: inlet,
            drops: Drops::new(),
            answers: AtomicU64::new(0),
            paths: Paths::default(),
            unreachable: Mutex::default(),
            fragmented: AtomicU16::new(anything()),
            stopping: AtomicBool::new(false),
            changed: Wake::new()?,
        });
        let queues = queues.map_or_else(queues_by_processors, NonZeroUsize::get);
        let forwarder = Forwarder {
            shared: Arc::clone(&shared),
            control: tokio::sync::Mutex::new(outlet),
            threads: Mutex::default(),
            queues,
        };
        forwarder.spawn("tun-rx".to_owned(), move || receive::run(&shared))?;
        Ok(forwarder)
    }

    /// Makes the interface; it is neither up nor has it addresses. One that there was is given up: it
    /// has another name by now, or is in another network namespace.
    ///
    /// # Errors
    /// `NotFound`: the kernel has no TUN; `PermissionDenied`: no CAP_NET_ADMIN; `ResourceBusy`:
    /// there is an interface of this name.
    pub fn create_interface(&self, device: &DeviceName) -> io::Result<()> {
        if let Some(elsewhere) = self.shared.interface() {
            self.shared.interface_gone(&elsewhere);
        }
        self.use_interface(Interface::create(device, self.queues)?)
    }

    /// Takes over the interface and the socket of an earlier process: what arrived since then is in
    /// them. `spec` is the socket's, but for the address.
    ///
    /// # Errors
    /// `InvalidInput` when they are not those; then nothing was taken over.
    pub fn take_over(
        &self,
        device: &DeviceName,
        spec: &SocketSpec,
        kept: StoredFds,
    ) -> io::Result<()> {
        let Some(socket) = kept.socket else { return Err(io::ErrorKind::InvalidInput.into()) };
        if kept.queues.len() != self.queues {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let interface = Interface::adopt(device, kept.queues)?;
        let socket = UdpSocket::adopt(spec, socket)?;
        self.use_interface(interface)?;
        *write(&self.shared.socket) = Some(Arc::new(socket));
        self.shared.changed.wake();
        Ok(())
    }

    /// Gives the service manager what a successor of this process needs to go on without losing a
    /// packet.
    ///
    /// # Errors
    /// When the service manager does not listen; without one there is none.
    pub fn keep(&self) -> io::Result<()> {
        let (interface, socket) = (self.shared.interface(), self.shared.socket());
        let queues = interface.iter().flat_map(|interface| interface.queues());
        fd_store::keep(queues.map(AsFd::as_fd), socket.as_ref().map(|socket| socket.as_fd()))
    }

    fn use_interface(&self, interface: Interface) -> io::Result<()> {
        let interface = Arc::new(interface);
        let readers = match self.shared.is_open() {
            true => self.readers(&interface)?,
            false => Start::default(),
        };
        *write(&self.shared.interface) = Some(interface);
        self.shared.changed.wake();
        readers.give();
        Ok(())
    }

    /// Threads that read the interface once they may: all of them or, on an error, none.
    fn readers(&self, interface: &Arc<Interface>) -> io::Result<Start> {
        let mut readers = Start::default();
        for number in 0..interface.queues().len() {
            let (shared, interface) = (Arc::clone(&self.shared), Arc::clone(interface));
            let start = readers.one_more();
            self.spawn(format!("tun-tx{number}"), move || {
                if start.comes() {
                    transmit::run(&shared, &interface, &interface.queues()[number]);
                }
            })?;
        }
        Ok(readers)
    }

    /// Opens the socket. One that there was is given up when the new one is bound; on an error it
    /// stays, unless it is what has the port.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; `NotFound` when there is no such device; `PermissionDenied`
    /// for a mark without CAP_NET_ADMIN.
    pub fn bind(&self, spec: &SocketSpec) -> io::Result<()> {
        let former = self.shared.socket();
        if former.as_ref().is_some_and(|former| former.spec() == spec && former.has_device()) {
            return Ok(());
        }
        let has_port = |former: &UdpSocket| former.spec().address == spec.address;
        let socket = match UdpSocket::open(spec) {
            // Two sockets could share a port that both allow to be shared (SO_REUSEADDR), and every
            // user could share it with them. So the next try, in a moment, is without the former one.
            Err(e)
                if e.kind() == io::ErrorKind::AddrInUse && former.is_some_and(|f| has_port(&f)) =>
            {
                *write(&self.shared.socket) = None;
                self.shared.changed.wake();
                let _ = fd_store::forget(); // the service manager may have it as well
                return Err(e);
            }
            opened => opened?,
        };
        self.shared.paths.forget();
        *write(&self.shared.socket) = Some(Arc::new(socket));
        self.shared.changed.wake();
        Ok(())
    }

    /// The socket as it is bound: with the port that the kernel chose if it had the choice. None
    /// when its interface is gone.
    pub fn socket(&self) -> Option<SocketSpec> {
        let socket = self.shared.socket().filter(|socket| socket.has_device());
        socket.map(|socket| socket.spec().clone())
    }

    /// Whether there is an interface; false again when somebody deleted it.
    pub fn has_interface(&self) -> bool {
        self.shared.interface().is_some()
    }

    /// Sets what is forwarded. Until the first time nothing is read: what waits in an interface and
    /// a socket that were taken over is not lost.
    ///
    /// # Errors
    /// Too many threads.
    pub fn set_forwarding(&self, spec: PeerTable) -> io::Result<()> {
        let first = !self.shared.is_open();
        let readers = match self.shared.interface().filter(|_| first) {
            Some(interface) => self.readers(&interface)?,
            None => Start::default(),
        };
        self.shared.change_forwarding(|forwarding| {
            forwarding.replace(spec);
            true
        });
        if first {
            self.shared.open.store(true, Ordering::Release);
            self.shared.changed.wake();
        }
        readers.give();
        Ok(())
    }

    /// Adds one remote to what is forwarded, or exchanges what it has of it.
    pub fn add_remote(&self, remote: SocketAddr, spec: RemoteSpec) {
        self.shared.change_forwarding(|forwarding| {
            forwarding.add_remote(remote, spec);
            true
        });
    }

    /// Takes one remote out of what is forwarded, and forgets what was learned behind it.
    pub fn remove_remote(&self, remote: SocketAddr) {
        self.shared.change_forwarding(|forwarding| forwarding.remove_remote(remote));
    }

    /// Takes what is known of the host now.
    pub fn surround(&self, around: Surroundings) {
        if *self.shared.forwarding().around() != around {
            write(&self.shared.forwarding).surround(around);
        }
    }

    pub fn forwarding(&self) -> PeerTable {
        self.shared.forwarding().spec().clone()
    }

    /// Inner addresses that were learned, the remotes they are behind, and how long ago they were
    /// seen.
    pub fn learned(&self) -> Vec<(IpAddr, SocketAddr, Duration)> {
        self.shared.forwarding().learned(wake::now())
    }

    /// How long ago something came from the remotes behind which addresses were learned.
    pub fn silent(&self) -> BTreeMap<SocketAddr, Duration> {
        self.shared.forwarding().silent(wake::now())
    }

    /// Notes that a remote is alive, and all inner addresses that were learned behind it.
    pub fn heard_of(&self, remote: SocketAddr) {
        self.shared.forwarding().heard_of(remote, wake::now());
    }

    /// Sends a packet of the engine's. It leaves from the socket's address, whatever `from` says.
    ///
    /// # Errors
    /// `NotConnected` without a socket; else what the kernel says.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        let socket = self.shared.socket().ok_or(io::ErrorKind::NotConnected)?;
        let most = self.shared.paths.most(out.to);
        socket.send(out, most, &|| self.shared.read_errors(&socket))
    }

    /// The next packet that is no data: sender and payload. May be cancelled.
    pub async fn control(&self) -> (SocketAddr, Vec<u8>) {
        self.control.lock().await.next().await
    }

    /// How many packets came from admitted remotes that were no data of theirs: answers to
    /// authentication packets. Where it waits for such packets itself, they are not counted.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// What was last said of a remote that packets did not get to, and how long ago.
    pub fn unreachable(&self) -> unreachable::Last {
        let last = *lock(&self.shared.unreachable);
        last.map(|(word, at)| (word, wake::now().saturating_sub(at)))
    }

    /// Packets that were dropped, by reason.
    pub fn dropped(&self) -> BTreeMap<&'static str, u64> {
        self.shared.drops.read()
    }

    /// Whether packets of the tunnel's own came into it.
    pub fn leads_back(&self) -> bool {
        self.shared.drops.any(Reason::TxLeadsBack)
    }

    /// What is in use now.
    pub fn offloads(&self) -> Offloads {
        let interface = self.shared.interface();
        let offload = interface.as_ref().map_or(Offload::None, |i| i.gives().min(i.takes()));
        let socket = self.shared.socket();
        Offloads {
            tun_tso: offload >= Offload::Tcp,
            tun_uso: offload == Offload::TcpAndUdp,
            udp_gso: socket.as_ref().is_some_and(|s| s.has_gso()),
            udp_gro: socket.as_ref().is_some_and(|s| s.has_gro()),
            queues: interface.as_ref().map_or(0, |i| i.queues().len()),
        }
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name).spawn(run)?;
        let mut threads = lock(&self.threads);
        // Those of an interface that is gone.
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        if let Some(interface) = self.shared.interface() {
            interface.give_up();
        }
        self.shared.changed.wake();
        for thread in lock(&self.threads).drain(..) {
            // One that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(super) fn forwarding(&self) -> RwLockReadGuard<'_, Forwarding> {
        read(&self.forwarding)
    }

    /// `change` says whether it changed anything.
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

    /// Somebody took the interface away, unless there is a new one already.
    pub(super) fn interface_gone(&self, gone: &Arc<Interface>) {
        gone.give_up();
        let mut interface = write(&self.interface);
        if interface.as_ref().is_some_and(|interface| Arc::ptr_eq(interface, gone)) {
            *interface = None;
            // The reader of the socket has a queue open as well.
            self.changed.wake();
        }
    }

    /// Takes what the kernel and routers say of packets that were sent; whether there was anything.
    pub(super) fn read_errors(&self, socket: &UdpSocket) -> bool {
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
        })
    }

    pub(super) fn pass_control(&self, lane: Lane, from: SocketAddr, payload: &[u8]) {
        if !self.control.put(lane, from, payload) {
            self.drops.add(Reason::ControlOverflow, 1);
        }
    }
}

/// A number that nobody can know.
fn anything() -> u16 {
    let [a, b, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    u16::from_ne_bytes([a, b])
}

fn queues_by_processors() -> usize {
    match thread::available_parallelism().map_or(1, NonZeroUsize::get) {
        ..=3 => 1,
        processors => (processors / 2).min(MOST_QUEUES),
    }
}
