//! Peers files as people write them: what is accepted, what it means, and what is said of mistakes.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use ipipou::auth::{SharedSecret, Signer, Token, is_public_key, key_text};
use ipipou::engine::peers_file::{
    Context, Fault, OldPeer, OldProof, PeerEntry, PeerSet, SourceFile, Speaks, parse,
};
use ipnet::IpNet;
use proptest::prelude::*;

/// Stands above each file of a golden file, and above what is said of all of them.
const HEAD: &str = "==> ";
const SAID: &str = "==> faults";

/// The public key of a peer for tests.
fn key(number: u8) -> [u8; 32] {
    Signer::new(&[number; 32], SharedSecret::new(Vec::new())).public()
}

/// A public key that begins with the same eight bytes.
fn key_like(key: [u8; 32]) -> [u8; 32] {
    let other = |end: u16| {
        let mut other = key;
        other[30..].copy_from_slice(&end.to_be_bytes());
        other
    };
    let mut all = (0..=u16::MAX).map(other);
    all.find(|other| *other != key && is_public_key(other)).expect("one in sixteen is")
}

/// Puts real keys in the place of `KEY-1` to `KEY-9`, and of `LIKE-3`, which begins like `KEY-3`.
fn with_keys(text: &str) -> String {
    let mut text = text.to_owned();
    for number in 1..=9 {
        let like = format!("LIKE-{number}");
        if text.contains(&like) {
            text = text.replace(&like, &key_text(&key_like(key(number))));
        }
        text = text.replace(&format!("KEY-{number}"), &key_text(&key(number)));
    }
    text
}

fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    match path.to_str() {
        Some("/secrets/line") => Ok(b" a secret \r\n".to_vec()),
        Some("/secrets/bytes") => Ok(vec![0xff, b'\n', b'\n']),
        Some("/secrets/empty") => Ok(b"\n".to_vec()),
        Some("/secrets/placeholder") => Ok(b"<the shared secret>\n".to_vec()),
        _ => Err("No such file or directory (os error 2)".to_owned()),
    }
}

/// The server 10.8.0.1/24 and fd00:8::1/64, whose key is number 9.
fn read(files: &[(&str, &str)]) -> Result<PeerSet, Vec<Fault>> {
    let file = |(name, text): &(&str, &str)| SourceFile {
        name: (*name).to_owned(),
        text: with_keys(text),
    };
    let files: Vec<_> = files.iter().map(file).collect();
    let context = Context {
        own_public_key: Some(key(9)),
        port: NonZeroU16::new(10000),
        inner: "10.8.0.1".parse().unwrap(),
        network: "10.8.0.0/24".parse().unwrap(),
        inner6: Some("fd00:8::1/64".parse().unwrap()),
        default_secret: &SharedSecret::new(b"default".to_vec()),
        read_secret: &read_secret,
    };
    parse(&files, &context)
}

/// The peers of one file without faults.
fn good(text: &str) -> Vec<PeerEntry> {
    let read = read(&[("f", text)]);
    read.unwrap_or_else(|faults| panic!("{text}: {}", said(&faults))).into_peers()
}

fn said(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{fault}\n")).collect()
}

/// The faults of one file.
fn faults(text: &str) -> String {
    read(&[("f", text)]).map_or_else(|faults| said(&faults), |_| String::new())
}

/// `UPDATE_GOLDEN=1 cargo test --test peers_file` writes the messages again.
fn golden(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let golden = std::fs::read_to_string(&path).expect("it is in the repository");
    let (written, expected) = golden.split_once(SAID).expect("what is said comes last");
    let files = written.split(HEAD).skip(1).filter_map(|file| file.split_once('\n'));
    let faults = read(&files.collect::<Vec<_>>()).expect_err("there are mistakes");
    for fault in &faults {
        let line = fault.to_string();
        assert!(!line.contains('\n') && !line.contains("s3cret"), "{line}");
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text = format!("{written}{SAID}\n{}", said(&faults));
        std::fs::write(&path, text).expect("the repository can be written");
    } else {
        assert_eq!(said(&faults), expected.trim_start());
    }
}

#[test]
fn mistakes_of_keys_are_clear() {
    golden("peers-keys.txt");
}

#[test]
fn mistakes_of_addresses_and_routes_are_clear() {
    golden("peers-inside.txt");
}

#[test]
fn mistakes_about_peers_with_the_old_program_are_clear() {
    golden("peers-old.txt");
}

