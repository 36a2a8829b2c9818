//! What is kept in `tests/data/control-v2.json`: built and taken apart, byte for byte.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipipou::auth::{CookieSecrets, Ends, KeyError, check_public_key, check_public_keys};
use ipipou::wire::control::ControlError;

use super::*;

#[derive(serde::Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
    refused_packets: Vec<RefusedPacket>,
    refused_keys: Vec<RefusedKey>,
}

#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    cookie: String,
    tlvs: String,
    mac: String,
    packet: String,
    /// The first packet of a conversation says between whom it is.
    #[serde(flatten)]
    parties: Option<Parties>,
    #[serde(flatten)]
    hello: Option<HelloVector>,
    #[serde(flatten)]
    answer: Option<AnswerVector>,
    #[serde(flatten)]
    origin: Option<CookieOrigin>,
}

#[derive(serde::Deserialize)]
struct Parties {
    client_seed: String,
    client_public: String,
    server_seed: String,
    server_public: String,
    secret_utf8: String,
}

#[derive(serde::Deserialize)]
struct HelloVector {
    kind: u8,
    flags: u8,
    seconds: u64,
    salt: String,
}

#[derive(serde::Deserialize)]
struct AnswerVector {
    answers: String,
    reason: Option<u16>,
}

#[derive(serde::Deserialize)]
struct CookieOrigin {
    epoch: u64,
    epoch_secret: String,
    generation: u64,
    remote: End,
    local: End,
}

#[derive(serde::Deserialize)]
struct End {
    address: IpAddr,
    port: u16,
}

#[derive(serde::Deserialize)]
struct RefusedPacket {
    what: String,
    packet: String,
    refused_by: String,
}

#[derive(serde::Deserialize)]
struct RefusedKey {
    public: String,
    why: String,
}

fn all() -> Vectors {
    serde_json::from_str(include_str!("../data/control-v2.json")).unwrap()
}

