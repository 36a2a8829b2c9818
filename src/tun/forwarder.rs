//! The threads of the userspace datapath, and what the datapath tells them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::Notify;

use super::device::{Interface, Offload};
use super::drops::Reason;
use super::fd_store::{self, Owner, StoredFds};
use super::lanes::{Outlet, lanes};
use super::offloads::Offloads;
use super::send::Calls;
use super::shared::Shared;
use super::socket::UdpSocket;
use super::wake::{self, Start};
use super::{lock, receive, transmit, unreachable, write};
use crate::engine::Outgoing;
use crate::engine::config::DeviceName;
use crate::engine::host::surroundings::Surroundings;
use crate::engine::host::{PeerTable, RemoteSpec, SocketSpec, Traffic};
use crate::host::datapath::OpenFiles;

/// More readers than this gain nothing, because one thread writes.
const MOST_QUEUES: usize = 4;

/// The forwarding threads. When it is dropped they end, and their interface goes.
pub struct Forwarder {
    shared: Arc<Shared>,
    control: tokio::sync::Mutex<Outlet>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    queues: usize,
    owner: Owner,
}

impl Forwarder {
    /// Makes the threads, with neither an interface nor a socket. `queues`: how many threads read the
    /// interface; `None`: depends on the number of processors.
    ///
    /// # Errors
    /// Too many open files, too many threads.
    pub fn new(queues: Option<NonZeroUsize>, owner: Owner) -> io::Result<Self> {
        let (inlet, outlet) = lanes();
        let shared = Arc::new(Shared::new(inlet)?);
        let queues = queues.map_or_else(queues_by_processors, NonZeroUsize::get);
        let forwarder = Forwarder {
            shared: Arc::clone(&shared),
            control: tokio::sync::Mutex::new(outlet),
            threads: Mutex::default(),
            queues,
            owner,
        };
        forwarder.spawn("tun-rx".to_owned(), move || receive::run(&shared))?;
        Ok(forwarder)
    }

    /// Makes the interface, which is not up and has no addresses yet. An existing one is given up: by
    /// now it has another name, or is in another network namespace.
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

    /// Takes over the interface and the socket of an earlier process, and with them the packets that
    /// arrived since. `spec` is the socket's, except for the address.
    ///
    /// # Errors
    /// `InvalidInput` when they are not what was expected; then nothing was taken over.
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

    /// Stores with the service manager what the next process needs to go on without losing a packet.
    ///
    /// # Errors
    /// When the service manager cannot be reached; without one there is no error.
    pub fn keep(&self) -> io::Result<()> {
        let (interface, socket) = (self.shared.interface(), self.shared.socket());
        let queues = interface.iter().flat_map(|interface| interface.queues());
        let socket = socket.as_ref().map(|socket| socket.as_fd());
        fd_store::keep(self.owner, queues.map(AsFd::as_fd), socket)
    }

