//! Both programs on single frames, by the kernel's own `BPF_PROG_TEST_RUN`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use ipnet::Ipv4Net;
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::FastPathAdapter;
use super::call::{self, Ran};
use super::compiled::{EGRESS_TEST, INGRESS, INGRESS_BARE_TEST};
use super::maps::{Maps, Peer, Sender};
use super::program::{Constants, Program};
use crate::engine::host::{FastPath, FastPathEnds, FastPeer, Takes, Traffic};
use crate::wire::inner::Inner;

const OURS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PORT: u16 = 10_000;
const MARK: u32 = 0x77;
/// They begin with the number of IPv4 in Ethernet, for `ingress_bare_test`.
const ALICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(8, 0, 2, 7), 4500);
const BOB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(8, 0, 2, 8), 4501);
const MTU: u16 = 1400;
/// What the programs return (linux/pkt_cls.h): the next filter, and another way.
const GO_ON: u32 = u32::MAX;
const REDIRECT: u32 = 7;

const ETHERNET: usize = 14;
const OUTER: usize = 28;

/// 10.0.0.0/24 is Alice's but for one address, 10.9.0.0/16 is Bob's.
struct Bed {
    maps: Maps,
    egress: Program,
    ingress: Program,
    bare: Program,
}

impl Bed {
    fn new() -> Self {
        Bed::leaving(0)
    }

    /// Datagrams with any of these bits in their checksums are left to the datapath.
    fn leaving(left_to_socket: u16) -> Self {
        let maps = Maps::create(64).unwrap();
        let peer = |remote, id| Peer { remote, mtu: MTU, uplink: 1, id };
        maps.peers.put("10.0.0.0/24".parse().unwrap(), &peer(ALICE, 1)).unwrap();
        maps.peers.put_nobody("10.0.0.66/32".parse().unwrap()).unwrap();
        maps.peers.put("10.9.0.0/16".parse().unwrap(), &peer(BOB, 2)).unwrap();
        maps.remotes.put(ALICE, Sender { link: 1, id: 1 }).unwrap();
        maps.remotes.put(BOB, Sender { link: 1, id: 2 }).unwrap();
        maps.lease.until(u64::MAX).unwrap();
        let (outer, port, mark, time_to_live) = (OURS, PORT, MARK, 64);
        let constants = Constants { outer, port, mark, time_to_live, left_to_socket };
        let egress = Program::load("egress_test", &EGRESS_TEST, &maps, &constants).unwrap();
        let ingress = Program::load("ingress", &INGRESS, &maps, &constants).unwrap();
        let bare = &INGRESS_BARE_TEST;
        let bare = Program::load("ingress_bare", bare, &maps, &constants).unwrap();
        Bed { maps, egress, ingress, bare }
    }

    fn counted(&self, id: usize) -> Traffic {
        self.maps.counts.first(id + 1).unwrap()[id]
    }

    fn send(&self, frame: &[u8]) -> Ran {
        call::run(self.egress.fd.as_fd(), frame, 5, 1).unwrap()
    }

    fn receive(&self, frame: &[u8]) -> Ran {
        call::run(self.ingress.fd.as_fd(), frame, 0, 1).unwrap()
    }

    /// At an uplink without a header of its own. The test run takes the first 14 bytes for one all the same,
    /// so what it leaves of a packet that is taken is not what an uplink leaves.
    fn receive_bare(&self, packet: &[u8]) -> Ran {
        call::run(self.bare.fd.as_fd(), packet, 0, 1).unwrap()
    }
}

/// A frame for the address of the loopback interface, at which the test run plays.
fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

fn inner(from: [u8; 4], to: [u8; 4], length: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from, to, 9).udp(7, 8);
    builder.write(&mut packet, &vec![0xa5; length - 28]).unwrap();
    packet
}

