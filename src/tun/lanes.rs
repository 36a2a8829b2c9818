//! Packets on their way to the engine wait in two queues: a flood fills only its own.

use std::future;
use std::net::SocketAddr;

use tokio::sync::mpsc::{self, Receiver, Sender};

/// Packets that wait, in each queue.
const ROOM: usize = 64;
/// The longest packet that the engine is handed: one byte more than the longest token, as on the
/// kernel path.
const LONGEST: usize = 1473;

/// Which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Of known remotes, and of sources that send few.
    First,
    /// The sample of all others.
    Later,
}

/// Sender and payload.
type Packet = (SocketAddr, Vec<u8>);

/// Where packets go in, …
pub struct Inlet {
    first: Sender<Packet>,
    later: Sender<Packet>,
}

/// … and where they come out.
pub struct Outlet {
    first: Receiver<Packet>,
    later: Receiver<Packet>,
}

/// Both queues.
pub fn lanes() -> (Inlet, Outlet) {
    let ((first_in, first), (later_in, later)) = (mpsc::channel(ROOM), mpsc::channel(ROOM));
    (Inlet { first: first_in, later: later_in }, Outlet { first, later })
}

impl Inlet {
    /// Whether there was room.
    pub fn put(&self, lane: Lane, from: SocketAddr, payload: &[u8]) -> bool {
        let queue = match lane {
            Lane::First => &self.first,
            Lane::Later => &self.later,
        };
        let payload = payload.get(..LONGEST).unwrap_or(payload);
        queue.try_send((from, payload.to_vec())).is_ok()
    }
}

impl Outlet {
    /// The next packet. May be cancelled.
    pub async fn next(&mut self) -> Packet {
        let packet = tokio::select! {
            biased;
            packet = self.first.recv() => packet,
            packet = self.later.recv() => packet,
        };
        match packet {
            Some(packet) => packet,
            // The inlet is gone: nothing will come any more.
            None => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_holds_up_only_its_own() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (inlet, mut outlet) = lanes();
        let from = "192.0.2.1:1".parse().unwrap();
        let taken = (0..1000).filter(|_| inlet.put(Lane::Later, from, b"junk")).count();
        assert_eq!(taken, ROOM);
        assert!(inlet.put(Lane::First, from, &[7; 2000]));
        let next = |outlet: &mut Outlet| runtime.block_on(outlet.next()).1;
        assert_eq!(next(&mut outlet), [7; LONGEST]);
        assert_eq!(next(&mut outlet), b"junk");
    }
}
