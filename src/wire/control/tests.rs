use ipnet::IpNet;

use super::*;

fn hello(tlvs: [u8; 4]) -> [u8; HELLO_LEN] {
    let fields = HelloFields {
        seconds: 0x0102030405,
        salt: [6; 4],
        kind: HelloKind::Bye,
        wants_addresses: true,
        sender: [7; 8],
        receiver: [8; 8],
        cookie: [9; 16],
        mtu: None,
    };
    let mut bytes = [0x90; HELLO_LEN];
    bytes[64..112].copy_from_slice(&fields.encode());
    bytes[108..112].copy_from_slice(&tlvs);
    bytes
}

#[test]
fn hellos_of_another_shape_are_refused() {
    let good = hello([0; 4]);
    assert!(Hello::parse(&good).is_ok() && is_hello_to(&good, &[8; 8]));
    assert!(!is_hello_to(&good, &[7; 8]));
    for length in [0, 73, 127] {
        assert_eq!(Hello::parse(&good[..length]), Err(ControlError::Length), "{length}");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(Hello::parse(&longer), Err(ControlError::Length));
    assert!(!is_hello(&longer) && !is_hello(&good[..127]));
    for (at, value, why) in [
        (0, 0x8f, ControlError::FirstByte),
        (0, 0x45, ControlError::FirstByte),
        (73, 1, ControlError::Version),
        (73, 3, ControlError::Version),
        (74, 3, ControlError::Kind),
        (74, 0, ControlError::Kind),
    ] {
        let mut bad = good;
        bad[at] = value;
        assert_eq!(Hello::parse(&bad), Err(why), "{at}");
        assert_eq!(is_hello(&bad), why == ControlError::Kind, "{at}");
    }
}

#[test]
fn reserved_flags_are_ignored() {
    for (flags, wants_addresses) in [(0, false), (2, true), (0xfd, false), (0xff, true)] {
        let mut bytes = hello([0; 4]);
        bytes[75] = flags;
        let fields = Hello::parse(&bytes).unwrap().fields;
        assert_eq!(fields.wants_addresses, wants_addresses, "{flags}");
    }
    for flags in [0, 1, 0xffff] {
        let mut bytes = answer(&[]);
        bytes[2..4].copy_from_slice(&u16::to_be_bytes(flags));
        assert_eq!(Answer::parse(&bytes).unwrap().answer.kind, AnswerKind::Accept, "{flags}");
    }
}

#[test]
fn a_field_that_runs_over_the_end_is_refused() {
    for (tlvs, mtu) in [
        ([6, 2, 5, 0xc0], Ok(Some(1472))),
        ([0, 0, 0, 0], Ok(None)),
        ([0, 9, 9, 9], Ok(None)),
        ([99, 2, 1, 2], Ok(None)),
        ([99, 1, 0, 0], Ok(None)),
        ([6, 3, 5, 5], Err(ControlError::Field)),
        ([6, 1, 5, 0], Err(ControlError::Field)),
        ([99, 3, 5, 5], Err(ControlError::Field)),
        ([99, 1, 1, 6], Err(ControlError::Field)),
    ] {
        let bytes = hello(tlvs);
        assert_eq!(Hello::parse(&bytes).map(|hello| hello.fields.mtu), mtu, "{tlvs:?}");
    }
}

/// An accept with these bytes for TLVs.
fn answer(tlvs: &[u8]) -> Vec<u8> {
    [&[0x82, 2, 0, 0][..], &[1; 16], &[2; 16], tlvs, &[3; 16]].concat()
}

#[test]
fn answers_of_another_shape_are_refused() {
    let good = answer(&[]);
    assert!(Answer::parse(&good).is_ok() && is_answer(&good));
    for (at, value, why) in [
        (0, 0x80, ControlError::Kind),
        (0, 0x84, ControlError::Kind),
        (0, 0x45, ControlError::Kind),
        (0, 0x90, ControlError::Kind),
        (1, 1, ControlError::Version),
        (1, 3, ControlError::Version),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Answer::parse(&bad), Err(why), "{at} {value}");
    }
    for length in 0..good.len() {
        assert_eq!(Answer::parse(&good[..length]), Err(ControlError::Length), "{length}");
    }
    assert!(Answer::parse(&answer(&[0; 76])).is_ok(), "128 bytes");
    assert_eq!(Answer::parse(&answer(&[0; 77])), Err(ControlError::Length));
    for (first, is) in [(0x7f, false), (0x80, true), (0x8f, true), (0x90, false)] {
        assert_eq!(is_answer(&[first]), is, "{first}");
    }
    assert!(!is_answer(&[]));
}

