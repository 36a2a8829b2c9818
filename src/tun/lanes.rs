//! Two queues for packets on their way to the engine: a flood fills only its own.

use std::future;
use std::net::SocketAddr;

use tokio::sync::mpsc::{self, Receiver, Sender};

/// How many packets may wait in each queue.
const ROOM: usize = 64;
/// The longest packet that is passed to the engine: one byte more than the longest token, as in the
/// kernel datapath.
const LONGEST: usize = 1473;

/// One of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Packets of known remotes, and of sources that send few.
    First,
    /// A sample of all other packets.
    Later,
}

/// A packet's sender and payload.
type Packet = (SocketAddr, Vec<u8>);

/// The end at which packets go in.
pub struct Inlet {
    first: Sender<Packet>,
    later: Sender<Packet>,
}

/// The end at which they come out.
pub struct Outlet {
    first: Receiver<Packet>,
    later: Receiver<Packet>,
}

/// Makes both queues.
pub fn lanes() -> (Inlet, Outlet) {
    let ((first_in, first), (later_in, later)) = (mpsc::channel(ROOM), mpsc::channel(ROOM));
    (Inlet { first: first_in, later: later_in }, Outlet { first, later })
}

impl Inlet {
    /// Adds a packet if there is room. Returns whether there was.
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
    /// Waits for the next packet. Safe to cancel.
    pub async fn next(&mut self) -> Packet {
        let packet = tokio::select! {
            biased;
            packet = self.first.recv() => packet,
            packet = self.later.recv() => packet,
        };
        match packet {
            Some(packet) => packet,
            // The inlet is gone: nothing will come any longer.
            None => future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_lane_does_not_hold_up_the_other() {
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
