//! What the tests of the control protocol share: keys, addresses, a server, clients, and random numbers
//! that are the same for the same seed.

#![allow(dead_code)] // no test uses it all

use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use ipipou::auth::{Ends, Pair, SharedSecret, Signer, hint};
use ipipou::engine::control::{
    Allowed, Client, ClientConfig, ClientHeard, Heard, Outcome, PeerId, Server, ServerPeer,
};
use ipipou::wire::control::{Answer, AnswerKind, Cookie, Hello, HelloFields, HelloKind};

pub const SERVER_SEED: [u8; 32] = [9; 32];
pub const A: PeerId = PeerId(1);
pub const B: PeerId = PeerId(2);
pub const LEASE: Duration = Duration::from_secs(180);
pub const UNIX: u64 = 1_700_000_000;

/// A UDP payload of a client.
pub type Packet = [u8; 128];

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX)
    }

    pub fn uniform(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.unit()
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    pub fn choice<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next().to_be_bytes()[0]);
    }

    pub fn secret(&mut self) -> [u8; 32] {
        let mut secret = [0; 32];
        self.fill(&mut secret);
        secret
    }
}

pub fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The server's first address.
pub fn l1() -> SocketAddr {
    at("203.0.113.1:10000")
}

/// The server's second address.
pub fn l2() -> SocketAddr {
    at("203.0.113.2:10000")
}

/// Where A is at first.
pub fn a0() -> SocketAddr {
    at("198.51.100.1:4000")
}

/// Where B is at first.
pub fn b0() -> SocketAddr {
    at("198.51.100.2:4000")
}

/// A place of the attacker.
pub fn m() -> SocketAddr {
    at("192.0.2.66:666")
}

pub fn to_l1(remote: SocketAddr) -> Ends {
    Ends { remote, local: l1() }
}

pub fn to_l2(remote: SocketAddr) -> Ends {
    Ends { remote, local: l2() }
}

pub fn seed_of(peer: PeerId) -> [u8; 32] {
    [u8::try_from(peer.0).unwrap(); 32]
}

pub fn public(seed: &[u8; 32]) -> [u8; 32] {
    SigningKey::from_bytes(seed).verifying_key().to_bytes()
}

pub fn shared_secret() -> SharedSecret {
    SharedSecret::new(b"secret".to_vec())
}

pub fn peer(id: PeerId, lease: Duration, allowed: Allowed) -> ServerPeer {
    ServerPeer {
        public_key: public(&seed_of(id)),
        secret: shared_secret(),
        lease,
        inner: vec!["10.8.0.7/24".parse().unwrap(), "fd00:8::7/64".parse().unwrap()],
        allowed,
    }
}

pub fn server(rng: &mut Rng, boot: Duration, lease: Duration) -> Server {
    let mut server = Server::new(&SERVER_SEED, boot, rng.secret());
    for id in [A, B] {
        server.insert(id, peer(id, lease, Allowed::Yes));
    }
    server
}

pub fn client(id: PeerId, boot: Duration) -> Client {
    let config = ClientConfig {
        signer: Signer::new(&seed_of(id), shared_secret()),
        server_key: public(&SERVER_SEED),
        keepalive: Duration::from_secs(27),
        mtu: Some(1472),
        wants_addresses: true,
    };
    Client::new(config, boot).unwrap()
}

/// The packet with another signature; its first byte stays as it is.
pub fn flipped(packet: &Packet) -> Packet {
    let mut packet = *packet;
    packet[40] ^= 1;
    packet
}

/// A server, and what is drawn at random.
pub struct World {
    pub server: Server,
    pub rng: Rng,
}

impl World {
    pub fn new(boot: f64) -> Self {
        let mut rng = Rng(1);
        World { server: server(&mut rng, secs(boot), LEASE), rng }
    }

    /// The server hears a packet.
    pub fn hear(&mut self, packet: &[u8], ends: Ends, boot: f64) -> Heard {
        let rng = &mut self.rng;
        let heard = self.server.receive(packet, ends, secs(boot), &mut |bytes| rng.fill(bytes));
        let length = heard.answer.as_ref().map_or(0, Vec::len);
        assert!(length <= packet.len(), "an answer of {length} bytes");
        heard
    }

    pub fn outcome(&mut self, packet: &[u8], ends: Ends, boot: f64) -> Outcome {
        self.hear(packet, ends, boot).outcome
    }

    /// The client's hello, if one is due.
    pub fn due(&mut self, client: &mut Client, boot: f64) -> Option<Packet> {
        let rng = &mut self.rng;
        client.poll(secs(boot), UNIX, &mut |bytes| rng.fill(bytes))
    }

    /// A hello of the client, which is asked for one.
    pub fn hello(&mut self, client: &mut Client, boot: f64) -> Packet {
        client.say_now(secs(boot));
        self.due(client, boot).unwrap()
    }