#[test]
fn a_peer_with_the_old_program_has_a_port_and_a_key_or_a_token() {
    let peers = good(
        "[defaults]\nlifetime = \"5m\"\n\
         [peer.key]\npublic-key = \"KEY-1\"\naddress = \"10.8.0.2\"\nold = 10_003\n\
         [peer.token]\ntoken-file = \"/secrets/line\"\naddress = \"10.8.0.3\"\nold = 0x2714\n\
         lifetime = \"1m\"\nserver-address = \"172.28.0.2\"\n\
         [peer.new]\npublic-key = \"KEY-2\"\naddress = \"10.8.0.4\"\n",
    );
    let port = |port| NonZeroU16::new(port).unwrap();
    let token = Token::new(b" a secret ".to_vec()).unwrap();
    let minute = Some(Duration::from_secs(60));
    let speaks: Vec<_> = peers.iter().map(|peer| (peer.name.as_str(), &peer.speaks)).collect();
    // Many old clients send one packet only: the default for all is not theirs.
    let key = OldPeer {
        port: port(10003),
        server_address: None,
        proof: OldProof::Key(key(1)),
        lifetime: None,
    };
    let token = OldPeer {
        port: port(10004),
        server_address: Some("172.28.0.2".parse().unwrap()),
        proof: OldProof::Token(token),
        lifetime: minute,
    };
    let new = Speaks::Hellos(self::key(2));
    let expected = [("key", &Speaks::Old(key)), ("new", &new), ("token", &Speaks::Old(token))];
    assert_eq!(speaks, expected);
    assert_eq!(peers[2].public_key(), None);
}

#[test]
fn mistakes_of_fields_and_tables_are_clear() {
    golden("peers-fields.txt");
}

#[test]
fn mistakes_of_values_are_clear() {
    golden("peers-values.txt");
}

#[test]
fn peers_that_clash_are_both_named() {
    golden("peers-clashes.txt");
}

#[test]
fn text_that_is_not_toml_is_one_line_each() {
    golden("peers-syntax.txt");
}

/// The least that a peer needs.
fn peer(name: &str, number: u8) -> String {
    let address = number + 1;
    format!("[peer.{name}]\npublic-key = \"KEY-{number}\"\naddress = \"10.8.0.{address}\"\n")
}

#[test]
fn a_peer_says_everything() {
    let peers = good(
        r#"
        [defaults]
        lifetime = "1h"
        isolate = true
        expires = 2027-01-31

        [peer.anna-router]      # a comment
        public-key = "KEY-1"
        address = ["10.8.0.7", "fd00:8::7"]
        route = ["192.168.7.0/24", "fd00:7::/64", "192.0.2.1"]
        secret = " s3cret "
        lifetime = 90
        expires = 2026-12-31T18:00:00+01:00
        enabled = false
        isolate = false
        note = "behind CGNAT; Eva, 2nd floor""#,
    );
    let [anna] = &peers[..] else { panic!("{peers:?}") };
    assert_eq!((anna.name.as_str(), anna.public_key()), ("anna-router", Some(&key(1))));
    assert_eq!(anna.addresses, ["10.8.0.7", "fd00:8::7"].map(|a| a.parse::<IpAddr>().unwrap()));
    let routes = ["192.168.7.0/24", "fd00:7::/64", "192.0.2.1/32"];
    assert_eq!(anna.routes, routes.map(|net| net.parse::<IpNet>().unwrap()));
    assert_eq!(anna.secret.as_bytes(), b" s3cret ");
    assert_eq!((anna.lease, anna.expires), (Duration::from_secs(90), Some(1_798_736_400)));
    assert_eq!((anna.enabled, anna.isolate), (false, false));
    assert_eq!(anna.note.as_deref(), Some("behind CGNAT; Eva, 2nd floor"));
    assert_eq!(anna.origin.to_string(), "f:7");
    assert!(!format!("{peers:?}").contains("s3cret"));
}

#[test]
fn what_a_peer_does_not_say_comes_from_its_file_and_then_from_the_server() {
    let defaults = "[defaults]\nsecret-file = \"/secrets/line\"\nlifetime = \"1h\"\n\
                    isolate = true\nexpires = 2027-01-31\nenabled = false\n";
    let some = format!("{defaults}{}", peer("zoe", 1));
    let own = format!("{defaults}{}secret = \"\"\nexpires = \"never\"\n", peer("yan", 2));
    let set = read(&[("a", &some), ("b", &own), ("c", &peer("anna", 3))]).unwrap();
    let names: Vec<_> = set.peers().iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(names, ["anna", "yan", "zoe"], "by name, whatever the order of the files");
    let facts = |name: &str| {
        let peer = set.get(&name.parse().unwrap()).unwrap();
        let flags = (peer.enabled, peer.isolate);
        (peer.secret.as_bytes().to_vec(), peer.lease.as_secs(), peer.expires, flags)
    };
    assert_eq!(facts("zoe"), (b" a secret ".to_vec(), 3600, Some(1_801_440_000), (false, true)));
    assert_eq!(facts("yan"), (b"".to_vec(), 3600, None, (false, true)));
    assert_eq!(facts("anna"), (b"default".to_vec(), 180, None, (true, false)));
    assert!(set.get(&"nobody".parse().unwrap()).is_none());
}

