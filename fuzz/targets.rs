//! What must hold for any bytes from outside. `tests/fuzz.rs` tries the kept inputs of `corpus/`
//! with every `cargo test`; libFuzzer goes on from them (tests/setup/fuzz.sh).

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::LazyLock;

use clap::CommandFactory as _;
use ipnet::IpNet;

use ipipou::auth::{Pair, Policy, Proof, ReplayMemory, ServerTime, SharedSecret, Signer, Verifier};
use ipipou::cli::{self, CliError, Options, conf};
use ipipou::engine::peers_file::{Context, SourceFile, parse};
use ipipou::engine::table::HostTable;
use ipipou::wire::control::{Answer, Hello, HelloFields, is_answer, is_hello_to};
use ipipou::wire::inner::{self, Inner};
use ipipou::wire::udp::{Datagram, IPV4_HEADER_LEN, UDP_HEADER_LEN};

pub type Target = fn(&[u8]);

/// Their names are those of the directories in `corpus/`.
pub const TARGETS: [(&str, Target); 9] = [
    ("answer", answer),
    ("auth_packet", auth_packet),
    ("conf", conf_file),
    ("datagram", datagram),
    ("hello", hello),
    ("hosts", hosts),
    ("inner", inner_packet),
    ("options", options),
    ("peers", peers),
];

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let public = Signer::new(&[7; 32], secret()).public();
    Verifier::new(&public, secret(), None).expect("a fixed key")
});

static POLICY: LazyLock<Policy> = LazyLock::new(|| Policy {
    remote_ip: None,
    remote_port: None,
    proof: Proof::Key(VERIFIER.clone()),
});

static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    Pair::of_server(&[8; 32], &VERIFIER.public(), &secret()).expect("a fixed key")
});

fn secret() -> SharedSecret {
    SharedSecret::new(b"secret".to_vec())
}

/// An answer of a server: never a panic, never one from somebody without the key, and what is understood of it
/// takes no more bytes and is read as the same.
fn answer(payload: &[u8]) {
    let Ok(received) = Answer::parse(payload) else { return };
    assert!(is_answer(payload) && !PAIR.is_answer_mac(received.authenticated, &received.mac));
    let written = [received.answer.encode(), received.mac.to_vec()].concat();
    assert!(written.len() <= payload.len());
    assert_eq!(Answer::parse(&written).map(|again| again.answer), Ok(received.answer));
}

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

/// A hello: never a panic, neither MAC nor signature without the keys, and what is understood of it is
/// written and read as the same.
fn hello(payload: &[u8]) {
    let Ok(hello) = Hello::parse(payload) else { return };
    assert!(is_hello_to(payload, &hello.fields.receiver));
    assert!(
        !PAIR.is_hello_mac(hello.authenticated, &hello.mac) && !PAIR.is_signed(&hello, &secret())
    );
    let written = [&hello.signature[..], &hello.fields.encode(), &hello.mac].concat();
    let again: Result<HelloFields, _> = Hello::parse(&written).map(|hello| hello.fields);
    assert_eq!(again, Ok(hello.fields));
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

/// Peers files, which NUL separates: never a panic, each mistake is one line of bounded length, and in a
/// set without one no peer has what another has.
fn peers(text: &[u8]) {
    let texts = text.split(|b| *b == 0).take(4).zip(["a.toml", "b.toml", "c.toml", "d.toml"]);
    let files: Vec<_> = texts
        .map(|(text, name)| SourceFile {
            name: name.to_owned(),
            text: String::from_utf8_lossy(text).into_owned(),
        })
        .collect();
    let context = Context {
        own_public_key: Some([7; 32]),
        port: None,
        inner: Ipv4Addr::new(10, 8, 0, 1),
        network: "10.8.0.0/24".parse().expect("a network"),
        inner6: Some("fd00:8::1/64".parse().expect("a network")),
        default_secret: &SharedSecret::new(Vec::new()),
        read_secret: &|path| Ok(path.as_os_str().as_encoded_bytes().to_vec()),
    };
    match parse(&files, &context) {
        Ok(set) => {
            let nets = |index: usize| {
                let peer = &set.peers()[index];
                let addresses = peer.addresses.iter().map(|address| IpNet::from(*address));
                addresses.chain(peer.routes.iter().copied())
            };
            for (index, peer) in set.peers().iter().enumerate() {
                assert!(!peer.addresses.is_empty() && peer.lease.as_secs() >= 30);
                for (other, before) in set.peers()[..index].iter().enumerate() {
                    assert!(before.name < peer.name);
                    let (key, next) = (before.public_key(), peer.public_key());
                    assert!(key.is_none() || key != next);
                    let mut pairs = nets(index).flat_map(|a| nets(other).map(move |b| (a, b)));
                    assert!(!pairs.any(|(a, b)| a.contains(&b) || b.contains(&a)));
                }
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty() && faults.is_sorted());
            for line in faults.iter().map(ToString::to_string) {
                assert!(!line.contains('\n') && line.len() < 1000, "{line}");
            }
        }
    }
}
