//! Authentication packets, read from the kernel's NFQUEUE.
//!
//! Every packet for our port is dropped as soon as it is read: the daemon only has to look at it, and data
//! packets are never queued. When the loop is slow, this loses only packets that overrun the queue. What
//! else is in the queue, a rule of another program sent there: it goes on to where it was going. The queue
//! is free for the next process, or the next tunnel of this one, as soon as it is dropped here.

use std::io;
use std::net::SocketAddrV4;
use std::num::NonZeroU16;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::queue_socket::{Pollable, open};
use crate::auth::MAX_TOKEN;
use crate::engine::config::QueueConfig;
use crate::wire::auth_packet::MAX_AUTH_PACKET_LEN;
use crate::wire::udp::{Datagram, UDP_HEADER_LEN, destination_port};

/// The longest IPv4 header, the UDP header, and one byte more than the longest packet that is looked
/// at, so that an overlong one is recognised. Tokens may be longer.
const COPY_RANGE: u16 = 60 + 8 + 1472 + 1;
const _: () = {
    assert!(COPY_RANGE as usize == 60 + UDP_HEADER_LEN + MAX_TOKEN + 1);
    assert!(MAX_AUTH_PACKET_LEN < MAX_TOKEN);
};

/// A queue that is read here. The kernel gives it up when this is dropped.
pub struct Queue {
    /// Tells when there is something to read. It is closed first.
    readable: AsyncFd<std::os::fd::OwnedFd>,
    queue: nfq::Queue,
    ours: Ours,
    patience: Patience,
}

/// Tells what our rules queued from what rules of other programs queued to the same number.
#[derive(Debug)]
struct Ours {
    number: u16,
    port: NonZeroU16,
    /// Packets that others queued.
    foreign: u64,
}

/// A datagram that came through the queue.
#[derive(Debug)]
pub struct Queued {
    pub from: SocketAddrV4,
    pub payload: Vec<u8>,
}

/// Why a queue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("NFQUEUE {0} is in use by another program; choose another with -q")]
    InUse(u16),
    #[error("NFQUEUE {0}: {1}")]
    Other(u16, #[source] io::Error),
}

impl Queue {
    /// Binds the queue for packets that come to `port`; those that find it full are dropped.
    ///
    /// # Errors
    /// When another process or tunnel reads it, or the kernel has no nfnetlink_queue.
    pub fn bind(config: QueueConfig, port: NonZeroU16) -> Result<Self, QueueError> {
        let number = config.number;
        Queue::open(config, port).map_err(|e| match e.kind() {
            // The kernel answers EPERM about a queue of another socket (`nfqnl_recv_config` in
            // net/netfilter/nfnetlink_queue.c); CAP_NET_ADMIN was checked before.
            io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied => {
                QueueError::InUse(number)
            }
            _ => QueueError::Other(number, e),
        })
    }

    fn open(QueueConfig { number, max_len }: QueueConfig, port: NonZeroU16) -> io::Result<Self> {
        let Pollable { mut queue, socket } = open()?;
        queue.bind(number)?;
        queue.set_fail_open(number, false)?;
        queue.set_queue_max_len(number, max_len)?;
        queue.set_copy_range(number, COPY_RANGE)?;
        queue.set_nonblocking(true);
        // SAFETY: the socket is owned by what is registered, and nothing closes it before.
        let readable = unsafe { AsyncFd::register(socket) }?;
        let ours = Ours { number, port, foreign: 0 };
        Ok(Queue { readable, queue, ours, patience: Patience::default() })
    }

    /// How many packets other programs' rules have queued here.
    pub fn foreign(&self) -> u64 {
        self.ours.foreign
    }

    /// Waits for the next datagram; `None` when the queue is broken. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Queued> {
        loop {
            let failed = match self.readable.readable().await {
                Ok(mut ready) => match take(&mut self.queue, &mut self.ours) {
                    Ok(queued) => {
                        self.patience = Patience::default();
                        if queued.is_some() {
                            return queued;
                        }
                        continue;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(e) => e,
                },
                Err(e) => e,
            };
            tokio::time::sleep(self.patience.after(&failed)?).await;
        }
    }
}

