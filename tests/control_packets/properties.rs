//! Whatever is written is read as the same, and any bytes are taken apart or refused.

use std::net::IpAddr;

use ipipou::wire::auth_packet::MAX_SECONDS;
use ipipou::wire::control::MAX_ANSWER_LEN;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn hello_fields() -> impl Strategy<Value = HelloFields> {
    let kind = prop_oneof![Just(HelloKind::Hello), Just(HelloKind::Bye)];
    let fields = (0..=MAX_SECONDS, any::<[u8; 4]>(), kind, any::<bool>(), any::<[u8; 8]>());
    (fields, any::<[u8; 8]>(), any::<[u8; 16]>(), any::<Option<u16>>()).prop_map(
        |((seconds, salt, kind, wants_addresses, sender), receiver, cookie, mtu)| HelloFields {
            seconds,
            salt,
            kind,
            wants_addresses,
            sender,
            receiver,
            cookie,
            mtu,
        },
    )
}

fn kinds() -> impl Strategy<Value = AnswerKind> {
    let refusals = [
        Refusal::Expired,
        Refusal::Disabled,
        Refusal::Full,
        Refusal::AddressTaken,
        Refusal::Elsewhere,
        Refusal::Other(0),
        Refusal::Other(6),
        Refusal::Other(u16::MAX),
    ];
    let refused = proptest::sample::select(refusals.to_vec()).prop_map(AnswerKind::Refuse);
    prop_oneof![Just(AnswerKind::Challenge), Just(AnswerKind::Accept), refused]
}

fn nets() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128_u8).prop_map(|(ip, length)| {
        let length = if ip.is_ipv4() { length / 4 } else { length };
        IpNet::new(ip, length).unwrap()
    })
}

/// Any answer for which there is room.
fn answers() -> impl Strategy<Value = Answer> {
    let seen = option::of((any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from));
    let tlvs = (seen, any::<Option<u32>>(), vec(nets(), 0..3), any::<Option<u16>>());
    (kinds(), any::<[u8; 16]>(), any::<[u8; 16]>(), tlvs).prop_map(
        |(kind, echo, cookie, (seen, lease, inner, mtu))| Answer {
            kind,
            echo,
            cookie,
            seen,
            lease,
            inner,
            mtu,
        },
    )
}

/// Bytes of any length, often of the right one and with a beginning that is looked at more closely.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop_oneof![vec(any::<u8>(), 0..200), vec(0..20_u8, HELLO_LEN)];
    (bytes, any::<bool>(), 0x80..0x85_u8).prop_map(|(mut bytes, is_hello, kind)| {
        let wanted: &[(usize, u8)] =
            if is_hello { &[(0, 0x90), (73, 2), (74, 1)] } else { &[(0, kind), (1, 2)] };
        for (at, value) in wanted {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = *value;
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn a_hello_is_read_as_it_was_written(fields in hello_fields(), noise: [[u8; 32]; 2]) {
        let noise = noise.concat().try_into().unwrap();
        let packet = unsigned_hello(&OURS.of_client, &fields, noise);
        let hello = Hello::parse(&packet).unwrap();
        prop_assert_eq!(hello.fields, fields);
        prop_assert!(OURS.of_server.is_hello_mac(hello.authenticated, &hello.mac));
        prop_assert!(is_hello_to(&packet, &fields.receiver) && !is_answer(&packet));
    }

    #[test]
    fn a_signed_hello_is_verified(fields in hello_fields(), salts: [[u8; 4]; 32]) {
        let packet = OURS.signer.hello(&OURS.of_client, &fields, salts);
        prop_assume!(packet.is_some());
        let packet = packet.unwrap();
        let hello = Hello::parse(&packet).unwrap();
        prop_assert_eq!(HelloFields { salt: fields.salt, ..hello.fields }, fields);
        prop_assert!(OURS.is_signed(&hello));
        prop_assert!(OURS.of_server.is_hello_mac(hello.authenticated, &hello.mac));
    }

    #[test]
    fn an_answer_is_read_as_it_was_written(answer in answers()) {
        let mut packet = answer.encode();
        packet.extend(OURS.of_server.answer_mac(&packet));
        let received = Answer::parse(&packet).unwrap();
        prop_assert_eq!(&received.answer, &answer);
        prop_assert!(OURS.of_client.is_answer_mac(received.authenticated, &received.mac));
    }

    #[test]
    fn a_sealed_answer_has_one_length_and_reads_the_same(answer in answers()) {
        let packet = OURS.of_server.seal(&answer);
        prop_assert_eq!((packet.len(), MAX_ANSWER_LEN), (128, 128));
        let received = Answer::parse(&packet).unwrap();
        prop_assert_eq!(&received.answer, &answer);
        prop_assert!(OURS.of_client.is_answer_mac(received.authenticated, &received.mac));
        prop_assert!(is_answer(&packet) && !is_hello(&packet));
    }

    #[test]
    fn any_bytes_are_taken_apart_or_refused(payload in payloads()) {
        if let Ok(hello) = Hello::parse(&payload) {
            prop_assert!(is_hello_to(&payload, &hello.fields.receiver));
            prop_assert!(!OURS.of_server.is_hello_mac(hello.authenticated, &hello.mac));
        }
        if let Ok(received) = Answer::parse(&payload) {
            prop_assert!(is_answer(&payload));
            prop_assert!(!OURS.of_client.is_answer_mac(received.authenticated, &received.mac));
        }
    }
}
