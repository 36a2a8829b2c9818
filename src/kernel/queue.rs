//! Authentication packets, read from the kernel's NFQUEUE.
//!
//! The `nfq` crate's socket cannot be polled, so a separate thread blocks in it and sends datagrams to
//! the loop through a bounded channel. Every packet is dropped as soon as it is read: the daemon only
//! has to look at it, and data packets are never queued. When the loop is slow, this loses only packets
//! that would have overrun the queue anyway.

use std::io;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

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

/// How many datagrams may wait for the loop.
const CHANNEL: usize = 64;

/// The reading end of a queue.
pub struct Queue {
    datagrams: mpsc::Receiver<Queued>,
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
    /// When another process holds it, or the kernel has no nfnetlink_queue.
    pub fn bind(config: QueueConfig) -> Result<Self, QueueError> {
        let number = config.number;
        let queue = open(config).map_err(|e| match e.kind() {
            // The kernel answers EPERM about a queue of another process (`nfqnl_recv_config` in
            // net/netfilter/nfnetlink_queue.c); CAP_NET_ADMIN was checked before.
            io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied => {
                QueueError::InUse(number)
            }
            _ => QueueError::Other(number, e),
        })?;
        let (sender, datagrams) = mpsc::channel(CHANNEL);
        thread::Builder::new()
            .name("nfqueue".to_owned())
            .spawn(move || forward(queue, &sender))
            .map_err(|e| QueueError::Other(number, e))?;
        Ok(Queue { datagrams })
    }

    /// Waits for the next datagram; `None` when the thread has ended because the queue failed.
    pub async fn recv(&mut self) -> Option<Queued> {
        self.datagrams.recv().await
    }
}

fn open(config: QueueConfig) -> io::Result<nfq::Queue> {
    let mut queue = nfq::Queue::open()?;
    queue.bind(config.number)?;
    queue.set_fail_open(config.number, false)?;
    queue.set_queue_max_len(config.number, config.max_len)?;
    queue.set_copy_range(config.number, COPY_RANGE)?;
    Ok(queue)
}

/// Passes packets on until nobody takes them, or nothing has worked for long.
fn forward(mut queue: nfq::Queue, datagrams: &mpsc::Sender<Queued>) {
    let mut patience = Patience::default();
    loop {
        let mut message = match queue.recv() {
            Ok(message) => message,
            Err(e) => match patience.goes_on(&e) {
                true => continue,
                false => return,
            },
        };
        if let Some(datagram) = Datagram::parse(message.get_payload()) {
            let queued = Queued { from: datagram.from, payload: datagram.payload.to_vec() };
            match datagrams.try_send(queued) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
        message.set_verdict(nfq::Verdict::Drop);
        match queue.verdict(message) {
            Ok(()) => patience = Patience::default(),
            Err(e) if patience.goes_on(&e) => {}
            Err(_) => return,
        }
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

    /// Whether the next read may well succeed after this error. Some are usual: a signal, a burst
    /// (`ENOBUFS`), and a packet that the kernel has dropped before its verdict came, with its interface or
    /// with the rule that queued it (`ENOENT` of `nfqnl_recv_verdict` in net/netfilter/nfnetlink_queue.c).
    /// Others may pass, as a lack of memory: the first is logged, and each followed by a pause.
    fn goes_on(&mut self, error: &io::Error) -> bool {
        if let Some(libc::EINTR | libc::ENOBUFS | libc::ENOENT) = error.raw_os_error() {
            return true;
        }
        if self.failures == 0 {
            tracing::warn!("NFQUEUE: {error}; trying again");
        }
        self.failures += 1;
        if self.failures > Self::MOST {
            tracing::error!("NFQUEUE broke: {error}");
            return false;
        }
        thread::sleep(Self::PAUSE);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_does_not_end_the_queue() {
        let error = io::Error::from_raw_os_error;
        let mut patience = Patience::default();
        for number in [libc::EINTR, libc::ENOBUFS, libc::ENOENT] {
            assert!((0..1000).all(|_| patience.goes_on(&error(number))), "{number}");
        }
        assert!(patience.goes_on(&error(libc::ENOMEM)));
        patience.failures = Patience::MOST;
        assert!(!patience.goes_on(&error(libc::EBADF)));
    }
}
