//! Packets of control protocol v2, byte for byte (tests/data, made with PyNaCl, verified by OpenSSL).

#[path = "control_packets/properties.rs"]
mod properties;
#[path = "control_packets/vectors.rs"]
mod vectors;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::LazyLock;

use ipipou::auth::{
    Pair, Policy, Proof, Reject, ReplayMemory, ServerTime, SharedSecret, Signer, Verifier, hint,
    unsigned_hello,
};
use ipipou::wire::control::{
    Answer, AnswerKind, HELLO_LEN, Hello, HelloFields, HelloKind, Refusal, is_answer, is_hello,
    is_hello_to,
};

/// Both ends of a conversation.
struct Conversation {
    signer: Signer,
    client: [u8; 32],
    server: [u8; 32],
    verifier: Verifier,
    of_client: Pair,
    of_server: Pair,
    secret: SharedSecret,
}

impl Conversation {
    fn new(client_seed: &[u8; 32], server_seed: &[u8; 32], secret: &str) -> Self {
        let shared = || SharedSecret::new(secret.as_bytes().to_vec());
        let signer = Signer::new(client_seed, shared());
        let client = signer.public();
        let server = Signer::new(server_seed, shared()).public();
        Conversation {
            verifier: Verifier::new(&client, shared(), None).unwrap(),
            of_client: signer.pair_with_server(&server).unwrap(),
            of_server: Pair::of_server(server_seed, &client, &shared()).unwrap(),
            secret: shared(),
            signer,
            client,
            server,
        }
    }

    /// What a server says of a signature.
    fn is_signed(&self, hello: &Hello<'_>) -> bool {
        self.of_server.is_signed(hello, &self.secret)
    }

    /// What a server of v1 says.
    fn check_v1(&self, payload: &[u8]) -> Result<(), Reject> {
        let proof = Proof::Key(self.verifier.clone());
        let policy = Policy { remote_ip: None, remote_port: None, proof };
        let time = ServerTime { now: 0, start: 0 };
        let from = "192.0.2.1:10000".parse().unwrap();
        policy.check(from, payload, time, false, &mut ReplayMemory::default())
    }
}

/// The conversation of what is made up here.
static OURS: LazyLock<Conversation> =
    LazyLock::new(|| Conversation::new(&[7; 32], &[8; 32], "secret"));

#[test]
fn a_mac_of_one_direction_is_none_of_the_other() {
    let data = [1; 48];
    for pair in [&OURS.of_client, &OURS.of_server] {
        let (to_server, to_client) = (pair.hello_mac(&data), pair.answer_mac(&data));
        assert!(pair.is_hello_mac(&data, &to_server) && pair.is_answer_mac(&data, &to_client));
        assert!(!pair.is_hello_mac(&data, &to_client) && !pair.is_answer_mac(&data, &to_server));
    }
    assert_eq!(OURS.of_client.hello_mac(&data), OURS.of_server.hello_mac(&data));
    assert_eq!(OURS.of_client.answer_mac(&data), OURS.of_server.answer_mac(&data));
}

#[test]
fn other_ends_or_another_secret_have_other_macs() {
    let made = |client, server, secret| {
        let of = Conversation::new(&[client; 32], &[server; 32], secret);
        [of.of_server.hello_mac(b""), of.of_server.answer_mac(b"")]
    };
    // The last two have changed places, so their X25519 gives the same.
    let parties =
        [(7, 8, "secret"), (9, 8, "secret"), (7, 9, "secret"), (7, 8, ""), (8, 7, "secret")];
    let macs = parties.iter().flat_map(|(client, server, secret)| made(*client, *server, secret));
    assert_eq!(macs.collect::<BTreeSet<_>>().len(), 2 * parties.len());
}

#[test]
fn a_refusal_has_the_number_of_its_reason() {
    for (refusal, code) in [
        (Refusal::Expired, 1),
        (Refusal::Disabled, 2),
        (Refusal::Full, 3),
        (Refusal::AddressTaken, 4),
        (Refusal::Elsewhere, 5),
        (Refusal::Other(0x0102), 0x0102),
    ] {
        let kind = AnswerKind::Refuse(refusal);
        let answer = Answer { kind, ..plain_answer() };
        let sealed = OURS.of_server.seal(&answer);
        assert_eq!(sealed[..4], [&[0x83, 2][..], &u16::to_be_bytes(code)].concat());
        assert_eq!(Answer::parse(&sealed).unwrap().answer.kind, kind);
    }
}

fn plain_answer() -> Answer {
    Answer {
        kind: AnswerKind::Accept,
        echo: [1; 16],
        cookie: [2; 16],
        seen: None,
        lease: None,
        inner: Vec::new(),
        mtu: None,
    }
}

#[test]
fn a_hello_takes_the_first_salt_that_lets_it_begin_as_it_may() {
    let fields = HelloFields { salt: [0; 4], ..hello_of_ours() };
    let salts: Vec<_> = (0..=255).map(|salt| [salt; 4]).collect();
    let hello = |salts: &[[u8; 4]]| OURS.signer.hello(&OURS.of_client, &fields, salts.to_vec());
    let good: Vec<_> = salts.iter().filter(|salt| hello(&[**salt]).is_some()).collect();
    assert!((80..145).contains(&good.len()), "7 of 16 first bytes will do: {}", good.len());
    let first = hello(&salts).expect("one of many");
    assert_eq!(Hello::parse(&first).unwrap().fields.salt, *good[0]);
    let bad: Vec<_> = salts.iter().filter(|salt| !good.contains(salt)).copied().collect();
    assert_eq!(hello(&bad), None);
}

fn hello_of_ours() -> HelloFields {
    HelloFields {
        seconds: 1_700_000_000,
        salt: [1; 4],
        kind: HelloKind::Hello,
        wants_addresses: false,
        sender: hint(&OURS.client),
        receiver: hint(&OURS.server),
        cookie: [2; 16],
        mtu: None,
    }
}

#[test]
fn a_keepalive_has_noise_for_a_signature() {
    let packet = unsigned_hello(&OURS.of_client, &hello_of_ours(), [0x05; 64]);
    assert_eq!((packet[0], &packet[1..64]), (0x95, &[0x05; 63][..]));
    let hello = Hello::parse(&packet).unwrap();
    assert!(OURS.of_server.is_hello_mac(hello.authenticated, &hello.mac));
    assert!(!OURS.is_signed(&hello));
}
