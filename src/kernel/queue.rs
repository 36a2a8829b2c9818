//! Authentication packets, read from the kernel's NFQUEUE.
//!
//! Every packet is dropped as soon as it is read: the daemon only has to look at it, and data packets are
//! never queued. When the loop is slow, this loses only packets that overrun the queue. The queue is free
//! for the next process, or the next tunnel of this one, as soon as it is dropped here.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::queue_messages::{Message, configuration, dropped, each};
use crate::auth::MAX_TOKEN;
use crate::engine::config::QueueConfig;
use crate::wire::auth_packet::MAX_AUTH_PACKET_LEN;
use crate::wire::udp::{Datagram, UDP_HEADER_LEN};

/// The longest IPv4 header, the UDP header, and one byte more than the longest packet that is looked
/// at, so that an overlong one is recognised. Tokens may be longer.
const COPY_RANGE: u32 = 60 + 8 + 1472 + 1;
const _: () = {
    assert!(COPY_RANGE as usize == 60 + UDP_HEADER_LEN + MAX_TOKEN + 1);
    assert!(MAX_AUTH_PACKET_LEN < MAX_TOKEN);
};

/// A queue that is read here. The kernel gives it up when this is dropped.
pub struct Queue {
    socket: TokioSocket,
    number: u16,
    /// Datagrams that came together with one before.
    waiting: VecDeque<Queued>,
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
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        // A burst that overruns the socket is lost like one that overruns the queue.
        socket.socket_ref().set_no_enobufs(true)?;
        let mut queue =
            Queue { socket, number, waiting: VecDeque::new(), patience: Patience::default() };
        queue.send(&configuration(number, COPY_RANGE, max_len))?;
        // The kernel has answered by the time that the request is sent. Rules that are there already may
        // have queued packets before that.
        loop {
            let (bytes, _) = queue.socket.socket_ref().recv_from_full()?;
            if let Some(answer) = queue.take(&bytes)? {
                return answer.map(|()| queue);
            }
        }
    }

    /// Waits for the next datagram; `None` when the queue is broken. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Queued> {
        loop {
            if let Some(queued) = self.waiting.pop_front() {
                return Some(queued);
            }
            let taken = match self.socket.recv_from_full().await {
                Ok((bytes, _)) => self.take(&bytes).map(drop),
                Err(e) => Err(e),
            };
            match taken {
                Ok(()) => self.patience = Patience::default(),
                Err(e) => tokio::time::sleep(self.patience.after(&e)?).await,
            }
        }
    }

    /// Takes what the kernel says: drops each packet, and keeps what it carries if that is a datagram.
    /// Returns the answer to a request, if it is there, too. It may be about a packet that the kernel has
    /// dropped before its verdict came, with its interface or with the rule that queued it (`ENOENT` of
    /// `nfqnl_recv_verdict` in net/netfilter/nfnetlink_queue.c): that is done then.
    fn take(&mut self, bytes: &[u8]) -> io::Result<Option<io::Result<()>>> {
        let (mut answer, mut result) = (None, Ok(()));
        for message in each(bytes) {
            match message {
                Message::Answer(result) => answer = Some(result),
                Message::Packet { id, payload } => {
                    let datagram = Datagram::parse(payload);
                    self.waiting.extend(datagram.map(|datagram| Queued {
                        from: datagram.from,
                        payload: datagram.payload.to_vec(),
                    }));
                    let sent = self.send(&dropped(self.number, id));
                    result = result.and(sent);
                }
            }
        }
        result.map(|()| answer)
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        self.socket.socket_ref().send_to(request, &SocketAddr::new(0, 0), 0).map(drop)
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
    /// After so many of them, ten seconds, the queue is broken.
    const MOST: u32 = 100;

    /// How long to wait before the next read, which may well succeed after this error; `None`: the queue is
    /// broken. Some are usual: a signal, a burst (`ENOBUFS`). Others may pass, as a lack of memory: the
    /// first is logged, and each followed by a pause.
    fn after(&mut self, error: &io::Error) -> Option<Duration> {
        if let Some(libc::EINTR | libc::ENOBUFS) = error.raw_os_error() {
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
    fn what_passes_does_not_end_the_queue() {
        let error = io::Error::from_raw_os_error;
        let mut patience = Patience::default();
        for number in [libc::EINTR, libc::ENOBUFS] {
            assert!((0..1000).all(|_| patience.after(&error(number)) == Some(Duration::ZERO)));
        }
        assert_eq!(patience.after(&error(libc::ENOMEM)), Some(Patience::PAUSE));
        patience.failures = Patience::MOST;
        assert_eq!(patience.after(&error(libc::EBADF)), None);
    }

    /// It needs root, as `ipipou` does: without, there is nothing to see.
    #[tokio::test]
    async fn a_queue_is_free_at_once_when_it_is_dropped() {
        let config = QueueConfig { number: 64999, max_len: 24 };
        let Ok(first) = Queue::bind(config) else { return };
        assert!(matches!(Queue::bind(config), Err(QueueError::InUse(64999))));
        drop(first);
        assert!(Queue::bind(config).is_ok());
    }
}