#[test]
fn fields_of_another_length_are_refused_in_answers() {
    let right = [(3, &[6, 18][..]), (4, &[4]), (5, &[5, 17]), (6, &[2]), (7, &[])];
    for (kind, lengths) in right {
        for length in 0..30 {
            // Zeros are an address, and the length of a prefix.
            let field = [vec![kind, length], vec![0; usize::from(length)]].concat();
            let good = lengths.contains(&length) || kind == 7;
            let error = Answer::parse(&answer(&field)).err();
            assert_eq!(error, (!good).then_some(ControlError::Field), "{kind} {length}");
            // The MAC behind it does not belong to a field.
            let cut = answer(&field[..field.len() - 1]);
            assert_eq!(Answer::parse(&cut).err(), Some(ControlError::Field), "{kind} {length}");
        }
    }
}

#[test]
fn no_prefix_is_longer_than_its_address() {
    let inner = |ip: &[u8], length| {
        let size = u8::try_from(ip.len() + 1).unwrap();
        let bytes = answer(&[&[5, size], ip, &[length]].concat());
        Answer::parse(&bytes).map(|received| received.answer.inner)
    };
    assert_eq!(inner(&[10, 8, 0, 7], 24), Ok(vec!["10.8.0.7/24".parse().unwrap()]));
    assert_eq!(inner(&[10, 8, 0, 7], 32), Ok(vec!["10.8.0.7/32".parse().unwrap()]));
    assert_eq!(inner(&[10, 8, 0, 7], 33), Err(ControlError::Field));
    assert_eq!(inner(&[0; 16], 128), Ok(vec!["::/128".parse().unwrap()]));
    assert_eq!(inner(&[0; 16], 129), Err(ControlError::Field));
}

#[test]
fn unknown_fields_are_skipped_and_nothing_is_read_behind_the_end() {
    let bytes = answer(&[99, 1, 7, 5, 5, 10, 0, 0, 7, 24, 99, 0, 5, 5, 10, 0, 0, 8, 24, 0, 6, 9]);
    let received = Answer::parse(&bytes).unwrap().answer;
    let inner = ["10.0.0.7/24", "10.0.0.8/24"].map(|net| net.parse::<IpNet>().unwrap());
    assert_eq!((received.inner, received.mtu), (inner.to_vec(), None));
}

#[test]
fn answers_are_padded_to_one_length() {
    let mut answer = Answer {
        kind: AnswerKind::Refuse(Refusal::Other(700)),
        echo: [1; 16],
        cookie: [2; 16],
        seen: Some("[2001:db8::1]:65535".parse().unwrap()),
        lease: Some(u32::MAX),
        inner: vec!["10.0.0.7/24".parse().unwrap(), "fd00::7/64".parse().unwrap()],
        mtu: Some(1472),
    };
    let sealed = |answer: &Answer| [answer.encode_padded(), vec![3; 16]].concat();
    let bytes = sealed(&answer);
    let received = Answer::parse(&bytes).unwrap();
    assert_eq!((received.answer, received.mac), (answer.clone(), [3; 16]));
    assert_eq!((bytes.len(), received.authenticated.len()), (128, 112));
    // One more address than there is room for is left out.
    answer.inner.extend(["fd00::8/64", "fd00::9/64"].map(|net| net.parse::<IpNet>().unwrap()));
    let bytes = sealed(&answer);
    assert_eq!(bytes.len(), 128);
    assert_eq!(Answer::parse(&bytes).unwrap().answer.inner, answer.inner[..3]);
}
