//! The packets of control protocol v2, UDP payloads. Integers are big-endian.
//!
//! ```text
//! client → server: hello, goodbye; exactly 128 bytes
//!   0  64  ed25519 signature over bytes[64..] and the shared secret; its first byte is at least 0x90
//!  64   5  Unix time in seconds    69  4  salt      (for old servers: to them this is a packet with a tail)
//!  73   1  version 2    74  1  kind: 1 hello, 2 goodbye    75  1  flags: 2 tell me my inner addresses
//!  76   8  sender: first bytes of the client's key     84  8  receiver: first bytes of the server's
//!  92  16  cookie, or random bytes
//! 108   4  zeros, or one TLV (6: MTU)
//! 112  16  MAC over bytes[64..112]
//!
//! server → client: challenge 0x81, accept 0x82, refusal 0x83; at most 128 bytes
//!   0   1  kind    1  1  version 2    2  2  flags, or the reason of a refusal
//!   4  16  the MAC of the hello that is answered
//!  20  16  cookie for the next hello
//!  36   …  TLVs: type (1), length (1), value; type 0, or the end of the field, ends them
//! end  16  MAC over everything before it
//! ```
//!
//! TLVs: 3 our address (4 or 16 bytes) and port as the server sees them, 4 lease in seconds (4 bytes),
//! 5 an inner address (4 or 16) and the length of its prefix (1), 6 MTU in bytes (2). Others are skipped.
//! Every answer is padded to 128 bytes: a rule of a firewall that looks at one length finds both.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::auth_packet::{self, SALT_LEN, SIGNATURE_LEN};

/// Bytes of a hello or goodbye.
pub const HELLO_LEN: usize = 128;
/// Bytes that an answer has at most, so that it is never longer than what it answers.
pub const MAX_ANSWER_LEN: usize = HELLO_LEN;
/// Bytes of a MAC.
pub const MAC_LEN: usize = 16;
/// Bytes of a hello that its MAC covers.
pub const AUTHENTICATED_LEN: usize = HELLO_LEN - SIGNATURE_LEN - MAC_LEN;
/// The version in every packet.
pub const VERSION: u8 = 2;

/// Where the version of a hello is, and its receiver.
const VERSION_AT: usize = 73;
const RECEIVER_AT: usize = 84;
/// The least first byte of a hello: answers, and packets of IP, begin with less.
const LEAST_FIRST: u8 = 0x90;
/// The shortest answer: without a TLV.
const MIN_ANSWER_LEN: usize = 36 + MAC_LEN;

const WANTS_ADDRESSES: u8 = 2;

/// The first bytes of a public key, by which it is looked up.
pub type Hint = [u8; 8];
/// A MAC; that of a hello is what its answer repeats.
pub type Tag = [u8; MAC_LEN];
/// What a server gives to a client to show that it can be reached where it says.
pub type Cookie = [u8; 16];

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloKind {
    /// It is there.
    Hello,
    /// It goes.
    Bye,
}

/// What a hello says, without signature and MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloFields {
    /// Unix time, at most [`MAX_SECONDS`](super::auth_packet::MAX_SECONDS).
    pub seconds: u64,
    /// So that no two packets are equal.
    pub salt: [u8; SALT_LEN],
    /// Whether the client comes or goes.
    pub kind: HelloKind,
    /// Whether it wants to be told its inner addresses.
    pub wants_addresses: bool,
    /// The client.
    pub sender: Hint,
    /// The server.
    pub receiver: Hint,
    /// The server's last one, or random bytes.
    pub cookie: Cookie,
    /// Bytes of the largest packet inside the client's tunnel.
    pub mtu: Option<u16>,
}

/// A hello taken apart; nothing of it is believed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// What it says.
    pub fields: HelloFields,
    /// An ed25519 signature over `signed` and the shared secret, or noise.
    pub signature: &'a [u8; SIGNATURE_LEN],
    /// Everything behind the signature.
    pub signed: &'a [u8; HELLO_LEN - SIGNATURE_LEN],
    /// What the MAC covers.
    pub authenticated: &'a [u8; AUTHENTICATED_LEN],
    /// The MAC.
    pub mac: Tag,
}

