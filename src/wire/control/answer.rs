//! The answers of a server: a challenge, an accept, or a refusal.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::tlv::{Reader, Tlv, tlv_mtu};
use super::{ControlError, Cookie, MAC_LEN, MAX_ANSWER_LEN, Tag, VERSION};

/// The shortest answer: without a TLV.
const MIN_ANSWER_LEN: usize = 36 + MAC_LEN;

/// Why a server does not let a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its time is over.
    Expired,
    /// It is disabled.
    Disabled,
    /// There is no place.
    Full,
    /// Another peer has its inner address.
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

/// An answer taken apart; nothing in it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedAnswer<'a> {
    /// What it says.
    pub answer: Answer,
    /// What the MAC covers.
    pub authenticated: &'a [u8],
    /// The MAC.
    pub mac: Tag,
}

/// Whether it begins as an answer does: 0x80 to 0x8f belong to servers.
pub fn is_answer(payload: &[u8]) -> bool {
    payload.first().is_some_and(|first| first >> 4 == 8)
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
        self.encode_with(&self.inner)
    }

    fn encode_with(&self, inner: &[IpNet]) -> Vec<u8> {
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
            bytes.extend([Tlv::SEEN, if seen.is_ipv4() { 6 } else { 18 }]);
            add_octets(&mut bytes, seen.ip());
            bytes.extend(seen.port().to_be_bytes());
        }
        if let Some(lease) = self.lease {
            bytes.extend([Tlv::LEASE, 4]);
            bytes.extend(lease.to_be_bytes());
        }
        for inner in inner {
            bytes.extend([Tlv::INNER, if inner.addr().is_ipv4() { 5 } else { 17 }]);
            add_octets(&mut bytes, inner.addr());
            bytes.push(inner.prefix_len());
        }
        bytes.extend(self.mtu.map(tlv_mtu).into_iter().flatten());
        bytes
    }

    /// Everything but the MAC, padded so that with it the answer has [`MAX_ANSWER_LEN`] bytes. Inner
    /// addresses for which there is no room are left out.
    pub fn encode_padded(&self) -> Vec<u8> {
        let mut bytes = self.encode();
        let mut inner = self.inner.as_slice();
        while bytes.len() > MAX_ANSWER_LEN - MAC_LEN
            && let Some((_, fewer)) = inner.split_last()
        {
            inner = fewer;
            bytes = self.encode_with(inner);
        }
        bytes.resize(MAX_ANSWER_LEN - MAC_LEN, 0);
        bytes
    }

    /// Takes a UDP payload apart; the MAC is not checked.
    ///
    /// # Errors
    /// The first reason why it is not an answer.
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

fn add_octets(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => bytes.extend(v4.octets()),
        IpAddr::V6(v6) => bytes.extend(v6.octets()),
    }
}