/// What Alice's end sends.
fn outer(from: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from.ip().octets(), OURS.octets(), 64).udp(from.port(), PORT);
    builder.write(&mut packet, payload).unwrap();
    packet[26..28].fill(0);
    packet
}

fn renew_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let words = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

const TO_ALICE: ([u8; 4], [u8; 4]) = ([10, 1, 0, 1], [10, 0, 0, 5]);
const FROM_ALICE: ([u8; 4], [u8; 4]) = ([10, 0, 0, 5], [10, 1, 0, 1]);

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn an_inner_packet_leaves_as_the_datapath_would_send_it() {
    let bed = Bed::new();
    for length in [28, 73, 100, 1400] {
        let packet = inner(TO_ALICE.0, TO_ALICE.1, length);
        let ran = bed.send(&frame(&packet));
        assert_eq!((ran.verdict, ran.mark), (REDIRECT, MARK), "{length}");
        assert_eq!(&ran.packet[ETHERNET + OUTER..], packet);
        let mut expected = Vec::new();
        let builder = PacketBuilder::ipv4(OURS.octets(), ALICE.ip().octets(), 64);
        builder.udp(PORT, ALICE.port()).write(&mut expected, &packet).unwrap();
        expected[6] = 0x40;
        expected[26..28].fill(0);
        renew_checksum(&mut expected);
        assert_eq!(&ran.packet[ETHERNET..][..OUTER], &expected[..OUTER]);
    }
    assert_eq!(bed.counted(1).tx_bytes, 28 + 73 + 100 + 1400);
    assert_eq!(bed.counted(1).tx_packets, 4);
    assert_eq!(bed.counted(2), Traffic::default());
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn what_one_end_sends_the_other_takes() {
    let bed = Bed::new();
    for length in [28, 73, 100, 1400] {
        let packet = inner(FROM_ALICE.0, FROM_ALICE.1, length);
        let ran = bed.receive(&frame(&outer(ALICE, &packet)));
        assert_eq!((ran.verdict, &ran.packet[ETHERNET..]), (REDIRECT, &packet[..]), "{length}");
    }
    assert_eq!(bed.counted(1).rx_bytes, 28 + 73 + 100 + 1400);
    assert_eq!(bed.counted(1).rx_packets, 4);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn what_the_kernel_merges_for_a_socket_may_be_left_to_it() {
    let bed = Bed::leaving(u16::MAX);
    let packet = inner(FROM_ALICE.0, FROM_ALICE.1, 100);
    let unchecked = outer(ALICE, &packet);
    let ran = bed.receive(&frame(&unchecked));
    assert_eq!((ran.verdict, &ran.packet[ETHERNET..]), (REDIRECT, &packet[..]));
    for at in [26, 27] {
        for bit in 0..8 {
            let mut checked = unchecked.clone();
            checked[at] = 1 << bit;
            let frame = frame(&checked);
            goes_on(&bed.receive(&frame), &frame, "with a checksum");
        }
    }
    assert_eq!(bed.counted(1).rx_packets, 1);
}

/// What goes on to the datapath has to reach it as it was.
fn goes_on(ran: &Ran, frame: &[u8], what: &str) {
    assert_eq!((ran.verdict, &ran.packet[..]), (GO_ON, frame), "{what}");
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn odd_packets_for_peers_go_on_to_the_datapath() {
    let bed = Bed::new();
    let good = inner(TO_ALICE.0, TO_ALICE.1, 100);
    assert_eq!(bed.send(&frame(&good)).verdict, REDIRECT);
    let odd = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        let frame = frame(&packet);
        goes_on(&bed.send(&frame), &frame, what);
    };
    odd("nobody has the address", &|p| p[16..20].copy_from_slice(&[10, 2, 0, 1]));
    odd("the address is left out", &|p| p[16..20].copy_from_slice(&[10, 0, 0, 66]));
    odd("with options", &|p| p[0] = 0x46);
    odd("a header that is too short", &|p| p[0] = 0x44);
    odd("not IPv4", &|p| p[0] = 0x65);
    odd("shorter than it says", &|p| p[3] += 1);
    odd("longer than it says", &|p| p[3] -= 1);
    odd("too long for the way", &|p| *p = inner(TO_ALICE.0, TO_ALICE.1, 1401));
    let mut ipv6 = frame(&good);
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    goes_on(&bed.send(&ipv6), &ipv6, "IPv6");
    assert_eq!(bed.counted(1).tx_packets, 1);
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn odd_packets_from_peers_go_on_to_the_datapath() {
    let bed = Bed::new();
    let inside = inner(FROM_ALICE.0, FROM_ALICE.1, 100);
    let good = outer(ALICE, &inside);
    assert_eq!(bed.receive(&frame(&good)).verdict, REDIRECT);
    assert_eq!(bed.receive_bare(&good).verdict, REDIRECT);
    let odd = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        renew_checksum(&mut packet);
        let frame = frame(&packet);
        goes_on(&bed.receive(&frame), &frame, what);
        goes_on(&bed.receive_bare(&packet), &packet, what);
    };
    odd("a stranger", &|p| p[15] ^= 1);
    odd("another port of the same host", &|p| p[21] ^= 1);
    odd("another local address", &|p| p[19] ^= 1);
    odd("another local port", &|p| p[23] ^= 1);
    odd("not UDP", &|p| p[9] = 6);
    odd("outer options", &|p| p[0] = 0x46);
    odd("the first of two fragments", &|p| p[6] = 0x20);
    odd("the second of two fragments", &|p| p[7] = 1);
    odd("padding behind it", &|p| p.extend([0; 6]));
    odd("cut off", &|p| p.truncate(100));
    odd("the outer length is wrong", &|p| p[3] -= 1);
    odd("the UDP length is wrong", &|p| p[25] -= 1);
    odd("merged datagrams, or a lookalike of a hello", &|p| p[28 + 3] -= 1);
    odd("an inner length beyond the end", &|p| p[28 + 3] += 1);
    odd("a hello", &|p| p[28] = 0x91);
    odd("inner IPv6", &|p| p[28] = 0x60);
    odd("an inner header that is too short", &|p| p[28] = 0x44);
    odd("inner options", &|p| p[28] = 0x46);
    odd("an inner header beyond the end", &|p| *p = outer(ALICE, &inside[..19]));
    odd("an inner source of another peer", &|p| p[28 + 12..][..4].copy_from_slice(&[10, 9, 0, 1]));
    odd("an inner source of nobody", &|p| p[28 + 12..][..4].copy_from_slice(&[10, 2, 0, 1]));
    odd("an inner source that is left out", &|p| p[28 + 15] = 66);
    odd("a UDP checksum that nobody has checked", &|p| p[26..28].copy_from_slice(&[1, 2]));
    odd("congestion, for hosts that do not know marks", &|p| p[1] = 3);
    let mut wrong = good.clone();
    wrong[10] ^= 1;
    goes_on(&bed.receive_bare(&wrong), &wrong, "a wrong outer checksum");
    let wrong = frame(&wrong);
    goes_on(&bed.receive(&wrong), &wrong, "a wrong outer checksum");
    let mut elsewhere = frame(&good);
    elsewhere[5] = 1;
    goes_on(&bed.receive(&elsewhere), &elsewhere, "for another host's card");
    let mut arp = frame(&good);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    goes_on(&bed.receive(&arp), &arp, "not IP");
    let mut vlan = frame(&good);
    vlan.splice(12..12, [0x81, 0, 0, 5]);
    let ran = bed.receive(&vlan);
    assert_eq!(ran.verdict, GO_ON, "of a VLAN");
    let by_another = Peer { remote: ALICE, mtu: MTU, uplink: 2, id: 1 };
    bed.maps.peers.put("10.0.0.0/24".parse().unwrap(), &by_another).unwrap();
    goes_on(&bed.receive(&frame(&good)), &frame(&good), "by another uplink than Alice's");
    assert_eq!(bed.counted(1).rx_packets, 2);
}

/// RFC 6040, figure 4, and the checksum of the header that is changed.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn congestion_marks_go_along_in_both_directions() {
    let bed = Bed::new();
    for class in 0..=255u8 {
        let mut packet = inner(TO_ALICE.0, TO_ALICE.1, 60);
        packet[1] = class;
        renew_checksum(&mut packet);
        let ran = bed.send(&frame(&packet));
        assert_eq!((ran.verdict, ran.packet[ETHERNET + 1]), (REDIRECT, class & 3));
        for mark in 0..=3 {
            let mut inside = inner(FROM_ALICE.0, FROM_ALICE.1, 60);
            inside[1] = class;
            renew_checksum(&mut inside);
            let mut packet = outer(ALICE, &inside);
            packet[1] = mark;
            renew_checksum(&mut packet);
            let ran = bed.receive(&frame(&packet));
            if mark == 3 && class & 3 == 0 {
                goes_on(&ran, &frame(&packet), "not capable");
                continue;
            }
            if mark == 3 {
                inside[1] |= 3;
                renew_checksum(&mut inside);
            }
            assert_eq!((ran.verdict, &ran.packet[ETHERNET..]), (REDIRECT, &inside[..]));
        }
    }
}

#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn an_entry_that_is_removed_counts_no_more() {
    let bed = Bed::new();
    let (going, coming) =
        (inner(TO_ALICE.0, TO_ALICE.1, 60), inner(FROM_ALICE.0, FROM_ALICE.1, 60));
    bed.maps.remotes.remove(ALICE).unwrap();
    assert_eq!(bed.receive(&frame(&outer(ALICE, &coming))).verdict, GO_ON);
    assert_eq!(bed.send(&frame(&going)).verdict, REDIRECT);
    bed.maps.peers.remove("10.0.0.0/24".parse().unwrap()).unwrap();
    assert_eq!(bed.send(&frame(&going)).verdict, GO_ON);
    let missing = bed.maps.peers.remove("10.0.0.0/24".parse().unwrap()).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

/// The frame that the kernel lets a test run with has its headers in one piece; `make bench` measures.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN; prints how long a run takes"]
fn a_program_takes_less_than_a_microsecond() {
    let bed = Bed::new();
    let going = frame(&inner([10, 1, 0, 1], [10, 2, 0, 5], 60));
    let coming = frame(&outer(ALICE, &inner([10, 9, 0, 1], FROM_ALICE.1, 60)));
    for (program, frame) in [(&bed.egress, going), (&bed.ingress, coming)] {
        let ran = call::run(program.fd.as_fd(), &frame, 0, 1_000_000).unwrap();
        println!("{} ns", ran.nanoseconds);
        assert!(ran.nanoseconds < 1000);
    }
}

/// Bytes that are changed, and whether the checksum of the outer header is made right after it.
fn changes() -> impl Strategy<Value = (Vec<(usize, u8)>, bool)> {
    // Most of it in the headers.
    let at = prop_oneof![4 => 0..OUTER + 20, 1 => 0..128usize];
    (proptest::collection::vec((at, any::<u8>()), 0..4), prop::bool::weighted(0.9))
}

/// What the program takes from outside, the userspace datapath would take, too, for the same remote and
/// with the same bytes.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn what_comes_in_by_the_fast_path_is_data_of_an_admitted_remote() {
    let bed = Bed::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let sources = [FROM_ALICE.0, [10, 9, 0, 1], [10, 0, 0, 66], [10, 2, 0, 1]];
    let longer = prop_oneof![4 => Just(0), 1 => -4..4isize];
    let strategy = (0..sources.len(), 28..100usize, any::<bool>(), changes(), longer);
    let taken = std::cell::Cell::new(0);
    runner
        .run(&strategy, |(source, length, by_bob, (changes, renews), longer)| {
            let remote = if by_bob { BOB } else { ALICE };
            let mut packet = outer(remote, &inner(sources[source], FROM_ALICE.1, length));
            for (at, byte) in changes {
                if let Some(there) = packet.get_mut(at) {
                    *there = byte;
                }
            }
            packet.resize(packet.len().saturating_add_signed(longer), 0);
            if renews {
                renew_checksum(&mut packet);
            }
            let ran = bed.receive(&frame(&packet));
            let bare = bed.receive_bare(&packet);
            // `bpf_skb_adjust_room` leaves 20 bytes behind what the test run takes for a header.
            if packet.len() >= ETHERNET + OUTER + 20 {
                prop_assert_eq!(bare.verdict, ran.verdict, "a header before it changes nothing");
            }
            if ran.verdict != REDIRECT {
                prop_assert_eq!((bare.verdict, &bare.packet), (GO_ON, &packet));
                prop_assert_eq!((ran.verdict, &ran.packet[ETHERNET..]), (GO_ON, &packet[..]));
                return Ok(());
            }
            taken.set(taken.get() + 1);
            prop_assert_eq!(&packet[12..16], remote.ip().octets());
            prop_assert_eq!(&packet[16..20], OURS.octets());
            let payload = &packet[OUTER..];
            let inner = Inner::parse(payload);
            prop_assert!(inner.is_some_and(|inner| inner.length == payload.len()));
            let networks = if by_bob { "10.9.0.0/16" } else { "10.0.0.0/24" };
            let networks: ipnet::IpNet = networks.parse().unwrap();
            let source = inner.unwrap().source;
            prop_assert!(networks.contains(&source) && source.to_string() != "10.0.0.66");
            Ok(())
        })
        .unwrap();
    assert!(taken.get() > 1000, "{} were taken", taken.get());
}

