//! The datagrams that wait to be sent with one call, and their room in the buffers of
//! `transmit.rs`: it must not be written over while they wait.

use std::ops::Range;
use std::sync::Arc;

use super::counts::{Counts, Tally};
use super::send::{MAX_BYTES, MAX_SEGMENTS, Outer};
use super::vnet;

/// Room for the largest packet with its header.
pub const ROOM: usize = vnet::LEN + 65_536;
/// Room for a large packet whose last segments wait, and for the next one; no more, for the processor's
/// cache.
pub const BUFFER: usize = 2 * ROOM;
/// Room for the headers of one call's segments: 64 of 120 bytes, which is IPv4 and TCP with all their
/// options, and as much again for one packet with many IPv6 extension headers.
pub const HEADERS: usize = 16 * 1024;

/// Datagrams that wait to be sent.
pub struct Batch {
    pub outer: Option<Outer>,
    /// The counters of the remote that the first datagram is for.
    pub counts: Option<Arc<Counts>>,
    /// The size of each datagram except the last.
    pub size: usize,
    pub bytes: usize,
    pub datagrams: Vec<Datagram>,
    /// Bytes of `headers` that are used.
    pub headers: usize,
    /// The last datagram was shorter: nothing may follow.
    pub is_closed: bool,
}

/// Headers that were written, and bytes as they were read.
pub struct Datagram {
    /// In the headers' buffer; empty for a packet that was not split.
    pub header: Range<usize>,
    pub body: Range<usize>,
}

impl Datagram {
    pub fn length(&self) -> usize {
        self.header.len() + self.body.len()
    }
}

impl Batch {
    pub fn new() -> Self {
        Batch {
            outer: None,
            counts: None,
            size: 0,
            bytes: 0,
            datagrams: Vec::with_capacity(MAX_SEGMENTS),
            headers: 0,
            is_closed: false,
        }
    }

    /// Where the next packet may be read to, when the last one ended at `used`: as near to the start as
    /// the waiting datagrams allow.
    pub fn room(&self, used: usize) -> Option<usize> {
        let Some(first) = self.datagrams.first().map(|datagram| datagram.body.start) else {
            return Some(0);
        };
        // The waiting datagrams begin at `first` and end at `used`; if `used` is the smaller one, they
        // wrap around.
        let (at, end) = match first < used {
            true if first >= ROOM => (0, first),
            true => (used, BUFFER),
            false => (used, first),
        };
        (end - at >= ROOM).then_some(at)
    }

    /// Whether a datagram may follow those that wait.
    pub fn takes(&self, outer: Outer, length: usize) -> bool {
        self.outer.is_none()
            || (self.outer == Some(outer)
                && !self.is_closed
                && length <= self.size
                && self.datagrams.len() < MAX_SEGMENTS
                && self.bytes + length <= MAX_BYTES)
    }

    /// Whether there is room for another header of this many bytes.
    pub fn has_room(&self, header: usize) -> bool {
        self.headers + header <= HEADERS
    }

    pub fn push(&mut self, outer: Outer, datagram: Datagram) {
        let length = datagram.length();
        if self.outer.is_none() {
            self.outer = Some(outer);
            self.size = length;
        }
        self.is_closed = length < self.size;
        self.bytes += length;
        self.datagrams.push(datagram);
    }

    /// Counts here what is sent next.
    pub fn count_by(&mut self, counts: Option<&Arc<Counts>>) {
        let is_same = match (&self.counts, counts) {
            (Some(before), Some(counts)) => Arc::ptr_eq(before, counts),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !is_same {
            self.counts = counts.cloned();
        }
    }

    /// Counts what was sent: all but those that `failed`, which are taken to have the size of most.
    pub fn count(&self, failed: usize) {
        let sent = Tally {
            packets: self.datagrams.len().saturating_sub(failed) as u64,
            bytes: self.bytes.saturating_sub(failed * self.size) as u64,
        };
        if let Some(counts) = self.counts.as_ref().filter(|_| sent.packets > 0) {
            counts.sent(sent);
        }
    }

    pub fn clear(&mut self) {
        self.outer = None;
        self.bytes = 0;
        self.datagrams.clear();
        self.headers = 0;
        self.is_closed = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn length() -> impl Strategy<Value = usize> {
        prop_oneof![vnet::LEN + 20..2000, ROOM / 2..=ROOM]
    }

    proptest! {
        #[test]
        fn waiting_datagrams_are_not_overwritten(
            packets in proptest::collection::vec((length(), 1..2000usize, 0..4usize), 1..200),
        ) {
            let mut batch = Batch::new();
            let mut used = 0;
            for (length, end, waiting) in packets {
                let from = batch.datagrams.len().saturating_sub(waiting);
                batch.datagrams.drain(..from);
                let at = batch.room(used).unwrap_or_else(|| {
                    batch.clear();
                    0
                });
                prop_assert!(at + ROOM <= BUFFER);
                for Datagram { body, .. } in &batch.datagrams {
                    prop_assert!(body.end <= at || at + ROOM <= body.start);
                }
                used = at + length;
                // The end of a large packet may wait, and the whole of any other.
                let body = used.saturating_sub(end).max(at + vnet::LEN)..used;
                batch.datagrams.push(Datagram { header: 0..0, body });
            }
        }
    }
}