/// Takes the next packet out of the queue, and returns what it carries if that is a datagram for us.
fn take(queue: &mut nfq::Queue, ours: &mut Ours) -> io::Result<Option<Queued>> {
    let mut message = queue.recv()?;
    let verdict = ours.verdict(message.get_payload());
    let datagram = Datagram::parse(message.get_payload()).filter(|_| verdict == nfq::Verdict::Drop);
    let queued =
        datagram.map(|datagram| Queued { from: datagram.from, payload: datagram.payload.to_vec() });
    message.set_verdict(verdict);
    queue.verdict(message)?;
    Ok(queued)
}

impl Ours {
    /// Drops what is UDP for our port, whatever is wrong with it: our rules queue nothing else, and nothing
    /// of it may pass unproven. Everything else passes, as with `bypass` while nobody reads the queue.
    fn verdict(&mut self, packet: &[u8]) -> nfq::Verdict {
        if destination_port(packet) == Some(self.port.get()) {
            return nfq::Verdict::Drop;
        }
        if self.foreign == 0 {
            tracing::warn!(
                "another rule of this host queues to number {0}: what is not for the UDP port {1} passes, as \
                 if it were not queued; give -q another number to one of both",
                self.number,
                self.port
            );
        }
        self.foreign += 1;
        nfq::Verdict::Accept
    }
}

/// How often the queue has failed since it last worked.
#[derive(Debug, Default)]
struct Patience {
    failures: u32,
}

impl Patience {
    /// The pause after a failure that is not usual.
    const PAUSE: Duration = Duration::from_millis(100);
    /// After this many of them, ten seconds, the queue is broken.
    const MOST: u32 = 100;

    /// How long to wait before the next read, which may well succeed after this error; `None`: the queue is
    /// broken. Some are usual: a signal, a burst (`ENOBUFS`), or a packet that the kernel has dropped before
    /// its verdict came, with its interface or with the rule that queued it (`ENOENT` of
    /// `nfqnl_recv_verdict` in net/netfilter/nfnetlink_queue.c). Others may pass, as a lack of memory: the
    /// first is logged, and each followed by a pause.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        if let Some(libc::EINTR | libc::ENOBUFS | libc::ENOENT) = error.raw_os_error() {
            return Some(Duration::ZERO);
        }
        if self.failures == 0 {
            tracing::warn!("NFQUEUE: {error}; trying again");
        }
        self.failures += 1;
        if self.failures > Self::MOST {
            tracing::error!("NFQUEUE broke: {error}");
            return None;
        }
        Some(Self::PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_program_queues_passes_and_ours_never_does() {
        let at = |port| SocketAddrV4::new([192, 0, 2, 1].into(), port);
        let packet = |port| crate::wire::udp::build(at(5), at(port), 64, &[0xff; 73]).unwrap();
        let mut ours = Ours { number: 0, port: NonZeroU16::MIN, foreign: 0 };
        let own = packet(1);
        for length in [24, 27, 28, own.len()] {
            assert_eq!(ours.verdict(&own[..length]), nfq::Verdict::Drop, "{length}");
        }
        assert_eq!(ours.foreign, 0);
        let mut tcp = own.clone();
        tcp[9] = 6;
        let mut fragment = own.clone();
        fragment[7] = 185;
        let six = [&[0x60; 40], own.as_slice()].concat();
        for (number, foreign) in (1..).zip([packet(2), tcp, fragment, six, Vec::new()]) {
            assert_eq!(ours.verdict(&foreign), nfq::Verdict::Accept, "{foreign:?}");
            assert_eq!(ours.foreign, number);
        }
    }

    #[test]
    fn a_passing_error_does_not_end_the_queue() {
        let error = io::Error::from_raw_os_error;
        let mut patience = Patience::default();
        for number in [libc::EINTR, libc::ENOBUFS, libc::ENOENT] {
            assert!((0..1000).all(|_| patience.after(&error(number)) == Some(Duration::ZERO)));
        }
        assert_eq!(patience.after(&error(libc::ENOMEM)), Some(Patience::PAUSE));
        patience.failures = Patience::MOST;
        assert_eq!(patience.after(&error(libc::EBADF)), None);
    }
}