/// Why a server does not let a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its time is over.
    Expired,
    /// It is disabled.
    Disabled,
    /// There is no place.
    Full,
    /// Its inner address is somebody else's.
    AddressTaken,
    /// It should ask another server.
    Elsewhere,
    /// A reason that this version does not know.
    Other(u16),
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Say it again, with this cookie.
    Challenge,
    /// You are in; or, with a lease of 0, out.
    Accept,
    /// You may not come in.
    Refuse(Refusal),
}

/// An answer, without its MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub kind: AnswerKind,
    /// The MAC of the hello that is answered.
    pub echo: Tag,
    /// For the next hello.
    pub cookie: Cookie,
    /// The client's address and port as the server sees them.
    pub seen: Option<SocketAddr>,
    /// Seconds that the session lasts without another hello.
    pub lease: Option<u32>,
    /// The client's inner addresses, with the lengths of their networks.
    pub inner: Vec<IpNet>,
    /// Bytes of the largest packet inside the server's tunnel.
    pub mtu: Option<u16>,
}

/// An answer taken apart; nothing of it is believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedAnswer<'a> {
    /// What it says.
    pub answer: Answer,
    /// What the MAC covers.
    pub authenticated: &'a [u8],
    /// The MAC.
    pub mac: Tag,
}

/// Why bytes are no packet of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It has another length.
    #[error("of another length")]
    Length,
    /// Its first byte is that of something else.
    #[error("begins as something else does")]
    FirstByte,
    /// It has another version.
    #[error("of another version")]
    Version,
    /// It is neither a hello nor a goodbye, or none of the answers.
    #[error("of an unknown kind")]
    Kind,
    /// A TLV runs over its end, or has a value of another length.
    #[error("with a broken field")]
    Field,
}

/// Whether it can be a hello to the server with this hint; cheap.
pub fn is_hello_to(payload: &[u8], receiver: &Hint) -> bool {
    is_hello(payload) && payload.get(RECEIVER_AT..RECEIVER_AT + 8) == Some(receiver)
}

/// Whether it can be a hello; cheap.
pub fn is_hello(payload: &[u8]) -> bool {
    payload.len() == HELLO_LEN
        && payload.first().is_some_and(|first| *first >= LEAST_FIRST)
        && payload.get(VERSION_AT) == Some(&VERSION)
}

/// Whether it begins as an answer does: 0x80 to 0x8f belong to servers.
pub fn is_answer(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| first >> 4 == 8)
}

/// Whether a hello may begin with this byte of its signature.
pub fn may_begin(first: u8) -> bool {
    first >= LEAST_FIRST
}

impl HelloFields {
    /// The bytes that the MAC covers.
    pub fn encode(&self) -> [u8; AUTHENTICATED_LEN] {
        let kind = match self.kind {
            HelloKind::Hello => 1,
            HelloKind::Bye => 2,
        };
        let flags = if self.wants_addresses { WANTS_ADDRESSES } else { 0 };
        let parts: [&[u8]; 6] = [
            &auth_packet::message(self.seconds, self.salt),
            &[VERSION, kind, flags],
            &self.sender,
            &self.receiver,
            &self.cookie,
            &self.mtu.map(tlv_mtu).unwrap_or_default(),
        ];
        let mut bytes = [0; AUTHENTICATED_LEN];
        for (byte, part) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *part;
        }
        bytes
    }
}

fn tlv_mtu(mtu: u16) -> [u8; 4] {
    let [high, low] = mtu.to_be_bytes();
    [Tlv::MTU, 2, high, low]
}