#[test]
fn one_newline_at_the_end_of_a_secret_file_is_not_the_secret() {
    let text = |file| format!("{}secret-file = \"/secrets/{file}\"", peer("anna", 1));
    assert_eq!(good(&text("line"))[0].secret.as_bytes(), b" a secret ");
    assert_eq!(good(&text("bytes"))[0].secret.as_bytes(), [0xff, b'\n']);
}

#[test]
fn nothing_is_an_empty_set() {
    assert!(read(&[]).unwrap().is_empty());
    for text in ["", "# a comment\n", "\u{feff}", "[defaults]\nisolate = true", "[peer]\n"] {
        assert!(good(text).is_empty(), "{text}");
    }
}

#[test]
fn tables_may_be_written_in_every_way_of_toml() {
    for text in [
        "peer.anna.public-key = \"KEY-1\"\npeer.anna.address = \"10.8.0.2\"",
        "peer.anna = { public-key = \"KEY-1\", address = [\"10.8.0.2\"] }",
        "[ peer . \"anna\" ]\r\npublic-key = 'KEY-1'\r\naddress = \"\\u0031\u{30}.8.0.2\"\r\n",
        "[peer]\nanna = { public-key = \"KEY-1\", address = \"10.8.0.2\" }",
    ] {
        let peers = good(text);
        assert_eq!((peers.len(), peers[0].name.as_str()), (1, "anna"), "{text}");
        assert_eq!(peers[0].addresses, ["10.8.0.2".parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn a_server_without_ipv6_inside_takes_no_addresses_of_it() {
    let file = |address: &str| SourceFile {
        name: "f".to_owned(),
        text: with_keys(&format!("{}route = \"fd00:7::/64\"", peer("anna", 1)))
            .replace("10.8.0.2", address),
    };
    let context = Context {
        own_public_key: None,
        port: NonZeroU16::new(10000),
        inner: "10.8.0.1".parse().unwrap(),
        network: "10.8.0.0/31".parse().unwrap(),
        inner6: None,
        default_secret: &SharedSecret::new(Vec::new()),
        read_secret: &read_secret,
    };
    let faults = parse(&[file("fd00:8::2")], &context).unwrap_err();
    assert_eq!(
        said(&faults),
        "f:3: peer anna: `address` fd00:8::2: the server has no IPv6 inside the tunnel: leave it out, \
         or start the server with --ip6\n\
         f:4: peer anna: `route` fd00:7::/64: the server has no IPv6 inside the tunnel: leave it out, \
         or start the server with --ip6\n"
    );
    let text = with_keys(&peer("anna", 1)).replace("10.8.0.2", "10.8.0.0");
    let in_two = SourceFile { name: "f".to_owned(), text };
    assert!(parse(&[in_two], &context).is_ok(), "a network of two has no other addresses");
}

#[test]
fn a_mistake_of_a_peer_does_not_hide_those_of_others() {
    let bad =
        faults("[peer.Anna]\naddress = \"10.9.0.1\"\nlifetime = 1\n[peer.bob]\naddress = \"x\"");
    let lines: Vec<_> = bad.lines().map(|line| &line[..4]).collect();
    assert_eq!(lines, ["f:1:", "f:1:", "f:2:", "f:3:", "f:4:", "f:5:"], "{bad}");
}

#[test]
fn a_head_within_a_text_is_not_a_peer_and_hides_no_mistake() {
    let text = format!("{}address = \"10.8.0.3\"", peer("anna", 1));
    let bad = faults(&format!("note = '''\n[peer.anna]\n'''\n{text}"));
    assert_eq!(bad.lines().count(), 1, "{bad}");
    assert!(bad.starts_with("f:7: peer anna: \"address\" is there twice"), "{bad}");
}

#[test]
fn a_file_of_secrets_is_read_once() {
    let count = std::cell::Cell::new(0);
    let context = Context {
        own_public_key: None,
        port: NonZeroU16::new(10000),
        inner: "10.8.0.1".parse().unwrap(),
        network: "10.8.0.0/24".parse().unwrap(),
        inner6: None,
        default_secret: &SharedSecret::new(Vec::new()),
        read_secret: &|path: &Path| {
            count.set(count.get() + 1);
            read_secret(path)
        },
    };
    let text: String = [peer("a", 1), peer("b", 2), peer("c", 3)]
        .map(|peer| format!("{peer}secret-file = \"/secrets/line\"\n"))
        .concat();
    let file = SourceFile { name: "f".to_owned(), text: with_keys(&text) };
    assert!(!format!("{file:?}").contains("secret"));
    assert!(parse(&[file], &context).is_ok());
    assert_eq!(count.get(), 1);
}

/// Networks of few bits, so that many of them overlap.
fn net() -> impl Strategy<Value = IpNet> {
    let v4 = (24u8..=32, 0u8..32)
        .prop_map(|(length, host)| IpNet::new([192, 168, 7, host << 3].into(), length).unwrap());
    let v6 = (120u8..=128, 0u16..32).prop_map(|(length, host)| {
        IpNet::new([0xfd00, 0, 0, 0, 0, 0, 0, host << 3].into(), length).unwrap()
    });
    prop_oneof![v4, v6].prop_map(|net| net.trunc())
}

/// The networks of a few peers; no peer has one twice.
fn nets() -> impl Strategy<Value = Vec<Vec<IpNet>>> {
    let of_peer = proptest::collection::btree_set(net(), 0..4);
    proptest::collection::vec(of_peer.prop_map(|nets| nets.into_iter().collect()), 1..7)
}

/// Lines and halves of lines, right and wrong.
const PIECES: [&str; 22] = [
    "[peer.a]\n",
    "[peer.b]\n",
    "[[peer]]\n",
    "[peer]\n",
    "[defaults]\n",
    "public-key = ",
    "\"KEY-1\"\n",
    "address = ",
    "[\"10.8.0.7\", ",
    "\"10.8.0.8\"]\n",
    "route = ",
    "expires = ",
    "2027-01-31\n",
    "{ a = 1 }\n",
    "'''\n",
    "\"\n",
    "= ",
    "peer.a.b = 1\n",
    "lifetime = ",
    "-1\n",
    "true\n",
    "[\n",
];

/// Whether each fault is a line of its own, about a line that there is.
fn are_lines(faults: &[Fault], text: &str) -> bool {
    let lines = text.split('\n').count();
    let inside = faults.iter().all(|fault| fault.line <= lines);
    let single = said(faults).lines().count() == faults.len();
    inside && single && !faults.is_empty() && faults.is_sorted()
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in "(?s).{0,200}") {
        let read = read(&[("f", &text)]);
        prop_assert!(read.is_ok() || read.is_err_and(|faults| are_lines(&faults, &text)));
    }

    #[test]
    fn any_pieces_are_read_without_panic(
        pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..20),
    ) {
        let text = pieces.concat();
        let read = read(&[("f", &text)]);
        prop_assert!(read.is_ok() || read.is_err_and(|faults| are_lines(&faults, &text)));
    }

    /// All peers that overlap another are named, and no others.
    #[test]
    fn overlapping_networks_are_found(nets in nets()) {
        let mut text = String::new();
        for (number, nets) in (1u8..).zip(&nets) {
            let routes: Vec<_> = nets.iter().map(|net| format!("\"{net}\"")).collect();
            let peer = peer(&format!("p{number}"), number);
            text += &format!("{peer}route = [{}]\n", routes.join(", "));
        }
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let clash = |one: usize, other: usize| {
            nets[one].iter().any(|net| nets[other].iter().any(|other| overlap(net, other)))
        };
        let found = read(&[("f", &text)]).err().unwrap_or_default();
        let number = |name: &str| name[1..].parse::<usize>().unwrap() - 1;
        let mut named = vec![false; nets.len()];
        for fault in &found {
            let [one, other] = &fault.peers[..] else { panic!("{fault}") };
            let (one, other) = (number(one.as_str()), number(other.as_str()));
            prop_assert!(other < one && clash(one, other), "{fault}");
            prop_assert_eq!(fault.line, 4 * one + 4);
            (named[one], named[other]) = (true, true);
        }
        for (one, named) in named.into_iter().enumerate() {
            let clashes = (0..nets.len()).any(|other| other != one && clash(one, other));
            prop_assert_eq!(named, clashes, "peer {} in {}", one + 1, said(&found));
        }
    }
}