/// 10,000 peers: all put on it at once, one of them moved, and what all carried. It is attached nowhere.
#[test]
#[ignore = "needs CAP_BPF and CAP_NET_ADMIN"]
fn many_peers_take_little_time() {
    let remote = |n: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n), 10_000);
    let peer = |n: u32| FastPeer {
        networks: [Ipv4Net::from(Ipv4Addr::from(0xac10_0000 + n))].into(),
        link: 1,
        uplink: 1,
        mtu: MTU,
    };
    let wanted = FastPath {
        ends: FastPathEnds {
            outer: OURS,
            port: PORT,
            mark: 0,
            time_to_live: 64,
            takes: Takes::All,
        },
        uplinks: [].into(),
        links: [].into(),
        peers: Arc::new((1..=10_000).map(|n| (remote(n), peer(n))).collect()),
        except: [].into(),
    };
    let mut adapter = FastPathAdapter::of("many", true);
    // Of the processor, which others use as well.
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let timed = |what: &str, most: Duration, act: &mut dyn FnMut()| {
        let started = used();
        act();
        let took = used() - started;
        println!("{what}: {took:?}");
        // Ours is the half of it, and not optimised here.
        let most = if cfg!(debug_assertions) { 5 * most } else { most };
        assert!(took < most, "{what}: {took:?}");
    };
    timed("install", Duration::from_millis(300), &mut || adapter.install(&wanted).unwrap());
    timed("move", Duration::from_millis(1), &mut || {
        adapter.withdraw(&[remote(5000)].into()).unwrap();
        adapter.add(remote(20_000), &peer(5000)).unwrap();
    });
    timed("traffic", Duration::from_millis(50), &mut || {
        assert_eq!(adapter.traffic().len(), 10_000)
    });
    timed("read", Duration::from_millis(5), &mut || {
        drop((adapter.found().unwrap(), adapter.carried()));
    });
    assert_eq!(adapter.carries().1, 10_000);
}
