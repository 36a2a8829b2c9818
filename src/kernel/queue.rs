//! Authentication packets, read from the kernel's NFQUEUE.
//!
//! Every packet is dropped as soon as it is read: the daemon only has to look at it, and data packets are
//! never queued. When the loop is slow, this loses only packets that overrun the queue. The queue is free
//! for the next process, or the next tunnel of this one, as soon as it is dropped here.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::queue_socket::{Pollable, open};
use crate::auth::MAX_TOKEN;
use crate::engine::config::QueueConfig;
use crate::wire::auth_packet::MAX_AUTH_PACKET_LEN;
use crate::wire::udp::{Datagram, UDP_HEADER_LEN};

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
    patience: Patience,
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
    /// Binds the queue; packets that find it full are dropped.
    ///
    /// # Errors
    /// When another process or tunnel reads it, or the kernel has no nfnetlink_queue.
    pub fn bind(config: QueueConfig) -> Result<Self, QueueError> {
        let number = config.number;
        Queue::open(config).map_err(|e| match e.kind() {
            // The kernel answers EPERM about a queue of another socket (`nfqnl_recv_config` in
            // net/netfilter/nfnetlink_queue.c); CAP_NET_ADMIN was checked before.
            io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied => {
                QueueError::InUse(number)
            }
            _ => QueueError::Other(number, e),
        })
    }

    fn open(QueueConfig { number, max_len }: QueueConfig) -> io::Result<Self> {
        let Pollable { mut queue, socket } = open()?;
        queue.bind(number)?;
        queue.set_fail_open(number, false)?;
        queue.set_queue_max_len(number, max_len)?;
        queue.set_copy_range(number, COPY_RANGE)?;
        queue.set_nonblocking(true);
        // SAFETY: the socket is owned by what is registered, and nothing closes it before.
        let readable = unsafe { AsyncFd::register(socket) }?;
        Ok(Queue { readable, queue, patience: Patience::default() })
    }

    /// Waits for the next datagram; `None` when the queue is broken. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Queued> {
        loop {
            let failed = match self.readable.readable().await {
                Ok(mut ready) => match take(&mut self.queue) {
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

/// Drops the next packet, and returns what it carries if that is a datagram.
fn take(queue: &mut nfq::Queue) -> io::Result<Option<Queued>> {
    let mut message = queue.recv()?;
    let datagram = Datagram::parse(message.get_payload());
    let queued =
        datagram.map(|datagram| Queued { from: datagram.from, payload: datagram.payload.to_vec() });
    message.set_verdict(nfq::Verdict::Drop);
    queue.verdict(message)?;
    Ok(queued)
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
