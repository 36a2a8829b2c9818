//! Writes a received packet to the interface: as a whole where the kernel takes it so, otherwise split.

use std::io::{self, IoSlice};

use super::coalesce::{Merged, SEGMENTS};
use super::device::{Interface, Queue, is_refused};
use super::split;
use super::vnet::{Gso, Vnet};

/// The headers and payloads of one packet that is written.
const SLICES: usize = 1 + SEGMENTS as usize;

/// How many packets the interface did not take, and why.
pub struct Failed {
    pub packets: usize,
    pub error: io::Error,
}

/// Writes a packet to the queue of its flow, always the same one: the kernel delivers the answers there
/// (`tun_flow_update`). A packet that the kernel does not take as a whole is split.
pub fn write(interface: &Interface, buffer: &[u8], merged: &Merged<'_>) -> Result<(), Failed> {
    let queues = interface.queues();
    let queue = &queues[merged.flow as usize % queues.len()];
    let Vnet { gso, needs_csum, .. } = merged.vnet;
    let is_left = gso != Gso::None || needs_csum;
    let refused = if interface.takes().takes(gso) && (queue.has_header() || !needs_csum) {
        let header = merged.vnet.bytes();
        let mut slices = [IoSlice::new(&[]); SLICES];
        slices[0] = IoSlice::new(&header);
        slices[1] = IoSlice::new(&buffer[merged.head.clone()]);
        let mut used = 2;
        for payload in merged.rest().take(SLICES - 2) {
            slices[used] = IoSlice::new(&buffer[payload]);
            used += 1;
        }
        match queue.write(&slices[..used]) {
            Ok(_) => return Ok(()),
            Err(error) if is_left && is_refused(&error) => Some(error),
            Err(error) => return Err(Failed { packets: merged.count.into(), error }),
        }
    } else {
        None
    };
    let written = write_apart(queue, buffer, merged);
    if let (Ok(()), Some(error), true) = (&written, refused, gso != Gso::None) {
        interface.refuses(gso, &error);
    }
    written
}

/// Writes packet by packet, with nothing left to the kernel.
fn write_apart(queue: &Queue, buffer: &[u8], merged: &Merged<'_>) -> Result<(), Failed> {
    let mut packet = buffer[merged.head.clone()].to_vec();
    merged.rest().for_each(|payload| packet.extend(&buffer[payload]));
    let mut failed = None;
    let each = |part: &[&[u8]]| {
        let header = Vnet::PLAIN.bytes();
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(part.iter().map(|bytes| IoSlice::new(bytes)));
        if let Err(error) = queue.write(&slices) {
            let packets = failed.as_ref().map_or(1, |failed: &Failed| failed.packets + 1);
            failed = Some(Failed { packets, error });
        }
    };
    split::each(&mut packet, &merged.vnet, each);
    failed.map_or(Ok(()), Err)
}
