//! A packet out of the queue, cut anywhere: never a panic, never more payload than there is.
#![no_main]

use ipipou::wire::udp::{Datagram, IPV4_HEADER_LEN, UDP_HEADER_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Some(datagram) = Datagram::parse(packet) {
        assert!(datagram.payload.len() + IPV4_HEADER_LEN + UDP_HEADER_LEN <= packet.len());
    }
});
