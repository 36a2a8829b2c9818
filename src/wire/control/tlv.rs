//! The TLVs at the end of a packet, and how its bytes are read one after the other.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::ControlError;

/// A field by its type.
pub enum Tlv {
    Seen(SocketAddr),
    Lease(u32),
    Inner(IpNet),
    Mtu(u16),
}

impl Tlv {
    pub const SEEN: u8 = 3;
    pub const LEASE: u8 = 4;
    pub const INNER: u8 = 5;
    pub const MTU: u8 = 6;

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
pub struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], ControlError> {
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
    pub fn tlvs(&mut self, mut each: impl FnMut(Tlv)) -> Result<(), ControlError> {
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

pub fn tlv_mtu(mtu: u16) -> [u8; 4] {
    let [high, low] = mtu.to_be_bytes();
    [Tlv::MTU, 2, high, low]
}
