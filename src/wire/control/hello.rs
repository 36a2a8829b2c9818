//! The packets of a client: a hello, or a goodbye.

use super::tlv::{Reader, Tlv, tlv_mtu};
use super::{AUTHENTICATED_LEN, ControlError, Cookie, HELLO_LEN, Hint, Tag, VERSION};
use crate::wire::auth_packet::{self, SALT_LEN, SIGNATURE_LEN};

/// Where the version of a hello is, and its receiver.
const VERSION_AT: usize = 73;
const RECEIVER_AT: usize = 84;
/// The least first byte of a hello: answers, and packets of IP, begin with less.
const LEAST_FIRST: u8 = 0x90;
const WANTS_ADDRESSES: u8 = 2;

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
    /// Unix time, at most [`MAX_SECONDS`](crate::wire::auth_packet::MAX_SECONDS).
    pub seconds: u64,
    /// So that no two packets are equal.
    pub salt: [u8; SALT_LEN],
    /// Whether the client comes or goes.
    pub kind: HelloKind,
    /// Whether it asks for its inner addresses.
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

/// A hello taken apart; nothing in it is verified yet.
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

impl<'a> Hello<'a> {
    /// Takes a UDP payload apart; neither MAC nor signature are checked. Reserved flags are ignored.
    ///
    /// # Errors
    /// The first reason why it is not a hello.
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
