//! Takes an authentication packet apart, as a capture shows it:
//!
//! ```text
//! cargo run --example inspect_packet -- PAYLOAD_HEX [PUBLIC_KEY_B64 SECRET]
//! ```
//!
//! `tcpdump -x` prints the payload behind 28 bytes of IPv4 and UDP header.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use ipipou::auth::{Policy, Proof, ReplayMemory, ServerTime, SharedSecret, Verifier, parse_key};
use ipipou::wire::auth_packet::{AUTH_PACKET_LEN, AuthPacket};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hex, proof @ ..] = args.as_slice() else {
        return Err("usage: inspect_packet PAYLOAD_HEX [PUBLIC_KEY_B64 SECRET]".into());
    };
    let payload = from_hex(hex).ok_or("the payload is not hexadecimal")?;
    let packet = AuthPacket::parse(&payload)?;
    println!("signed at Unix time {}", packet.seconds);
    println!("tail of {} bytes", payload.len() - AUTH_PACKET_LEN);
    println!(
        "first byte {:#04x}: {}",
        payload[0],
        match payload[0] >> 4 {
            4 => "looks like IPv4; a server tells it from data by its length",
            8.. => "cannot be mistaken for an IP packet",
            _ => "is not an IPv4 packet",
        }
    );
    if let [key, secret] = proof {
        let secret = SharedSecret::new(secret.as_bytes().to_vec());
        let verifier = Verifier::new(&*parse_key(key)?, secret, None)?;
        let policy = Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) };
        let from = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let time = ServerTime { now: packet.seconds, start: packet.seconds };
        match policy.check(from, &payload, time, false, &mut ReplayMemory::default()) {
            Ok(()) => println!("signed by this key, with this secret"),
            Err(reason) => println!("would be refused: {reason}"),
        }
    }
    Ok(())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let byte = |[high, low]: &[u32; 2]| u8::try_from(high << 4 | low).ok();
    rest.is_empty().then(|| pairs.iter().filter_map(byte).collect())
}