    /// The same files for a tunnel of this process that takes the place of this one: the interface and what
    /// waits in them stay.
    ///
    /// # Errors
    /// Too many open files.
    pub fn open_files(&self) -> io::Result<OpenFiles> {
        let interface = self.shared.interface();
        let queues = interface.iter().flat_map(|interface| interface.queues());
        let socket = self.shared.socket();
        Ok(OpenFiles {
            queues: queues
                .map(|queue| queue.as_fd().try_clone_to_owned())
                .collect::<Result<_, _>>()?,
            socket: socket.map(|socket| socket.as_fd().try_clone_to_owned()).transpose()?,
            sessions: None,
        })
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

    /// Makes the threads that read the interface once they are started: all of them or, on an error,
    /// none.
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

    /// Opens the socket. An existing one is given up when the new one is bound; on an error it stays,
    /// unless it is the one that has the port.
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
            // Two sockets could share a port if both allow it (SO_REUSEADDR), but then every user could
            // share it with them. So the next attempt, in a moment, is made without the former socket.
            Err(e)
                if e.kind() == io::ErrorKind::AddrInUse && former.is_some_and(|f| has_port(&f)) =>
            {
                *write(&self.shared.socket) = None;
                self.shared.changed.wake();
                let _ = fd_store::release(self.owner); // the service manager may hold it as well
                return Err(e);
            }
            opened => opened?,
        };
        self.shared.paths.forget();
        *write(&self.shared.socket) = Some(Arc::new(socket));
        self.shared.changed.wake();
        Ok(())
    }

    /// The socket as it is bound, with the port that the kernel chose if it could choose. `None` when
    /// its interface is gone.
    pub fn socket(&self) -> Option<SocketSpec> {
        let socket = self.shared.socket().filter(|socket| socket.has_device());
        socket.map(|socket| socket.spec().clone())
    }

    /// Whether there is an interface; false again when it was deleted.
    pub fn has_interface(&self) -> bool {
        self.shared.interface().is_some()
    }

    /// Sets what is forwarded. Before the first time nothing is read, so packets that wait in an
    /// interface and a socket that were taken over are not lost.
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
            if first {
                forwarding.resume(wake::now());
            }
            true
        });
        if first {
            self.shared.open.store(true, Ordering::Release);
            self.shared.changed.wake();
        }
        readers.give();
        Ok(())
    }

    /// Adds one remote to what is forwarded, or replaces its entry.
    pub fn add_remote(&self, remote: SocketAddr, spec: RemoteSpec) {
        self.shared.change_forwarding(|forwarding| {
            forwarding.add_remote(remote, spec);
            true
        });
    }

    /// Removes one remote from what is forwarded, and forgets what was learned behind it.
    pub fn remove_remote(&self, remote: SocketAddr) {
        self.shared.change_forwarding(|forwarding| forwarding.remove_remote(remote));
    }

    /// Takes new facts about the host.
    pub fn surround(&self, around: Surroundings) {
        if *self.shared.forwarding().around() != around {
            write(&self.shared.forwarding).surround(around);
        }
    }

    pub fn forwarding(&self) -> PeerTable {
        self.shared.forwarding().spec().clone()
    }

    /// What was carried from and to each remote that is named.
    pub fn traffic(&self) -> HashMap<SocketAddr, Traffic> {
        self.shared.forwarding().traffic()
    }

    /// Inner addresses that were learned, the remotes behind which they are, and how long ago they were
    /// seen.
    pub fn learned(&self) -> Vec<(IpAddr, SocketAddr, Duration)> {
        self.shared.forwarding().learned(wake::now())
    }

    /// Notifies when a path is narrower than it was.
    pub fn narrower(&self) -> Arc<Notify> {
        self.shared.paths.narrower()
    }

    /// Remotes whose path is narrow, each with the length of the longest inner packet that fits.
    pub fn narrow(&self) -> BTreeMap<SocketAddr, usize> {
        self.shared.paths.narrow(wake::now())
    }

    /// How long ago something came from each remote behind which addresses were learned.
    pub fn silent(&self) -> BTreeMap<SocketAddr, Duration> {
        self.shared.forwarding().silent(wake::now())
    }

    /// Notes that a remote is alive, and so are all inner addresses that were learned behind it.
    pub fn heard_of(&self, remote: SocketAddr) {
        self.shared.forwarding().heard_of(remote, wake::now());
    }

    /// Sends a packet of the engine. It leaves from the socket's address, whatever `from` says.
    ///
    /// # Errors
    /// `NotConnected` without a socket; otherwise what the kernel says.
    pub fn send(&self, out: &Outgoing) -> io::Result<()> {
        let socket = self.shared.socket().ok_or(io::ErrorKind::NotConnected)?;
        let most = self.shared.paths.most(out.to);
        let read_errors = || self.shared.read_errors(&socket);
        socket.send(out, most, Calls { read_errors: &read_errors, waits: false })
    }

    /// Waits for the next packet that is not data, and returns its sender and payload. Safe to cancel.
    pub async fn control(&self) -> (SocketAddr, Vec<u8>) {
        self.control.lock().await.next().await
    }

    /// How many packets from admitted remotes were not data: answers to authentication packets. Where
    /// the engine waits for such packets itself, they are not counted.
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// The last error about a remote that packets did not reach, and how long ago it came.
    pub fn unreachable(&self) -> unreachable::Last {
        let last = *lock(&self.shared.unreachable);
        last.map(|(word, at)| (word, wake::now().saturating_sub(at)))
    }

    /// Packets that were dropped, by reason.
    pub fn dropped(&self) -> BTreeMap<&'static str, u64> {
        self.shared.drops.read()
    }

    /// Whether the tunnel's own packets were routed into it.
    pub fn leads_back(&self) -> bool {
        self.shared.drops.any(Reason::TxLeadsBack)
    }

    /// The offloads that are in use now.
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
        // These are threads of an interface that is gone.
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
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

fn queues_by_processors() -> usize {
    match thread::available_parallelism().map_or(1, NonZeroUsize::get) {
        ..=3 => 1,
        processors => (processors / 2).min(MOST_QUEUES),
    }
}
