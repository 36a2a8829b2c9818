//! What must hold for any bytes from outside. `tests/fuzz.rs` tries the kept inputs of `corpus/`
//! with every `cargo test`; libFuzzer goes on from them (tests/setup/fuzz.sh).

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::LazyLock;

use clap::CommandFactory as _;

use ipipou::auth::{Policy, Proof, ReplayMemory, ServerTime, SharedSecret, Signer, Verifier};
use ipipou::cli::{self, CliError, Options, conf};
use ipipou::engine::table::HostTable;
use ipipou::wire::inner::{self, Inner};
use ipipou::wire::udp::{Datagram, IPV4_HEADER_LEN, UDP_HEADER_LEN};

pub type Target = fn(&[u8]);

/// Their names are those of the directories in `corpus/`.
pub const TARGETS: [(&str, Target); 6] = [
    ("auth_packet", auth_packet),
    ("conf", conf_file),
    ("datagram", datagram),
    ("hosts", hosts),
    ("inner", inner_packet),
    ("options", options),
];

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let secret = || SharedSecret::new(b"secret".to_vec());
    let public = Signer::new(&[7; 32], secret()).public();
    let verifier = Verifier::new(&public, secret(), None).expect("a fixed key");
    Policy { remote_ip: None, remote_port: None, proof: Proof::Key(verifier) }
});

/// A payload from anybody: never a panic, and never accepted without the key.
fn auth_packet(payload: &[u8]) {
    let from = (Ipv4Addr::LOCALHOST, 1).into();
    let mut seen = ReplayMemory::default();
    let time = ServerTime { now: 1_700_000_000, start: 1_700_000_000 };
    assert!(POLICY.check(from, payload, time, false, &mut seen).is_err());
    assert_eq!(seen, ReplayMemory::default());
}

/// A `.conf` file: never a panic, and every error names its line.
fn conf_file(text: &[u8]) {
    // Making a new table takes longer than everything else.
    thread_local!(static TABLE: RefCell<clap::Command> = RefCell::new(Options::command()));
    let read =
        |table: &RefCell<_>| conf::arguments(text, Path::new("/f.conf"), &mut table.borrow_mut());
    if let Err(error) = TABLE.with(read) {
        let line = error.to_string();
        assert!(line.starts_with("/f.conf:"), "{line}");
    }
}

/// A packet out of the queue, cut anywhere: never a panic, never more payload than there is.
fn datagram(packet: &[u8]) {
    if let Some(datagram) = Datagram::parse(packet) {
        assert!(datagram.payload.len() + IPV4_HEADER_LEN + UDP_HEADER_LEN <= packet.len());
    }
}

/// A host table: never a panic, a mistake is one line of bounded length, and a good table stays the
/// same when it is written and read again.
fn hosts(text: &[u8]) {
    match HostTable::parse(text) {
        Ok(table) => {
            let written = serde_json::to_vec(&table).expect("strings and numbers");
            assert_eq!(HostTable::parse(&written), Ok(table));
        }
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n') && line.len() < 3000, "{line}");
        }
    }
}

/// An inner packet: never a panic, nothing outside of it, and the error that answers it is a packet
/// to its sender.
fn inner_packet(packet: &[u8]) {
    let Some(found) = Inner::parse(packet) else {
        assert_eq!(inner::unreachable(packet), None);
        return;
    };
    assert!(found.header_len <= found.length && found.length <= packet.len());
    if let Some(error) = inner::unreachable(packet) {
        let answer = Inner::parse(&error).expect("a whole packet");
        assert_eq!((answer.length, answer.destination), (error.len(), found.source));
    }
}

/// A command line: never a panic, and what is wrong is said in one line.
fn options(text: &[u8]) {
    let words = text.split(|b| *b == b'\n').map(|word| OsString::from_vec(word.to_vec()));
    // Reading files is not what is tried here.
    let words: Vec<_> =
        words.filter(|w| !w.as_encoded_bytes().starts_with(b"--c") && w != "check").collect();
    let args = std::iter::once(OsString::from("ipipou")).chain(words);
    if let Err(CliError::Usage(line)) = cli::parse(args, &|_| None) {
        assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
    }
}
