//! An authentication packet is signed and verified, and a replay of it is refused. Nothing is read and
//! nothing is sent; the output is the same each time:
//!
//! ```text
//! cargo run --example sign_and_verify
//! ```
//!
//! `examples/inspect_packet.rs` takes apart a packet from a capture.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use ipipou::auth::{
    Policy, Proof, ReplayMemory, ServerTime, SharedSecret, Signer, Verifier, key_text,
};
use ipipou::wire::auth_packet::AuthPacket;

/// Unix time by both clocks, and that of the server's start.
const NOW: u64 = 1_700_000_000;
const STARTED: u64 = NOW - 3600;

/// What happens, a line each.
pub fn play() -> Result<Vec<String>, Box<dyn Error>> {
    let mut said = Vec::new();
    // A program gets seed and secret from files that only root can read, and salts from getrandom(2).
    let secret = || SharedSecret::new(b"known to both ends".to_vec());
    let signer = Signer::new(&[7; 32], secret());
    let salts = (0..16).map(|i| [i; 4]);
    said.push(format!("public key {}", key_text(&signer.public())));

    let payload = signer.control_packet(NOW, salts);
    let packet = AuthPacket::parse(&payload)?;
    said.push(format!("packet of {} bytes, signed at {}", payload.len(), packet.seconds));

    // The server knows the public half only, and lets clocks differ as they like.
    let verifier = Verifier::new(&signer.public(), secret(), None)?;
    let policy = Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) };
    let mut seen = ReplayMemory::default().at_start(None, STARTED);
    let mut judge = |what: &str, from: SocketAddr, payload: &[u8]| {
        let time = ServerTime { now: NOW, start: STARTED };
        match policy.check(from, payload, time, false, &mut seen) {
            Ok(()) => said.push(format!("{what} from {from}: accepted")),
            Err(reason) => said.push(format!("{what} from {from}: refused: {reason}")),
        }
    };
    let client = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 7), 4500));
    let stranger = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 66), 4500));

    let mut forged = payload.clone();
    forged.iter_mut().skip(64).take(5).for_each(|byte| *byte = 0xff); // the latest time there is
    judge("a forged packet", stranger, &forged);
    judge("the packet", client, &payload);
    judge("a replay", stranger, &payload);
    judge("an older packet", client, &signer.packet(NOW - 1, [0; 4]));
    judge("the next packet", client, &signer.packet(NOW + 1, [0; 4]));
    Ok(said)
}

fn main() -> Result<(), Box<dyn Error>> {
    play()?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