impl<'a> Hello<'a> {
    /// Takes a UDP payload apart; neither MAC nor signature are checked. Reserved flags are ignored.
    ///
    /// # Errors
    /// The first thing by which it is no hello.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ControlError> {
        let payload: &[u8; HELLO_LEN] = payload.try_into().map_err(|_| ControlError::Length)?;
        let (signature, signed) = payload.split_first_chunk().ok_or(ControlError::Length)?;
        if !signature.first().is_some_and(|first| may_begin(*first)) {
            return Err(ControlError::FirstByte);
        }
        let signed: &[u8; HELLO_LEN - SIGNATURE_LEN] =
            signed.try_into().map_err(|_| ControlError::Length)?;
        let (authenticated, mac) = signed.split_first_chunk().ok_or(ControlError::Length)?;
        let mac = mac.try_into().map_err(|_| ControlError::Length)?;
        let mut reader = Reader(authenticated);
        let [a, b, c, d, e] = reader.take()?;
        let seconds = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        let salt = reader.take()?;
        let [version, kind, flags] = reader.take()?;
        if version != VERSION {
            return Err(ControlError::Version);
        }
        let kind = match kind {
            1 => HelloKind::Hello,
            2 => HelloKind::Bye,
            _ => return Err(ControlError::Kind),
        };
        let (sender, receiver, cookie) = (reader.take()?, reader.take()?, reader.take()?);
        let mut mtu = None;
        reader.tlvs(|tlv| {
            if let Tlv::Mtu(bytes) = tlv {
                mtu = Some(bytes);
            }
        })?;
        let wants_addresses = flags & WANTS_ADDRESSES != 0;
        let fields =
            HelloFields { seconds, salt, kind, wants_addresses, sender, receiver, cookie, mtu };
        Ok(Hello { fields, signature, signed, authenticated, mac })
    }
}

impl Refusal {
    fn code(self) -> u16 {
        match self {
            Refusal::Expired => 1,
            Refusal::Disabled => 2,
            Refusal::Full => 3,
            Refusal::AddressTaken => 4,
            Refusal::Elsewhere => 5,
            Refusal::Other(code) => code,
        }
    }

    fn of_code(code: u16) -> Self {
        match code {
            1 => Refusal::Expired,
            2 => Refusal::Disabled,
            3 => Refusal::Full,
            4 => Refusal::AddressTaken,
            5 => Refusal::Elsewhere,
            _ => Refusal::Other(code),
        }
    }
}

