//! Keys, tokens and packets, byte for byte with the first `ipipou` (tests/data, made with PyNaCl).

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipipou::auth::{
    Policy, Proof, Reject, ReplayMemory, ServerTime, SharedSecret, Signer, Token, Verifier,
    generate_seed, is_public_key, parse_key,
};
use proptest::prelude::*;

#[derive(serde::Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    private_b64: String,
    public_b64: String,
    secret_utf8: String,
    seconds: u64,
    salt_hex: String,
    tail_hex: String,
    payload_hex: String,
}

fn vectors() -> Vec<Vector> {
    let text = include_str!("data/auth-vectors.json");
    serde_json::from_str::<Vectors>(text).unwrap().vectors
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn secret(text: &str) -> SharedSecret {
    SharedSecret::new(text.as_bytes().to_vec())
}

fn from() -> SocketAddr {
    "192.0.2.1:10000".parse().unwrap()
}

fn time(now: u64) -> ServerTime {
    ServerTime { now, start: now }
}

fn policy(proof: Proof) -> Policy {
    Policy { remote_ip: None, remote_port: None, proof }
}

impl Vector {
    fn policy(&self, max_discrepancy: Option<Duration>) -> Policy {
        let public = parse_key(&self.public_b64).unwrap();
        let verifier = Verifier::new(&public, secret(&self.secret_utf8), max_discrepancy);
        policy(Proof::Key(verifier.unwrap()))
    }
}

#[test]
fn packets_are_signed_as_by_the_first_version() {
    for vector in vectors() {
        let seed = parse_key(&vector.private_b64).unwrap();
        let signer = Signer::new(&seed, secret(&vector.secret_utf8));
        assert_eq!(STANDARD.encode(signer.public()), vector.public_b64, "{}", vector.name);
        if vector.tail_hex.is_empty() {
            let salt = hex(&vector.salt_hex).try_into().unwrap();
            let packet = signer.packet(vector.seconds, salt);
            assert_eq!(packet, hex(&vector.payload_hex), "{}", vector.name);
        }
    }
}

#[test]
fn packets_are_verified_as_by_the_first_version_even_with_a_tail() {
    for vector in vectors() {
        let payload = hex(&vector.payload_hex);
        let mut seen = ReplayMemory::default();
        let check = |payload: &[u8], seen: &mut ReplayMemory| {
            vector.policy(None).check(from(), payload, time(vector.seconds), false, seen)
        };
        assert_eq!(check(&payload, &mut seen), Ok(()), "{}", vector.name);
        assert_eq!(check(&payload, &mut seen), Err(Reject::Replayed), "{}", vector.name);
        for i in 0..payload.len() {
            let mut bent = payload.clone();
            bent[i] ^= 0x10;
            let result = check(&bent, &mut ReplayMemory::default());
            assert_eq!(result, Err(Reject::WrongSignature), "{} byte {i}", vector.name);
        }
    }
}

#[test]
fn clocks_may_differ_as_far_as_allowed() {
    let vector = &vectors()[0];
    let payload = hex(&vector.payload_hex);
    let check = |unix| {
        let policy = vector.policy(Some(Duration::from_secs(60)));
        policy.check(from(), &payload, time(unix), false, &mut ReplayMemory::default())
    };
    assert_eq!(check(vector.seconds - 60), Ok(()));
    assert_eq!(check(vector.seconds + 60), Ok(()));
    assert_eq!(check(vector.seconds - 61), Err(Reject::ClockDiffers));
    assert_eq!(check(vector.seconds + 61), Err(Reject::ClockDiffers));
}

#[test]
fn a_refused_packet_is_not_remembered() {
    let vector = &vectors()[0];
    let mut seen = ReplayMemory::default();
    let mut forged = hex(&vector.payload_hex);
    forged[68] = 0xff; // a later time, which the key did not sign
    assert!(vector.policy(None).check(from(), &forged, time(0), false, &mut seen).is_err());
    assert_eq!(seen, ReplayMemory::default());
}

/// With the key's owner's help there are signatures whose first half is a point of small order. They
/// hold for libraries that do not look (cofactorless verification), not for others: who has the key
/// could make packets that some servers accept and others refuse.
#[test]
fn a_signature_with_a_point_of_small_order_is_refused() {
    use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};

    // R is the identity, and S = H(R, A, M) · a, for the key of 32 bytes 7 and the secret "secret".
    let half = hex("1b5170aae7ce9a84d594ff12d93326888ddc6289690fb7c9e9e4dc053844c70c");
    let signature = [&[1][..], &[0; 31], &half].concat();
    let message = [&1_700_000_000u64.to_be_bytes()[3..], &[1, 2, 3, 4]].concat();
    let public = Signer::new(&[7; 32], secret("secret")).public();

    let key = VerifyingKey::from_bytes(&public).unwrap();
    let signed = [&message[..], b"secret"].concat();
    let loose = key.verify(&signed, &Signature::from_slice(&signature).unwrap());
    assert!(loose.is_ok(), "a vector that nobody accepts proves nothing");

    let verifier = Verifier::new(&public, secret("secret"), None).unwrap();
    let packet = [signature, message].concat();
    let check = |packet: &[u8]| {
        let mut seen = ReplayMemory::default();
        policy(Proof::Key(verifier.clone())).check(from(), packet, time(0), false, &mut seen)
    };
    assert_eq!(check(&packet), Err(Reject::WrongSignature));
    let honest = Signer::new(&[7; 32], secret("secret")).packet(1_700_000_000, [1, 2, 3, 4]);
    assert_eq!(check(&honest), Ok(()));
}