    pub fn bye(&mut self, client: &mut Client, boot: f64) -> Packet {
        let rng = &mut self.rng;
        client.bye(secs(boot), UNIX, &mut |bytes| rng.fill(bytes)).unwrap()
    }

    /// One try of the client, without losses. Returns its hellos.
    pub fn connect(&mut self, client: &mut Client, ends: Ends, boot: f64) -> Vec<Packet> {
        client.say_now(secs(boot));
        self.converse(client, ends, boot)
    }

    /// What the client has to say now, without losses. Returns its hellos.
    pub fn converse(&mut self, client: &mut Client, ends: Ends, boot: f64) -> Vec<Packet> {
        let mut hellos = Vec::new();
        while let Some(hello) = self.due(client, boot) {
            hellos.push(hello);
            if let Some(answer) = self.hear(&hello, ends, boot).answer {
                client.receive(&answer, secs(boot));
            }
        }
        hellos
    }

    /// A client that is connected.
    pub fn connected(&mut self, id: PeerId, remote: SocketAddr, boot: f64) -> Client {
        let mut client = client(id, secs(boot));
        assert_eq!(self.connect(&mut client, to_l1(remote), boot).len(), 2);
        assert_eq!(self.remote(id), Some(remote));
        client
    }

    /// The answer to a packet, taken by the client.
    pub fn exchange(
        &mut self,
        client: &mut Client,
        packet: &Packet,
        ends: Ends,
        boot: f64,
    ) -> (Outcome, ClientHeard) {
        let heard = self.hear(packet, ends, boot);
        (heard.outcome, client.receive(&heard.answer.unwrap(), secs(boot)))
    }

    pub fn remote(&self, id: PeerId) -> Option<SocketAddr> {
        self.server.session(id).map(|session| session.remote)
    }
}

/// A peer whose packets are made by hand.
pub struct ByHand {
    signer: Signer,
    pair: Pair,
    made: u32,
}

impl ByHand {
    pub fn new(id: PeerId) -> Self {
        let signer = Signer::new(&seed_of(id), shared_secret());
        let pair = signer.pair_with_server(&public(&SERVER_SEED)).unwrap();
        ByHand { signer, pair, made: 0 }
    }

    pub fn fields(&mut self, kind: HelloKind, cookie: Cookie) -> HelloFields {
        HelloFields {
            seconds: UNIX,
            salt: [0; 4],
            kind,
            wants_addresses: true,
            sender: hint(&self.signer.public()),
            receiver: hint(&public(&SERVER_SEED)),
            cookie,
            mtu: Some(1472),
        }
    }

    pub fn sign(&mut self, fields: &HelloFields) -> Packet {
        self.made += 1000;
        let salts = (self.made..).map(u32::to_be_bytes);
        self.signer.hello(&self.pair, fields, salts).unwrap()
    }

    pub fn packet(&mut self, kind: HelloKind, cookie: Cookie) -> Packet {
        let fields = self.fields(kind, cookie);
        self.sign(&fields)
    }

    pub fn hello(&mut self, cookie: Cookie) -> Packet {
        self.packet(HelloKind::Hello, cookie)
    }

    pub fn bye(&mut self, cookie: Cookie) -> Packet {
        self.packet(HelloKind::Bye, cookie)
    }

    /// What the server answered to a packet.
    pub fn open(&self, packet: &Packet, answer: &[u8]) -> Answer {
        let received = Answer::parse(answer).unwrap();
        assert!(self.pair.is_answer_mac(received.authenticated, &received.mac), "wrong MAC");
        assert_eq!(received.answer.echo, Hello::parse(packet).unwrap().mac);
        received.answer
    }

    /// The cookie that the server gives there now.
    pub fn cookie(&mut self, world: &mut World, ends: Ends, boot: f64) -> Cookie {
        let packet = self.hello([0; 16]);
        let heard = world.hear(&packet, ends, boot);
        let answer = self.open(&packet, &heard.answer.unwrap());
        assert_eq!(answer.kind, AnswerKind::Challenge);
        let (seen, remote) = (answer.seen.unwrap(), ends.remote);
        assert_eq!((seen.ip(), seen.port()), (remote.ip().to_canonical(), remote.port()));
        answer.cookie
    }

    /// Comes in, or moves. Returns the cookie of the accept.
    pub fn enter(&mut self, world: &mut World, ends: Ends, boot: f64) -> Cookie {
        let cookie = self.cookie(world, ends, boot);
        let packet = self.hello(cookie);
        let heard = world.hear(&packet, ends, boot);
        let answer = self.open(&packet, &heard.answer.unwrap());
        assert_eq!(answer.kind, AnswerKind::Accept);
        answer.cookie
    }
}
