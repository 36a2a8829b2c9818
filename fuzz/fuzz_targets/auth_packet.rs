//! A payload from anybody: never a panic, and never accepted without the key.
#![no_main]

use std::sync::LazyLock;

use ipipou::auth::{Policy, Proof, ReplayMemory, SharedSecret, Signer, Verifier};
use libfuzzer_sys::fuzz_target;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let secret = || SharedSecret::new(b"secret".to_vec());
    let public = Signer::new(&[7; 32], secret()).public();
    let verifier = Verifier::new(&public, secret(), None).expect("a fixed key");
    Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) }
});

fuzz_target!(|payload: &[u8]| {
    let from = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1);
    let mut seen = ReplayMemory::default();
    assert!(POLICY.check(from, payload, 1_700_000_000, &mut seen).is_err());
    assert_eq!(seen, ReplayMemory::default());
});