#[test]
fn a_part_of_a_token_is_refused() {
    let token = b"the token\0and more";
    let policy = policy(Proof::Token(Token::new(token.to_vec()).unwrap()));
    let check = |payload: &[u8]| {
        policy.check(from(), payload, time(0), false, &mut ReplayMemory::default())
    };
    assert_eq!(check(token), Ok(()));
    for length in 0..token.len() {
        let reason = if length == 0 { Reject::Empty } else { Reject::WrongToken };
        assert_eq!(check(&token[..length]), Err(reason), "{length}");
        assert_eq!(check(&token[token.len() - length..]), Err(reason), "the last {length}");
    }
    assert_eq!(check(&[&token[..], b"x"].concat()), Err(Reject::WrongToken));
}

#[test]
fn the_source_is_checked_first() {
    let token = || Proof::Token(Token::new(b"hello".to_vec()).unwrap());
    let mut seen = ReplayMemory::default();
    let mut check =
        |policy: Policy, payload: &[u8]| policy.check(from(), payload, time(0), false, &mut seen);
    assert_eq!(check(policy(token()), b"hello"), Ok(()));
    assert_eq!(check(policy(token()), b"hello "), Err(Reject::WrongToken));
    assert_eq!(check(policy(token()), b""), Err(Reject::Empty));
    let ip = Policy { remote_ip: "192.0.2.2".parse().ok(), ..policy(token()) };
    assert_eq!(check(ip, b"hello"), Err(Reject::WrongIp));
    let port = Policy { remote_port: Some(1), ..policy(token()) };
    assert_eq!(check(port, b"hello"), Err(Reject::WrongPort));
    assert_eq!(check(policy(Proof::Nothing), b"anything"), Ok(()));
}

#[test]
fn malformed_and_weak_keys_are_refused() {
    let (private, public) = generate_seed(&[8; 32]).expect("no point of the curve");
    assert!(parse_key(&private).is_ok() && parse_key(&public).is_ok());
    assert!(parse_key("!").is_err() && parse_key("AAAA").is_err());
    // The identity is a point of the curve; under it, anybody's signature would hold.
    assert!(Verifier::new(&[0; 32], secret(""), None).is_err());
    let mut identity = [0; 32];
    identity[0] = 1;
    assert!(Verifier::new(&identity, secret(""), None).is_err());
}

#[test]
fn the_two_keys_of_a_pair_are_told_apart() {
    let mut made = 0;
    for byte in 0..=255 {
        // Every public key is one; so are those of the Python program, which makes them likewise.
        let public = Signer::new(&[byte; 32], secret("")).public();
        assert!(is_public_key(&public), "{byte}");
        let Some((private, public)) = generate_seed(&[byte; 32]) else { continue };
        made += 1;
        assert!(!is_public_key(&parse_key(&private).expect("a key")), "{}", *private);
        assert!(is_public_key(&parse_key(&public).expect("a key")), "{public}");
    }
    assert!((64..192).contains(&made), "half of all seeds: {made}");
}

#[test]
fn few_private_keys_look_like_public_ones() {
    // Seeds as the Python program draws them: any 32 bytes. The generator is that of MINSTD.
    let mut state = 1_u64;
    let mut byte = || {
        state = state * 48_271 % 0x7fff_ffff;
        state.to_le_bytes()[1]
    };
    let seeds: Vec<[u8; 32]> = (0..1600).map(|_| std::array::from_fn(|_| byte())).collect();
    let points = seeds.iter().filter(|seed| Verifier::new(seed, secret(""), None).is_ok()).count();
    let taken = seeds.iter().filter(|seed| is_public_key(seed)).count();
    assert!((600..1000).contains(&points), "half of all bytes are points: {points}");
    assert!((50..150).contains(&taken), "one in sixteen is in the subgroup: {taken}");
}

#[test]
fn secrets_are_not_printed() {
    let token = Token::new(b"hunter2".to_vec()).unwrap();
    let signer = Signer::new(&[7; 32], secret("hunter2"));
    for text in [format!("{token:?}"), format!("{signer:?}"), format!("{:?}", secret("hunter2"))] {
        assert!(!text.contains("hunter2") && !text.contains("104, 117"), "{text}");
    }
}

proptest! {
    #[test]
    fn no_unsigned_packet_is_accepted(payload in proptest::collection::vec(any::<u8>(), 0..700)) {
        let vector = &vectors()[0];
        let mut seen = ReplayMemory::default();
        prop_assert!(vector.policy(None).check(from(), &payload, time(0), false, &mut seen).is_err());
    }

    #[test]
    fn an_authentication_packet_is_not_an_ip_packet(seed: [u8; 32], seconds in 0..1u64 << 40, salts: [[u8; 4]; 16]) {
        let signer = Signer::new(&seed, secret("s"));
        let good = salts.iter().any(|salt| signer.packet(seconds, *salt)[0] >= 0x80);
        let packet = signer.control_packet(seconds, salts);
        prop_assert_eq!(packet.len(), 73);
        prop_assert_eq!(packet[0] >= 0x80, good);
    }
}