/// Every vector with its conversation.
fn each(mut then: impl FnMut(&Conversation, &Vector)) {
    let mut conversation = None;
    for vector in &all().vectors {
        if let Some(parties) = &vector.parties {
            let (client_seed, server_seed) =
                (fixed(&parties.client_seed), fixed(&parties.server_seed));
            let new = Conversation::new(&client_seed, &server_seed, &parties.secret_utf8);
            assert_eq!(new.client, fixed(&parties.client_public), "{}", vector.name);
            assert_eq!(new.server, fixed(&parties.server_public), "{}", vector.name);
            conversation = Some(new);
        }
        then(conversation.as_ref().expect("the first one names the parties"), vector);
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

fn fixed<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

impl Vector {
    fn hello_fields(&self, of: &Conversation) -> Option<HelloFields> {
        let hello = self.hello.as_ref()?;
        Some(HelloFields {
            seconds: hello.seconds,
            salt: fixed(&hello.salt),
            kind: [HelloKind::Hello, HelloKind::Bye][usize::from(hello.kind) - 1],
            wants_addresses: hello.flags == 2,
            sender: hint(&of.client),
            receiver: hint(&of.server),
            cookie: fixed(&self.cookie),
            mtu: match self.tlvs.as_str() {
                "00000000" => None,
                "060205c0" => Some(1472),
                "060205ac" => Some(1452),
                other => panic!("{other}"),
            },
        })
    }

    fn answer(&self) -> Option<Answer> {
        let answer = self.answer.as_ref()?;
        let kind = match answer.reason {
            None if self.name.ends_with(": challenge") => AnswerKind::Challenge,
            None if self.name.ends_with(": accept") => AnswerKind::Accept,
            Some(1) => AnswerKind::Refuse(Refusal::Expired),
            other => panic!("{}: {other:?}", self.name),
        };
        // Read by eye from the bytes of the TLVs.
        let v4 = "198.51.100.7:52011";
        let v6 = "[2001:db8:7::aaaa]:40000";
        let (seen, lease, inner, mtu): (_, _, &[&str], _) = match self.tlvs.as_str() {
            "0306c6336407cb2b" => (v4, None, &[], None),
            "0306c6336407cb2b0404000000b405050a08000718060205c0" => {
                (v4, Some(180), &["10.8.0.7/24"], Some(1472))
            }
            "031220010db800070000000000000000aaaa9c40" => (v6, None, &[], None),
            "031220010db800070000000000000000aaaa9c400404000000b4\
             05050a080008180511fd00000800000000000000000000000840060205ac" => {
                (v6, Some(180), &["10.8.0.8/24", "fd00:8::8/64"], Some(1452))
            }
            other => panic!("{other}"),
        };
        Some(Answer {
            kind,
            echo: fixed(&answer.answers),
            cookie: fixed(&self.cookie),
            seen: Some(seen.parse().unwrap()),
            lease,
            inner: inner.iter().map(|net| net.parse().unwrap()).collect(),
            mtu,
        })
    }
}

impl CookieOrigin {
    fn secrets(&self) -> CookieSecrets {
        CookieSecrets::new(CookieSecrets::EPOCH * u32::try_from(self.epoch).unwrap(), self.secret())
    }

    fn secret(&self) -> [u8; 32] {
        fixed(&self.epoch_secret)
    }

    fn ends(&self) -> Ends {
        let address = |end: &End| SocketAddr::new(end.address, end.port);
        Ends { remote: address(&self.remote), local: address(&self.local) }
    }
}

#[test]
fn hellos_are_built_and_verified_as_in_the_vectors() {
    let mut count = 0;
    each(|of, vector| {
        let Some(fields) = vector.hello_fields(of) else { return };
        count += 1;
        let (name, packet) = (&vector.name, hex(&vector.packet));
        let built = of.signer.hello(&of.of_client, &fields, [fields.salt]).expect("a good salt");
        assert_eq!(built[..], packet, "{name}");

        assert!(is_hello_to(&packet, &hint(&of.server)), "{name}");
        assert!(!is_hello_to(&packet, &hint(&of.client)) && !is_answer(&packet), "{name}");
        let hello = Hello::parse(&packet).unwrap();
        assert_eq!((hello.fields, hello.mac), (fields, fixed(&vector.mac)), "{name}");
        assert!(of.of_server.is_hello_mac(hello.authenticated, &hello.mac), "{name}");
        assert!(of.is_signed(&hello), "{name}");
        assert_eq!(of.check_v1(&packet), Ok(()), "an old server takes it: {name}");
        assert_eq!(of.check_v1(&packet[..73]), Err(Reject::WrongSignature), "{name}");
    });
    assert_eq!(count, 5);
}

#[test]
fn answers_are_built_and_verified_as_in_the_vectors() {
    let mut count = 0;
    each(|of, vector| {
        let Some(answer) = vector.answer() else { return };
        count += 1;
        let (name, packet) = (&vector.name, hex(&vector.packet));
        let mut built = answer.encode();
        built.extend(of.of_server.answer_mac(&built));
        assert_eq!(built, packet, "{name}");

        assert!(is_answer(&packet) && !is_hello(&packet), "{name}");
        let received = Answer::parse(&packet).unwrap();
        assert_eq!((&received.answer, received.mac), (&answer, fixed(&vector.mac)), "{name}");
        assert!(of.of_client.is_answer_mac(received.authenticated, &received.mac), "{name}");
    });
    assert_eq!(count, 5);
}

#[test]
fn cookies_are_made_and_known_again_as_in_the_vectors() {
    let (mut count, mut last) = (0, None);
    each(|of, vector| {
        let cookie = fixed(&vector.cookie);
        if let Some(origin) = &vector.origin {
            count += 1;
            let made = origin.secrets().make(&of.client, origin.generation, &origin.ends());
            assert_eq!(made, cookie, "{}", vector.name);
            last = Some((origin.secrets(), origin.generation, origin.ends()));
        }
        if vector.name.contains("hello without a cookie") {
            last = None;
        } else if let Some((secrets, generation, ends)) = &last {
            assert!(secrets.is_good(&cookie, &of.client, *generation, ends), "{}", vector.name);
            assert!(!secrets.is_good(&cookie, &of.client, generation + 1, ends));
            assert!(!secrets.is_good(&cookie, &of.server, *generation, ends));
        }
    });
    assert_eq!(count, 4);
}

#[test]
fn packets_to_refuse_are_refused_for_their_reason() {
    let Vectors { vectors, refused_packets, .. } = all();
    let parties = vectors[0].parties.as_ref().expect("the first one names the parties");
    let (client, server) = (fixed(&parties.client_seed), fixed(&parties.server_seed));
    let of = Conversation::new(&client, &server, &parties.secret_utf8);
    let origin = vectors[1].origin.as_ref().expect("the challenge has its cookie's origin");
    let mut reasons = BTreeSet::new();
    for RefusedPacket { what, packet, refused_by } in &refused_packets {
        let packet = hex(packet);
        let parsed = Hello::parse(&packet);
        let mac_of_server = |hello: &Hello<'_>| {
            assert!(is_hello_to(&packet, &hint(&of.server)), "{what}");
            of.of_server.is_hello_mac(hello.authenticated, &hello.mac)
        };
        match refused_by.as_str() {
            "MAC" => {
                let hello = parsed.expect(what);
                assert!(!mac_of_server(&hello), "{what}");
                let is_answers = of.of_client.is_answer_mac(hello.authenticated, &hello.mac);
                assert_eq!(is_answers, what.contains("another direction"), "{what}");
            }
            "signature (at a move only)" => {
                let hello = parsed.expect(what);
                assert!(mac_of_server(&hello) && !of.is_signed(&hello), "{what}");
                let cookie = &hello.fields.cookie;
                let (generation, ends) = (origin.generation, origin.ends());
                assert!(origin.secrets().is_good(cookie, &of.client, generation, &ends), "{what}");
            }
            "length" => {
                assert_eq!(parsed, Err(ControlError::Length), "{what}");
                assert!(!is_hello(&packet), "{what}");
            }
            "old verification: signature covers the tail" => {
                assert_eq!(parsed, Err(ControlError::Length), "{what}");
                assert_eq!(of.check_v1(&packet), Err(Reject::WrongSignature), "{what}");
            }
            other => panic!("{what}: {other}"),
        }
        reasons.insert(refused_by);
    }
    assert_eq!((refused_packets.len(), reasons.len()), (7, 4));
}

#[test]
fn keys_to_refuse_are_refused_alone_and_among_many() {
    let signer = |number| Signer::new(&[number; 32], SharedSecret::new(Vec::new()));
    let mut keys: Vec<_> = (0..150).map(|number| signer(number).public()).collect();
    assert!(keys.iter().all(|key| check_public_key(key).is_ok()));
    assert!(check_public_keys(&keys).iter().all(Result::is_ok));
    let refused = all().refused_keys;
    for RefusedKey { public, why } in &refused {
        let key = fixed(public);
        let reason = match why.split([' ', ':']).next() {
            Some("small") => KeyError::Weak,
            Some("mixed") => KeyError::Torsion,
            Some("not") if why.starts_with("not canonical") => KeyError::NotCanonical,
            Some("not") if why == "not a point" => KeyError::NotAPoint,
            other => panic!("{other:?}"),
        };
        assert_eq!(check_public_key(&key), Err(reason.clone()), "{public}: {why}");
        assert_eq!(check_public_keys(&[key]), [Err(reason.clone())], "{public}: {why}");
        keys[77] = key;
        let checked = check_public_keys(&keys);
        let bad: Vec<_> = (0..keys.len()).filter(|at| checked[*at].is_err()).collect();
        assert_eq!(bad, [77], "{public}: {why}");
        let secret = SharedSecret::new(Vec::new());
        assert_eq!(Pair::of_client(&[1; 32], &key, &secret).err(), Some(reason.clone()));
        assert_eq!(Pair::of_server(&[1; 32], &key, &secret).err(), Some(reason));
    }
    assert_eq!(refused.len(), 24);
}

#[test]
fn no_changed_byte_of_a_hello_passes_both_mac_and_signature() {
    each(|of, vector| {
        let Some(_) = vector.hello else { return };
        for at in 0..HELLO_LEN {
            let mut packet = hex(&vector.packet);
            packet[at] ^= 1;
            let Ok(hello) = Hello::parse(&packet) else {
                assert!([73, 74].contains(&at) || (108..112).contains(&at), "{at}");
                continue;
            };
            let is_mac = of.of_server.is_hello_mac(hello.authenticated, &hello.mac);
            assert_eq!(is_mac, at < 64, "the MAC covers what is behind the signature: {at}");
            assert!(!of.is_signed(&hello), "the signature covers all: {at}");
        }
    });
}