impl Answer {
    /// Everything but the MAC, without padding.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, reason) = match self.kind {
            AnswerKind::Challenge => (0x81, 0),
            AnswerKind::Accept => (0x82, 0),
            AnswerKind::Refuse(refusal) => (0x83, refusal.code()),
        };
        let mut bytes = Vec::with_capacity(MAX_ANSWER_LEN);
        bytes.extend([kind, VERSION]);
        bytes.extend(reason.to_be_bytes());
        bytes.extend(self.echo);
        bytes.extend(self.cookie);
        if let Some(seen) = self.seen {
            let ip = octets(seen.ip());
            bytes.extend([Tlv::SEEN, if ip.len() == 4 { 6 } else { 18 }]);
            bytes.extend(ip);
            bytes.extend(seen.port().to_be_bytes());
        }
        if let Some(lease) = self.lease {
            bytes.extend([Tlv::LEASE, 4]);
            bytes.extend(lease.to_be_bytes());
        }
        for inner in &self.inner {
            let ip = octets(inner.addr());
            bytes.extend([Tlv::INNER, if ip.len() == 4 { 5 } else { 17 }]);
            bytes.extend(ip);
            bytes.push(inner.prefix_len());
        }
        bytes.extend(self.mtu.map(tlv_mtu).into_iter().flatten());
        bytes
    }

    /// Everything but the MAC, padded so that with it the answer has [`MAX_ANSWER_LEN`] bytes. Inner
    /// addresses for which there is no room are left out.
    pub fn encode_padded(&self) -> Vec<u8> {
        let mut bytes = self.encode();
        let mut answer = self.clone();
        while bytes.len() > MAX_ANSWER_LEN - MAC_LEN && answer.inner.pop().is_some() {
            bytes = answer.encode();
        }
        bytes.resize(MAX_ANSWER_LEN - MAC_LEN, 0);
        bytes
    }

    /// Takes a UDP payload apart; the MAC is not checked.
    ///
    /// # Errors
    /// The first thing by which it is no answer.
    pub fn parse(payload: &[u8]) -> Result<ReceivedAnswer<'_>, ControlError> {
        if !(MIN_ANSWER_LEN..=MAX_ANSWER_LEN).contains(&payload.len()) {
            return Err(ControlError::Length);
        }
        let (authenticated, mac) = payload.split_last_chunk().ok_or(ControlError::Length)?;
        let mut reader = Reader(authenticated);
        let [kind, version] = reader.take()?;
        if version != VERSION {
            return Err(ControlError::Version);
        }
        let reason = u16::from_be_bytes(reader.take()?);
        let kind = match kind {
            0x81 => AnswerKind::Challenge,
            0x82 => AnswerKind::Accept,
            0x83 => AnswerKind::Refuse(Refusal::of_code(reason)),
            _ => return Err(ControlError::Kind),
        };
        let (echo, cookie) = (reader.take()?, reader.take()?);
        let mut answer =
            Answer { kind, echo, cookie, seen: None, lease: None, inner: Vec::new(), mtu: None };
        reader.tlvs(|tlv| match tlv {
            Tlv::Seen(seen) => answer.seen = Some(seen),
            Tlv::Lease(lease) => answer.lease = Some(lease),
            Tlv::Inner(inner) => answer.inner.push(inner),
            Tlv::Mtu(mtu) => answer.mtu = Some(mtu),
        })?;
        Ok(ReceivedAnswer { answer, authenticated, mac: *mac })
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A field by its type.
enum Tlv {
    Seen(SocketAddr),
    Lease(u32),
    Inner(IpNet),
    Mtu(u16),
}

impl Tlv {
    const SEEN: u8 = 3;
    const LEASE: u8 = 4;
    const INNER: u8 = 5;
    const MTU: u8 = 6;

    /// `None`: this version does not know the type.
    fn of(kind: u8, value: &[u8]) -> Result<Option<Self>, ControlError> {
        let mut value = Reader(value);
        let tlv = match kind {
            Self::SEEN => {
                let ip = value.address(2)?;
                Tlv::Seen(SocketAddr::new(ip, u16::from_be_bytes(value.take()?)))
            }
            Self::LEASE => Tlv::Lease(u32::from_be_bytes(value.take()?)),
            Self::INNER => {
                let ip = value.address(1)?;
                let [length] = value.take()?;
                Tlv::Inner(IpNet::new(ip, length).map_err(|_| ControlError::Field)?)
            }
            Self::MTU => Tlv::Mtu(u16::from_be_bytes(value.take()?)),
            _ => return Ok(None),
        };
        if value.0.is_empty() { Ok(Some(tlv)) } else { Err(ControlError::Field) }
    }
}

/// What is left of a packet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ControlError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(ControlError::Field)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// An address that `behind` bytes follow.
    fn address(&mut self, behind: usize) -> Result<IpAddr, ControlError> {
        match self.0.len().checked_sub(behind) {
            Some(4) => Ok(IpAddr::from(self.take::<4>()?)),
            Some(16) => Ok(IpAddr::from(self.take::<16>()?)),
            Some(_) | None => Err(ControlError::Field),
        }
    }

    /// Hands over what is known of the TLVs up to the end.
    fn tlvs(&mut self, mut each: impl FnMut(Tlv)) -> Result<(), ControlError> {
        while let Some((kind, rest)) = self.0.split_first() {
            if *kind == 0 {
                return Ok(());
            }
            let (length, rest) = rest.split_first().ok_or(ControlError::Field)?;
            let (value, rest) =
                rest.split_at_checked(usize::from(*length)).ok_or(ControlError::Field)?;
            if let Some(tlv) = Tlv::of(*kind, value)? {
                each(tlv);
            }
            self.0 = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
