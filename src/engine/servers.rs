//! The servers of a client, in the order in which they are tried: where each is, and which has our data.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::addresses::Addresses;
use super::config::ServerName;

/// All servers of a client; there is always one.
#[derive(Debug)]
pub struct Servers {
    first: Place,
    others: Vec<Place>,
    in_use: usize,
}

/// One server.
#[derive(Debug)]
pub struct Place {
    pub name: ServerName,
    pub addresses: Addresses,
}

impl Place {
    fn new(name: ServerName) -> Self {
        Place { addresses: Addresses::new(name.host.address()), name }
    }

    /// Where it is, as far as that is known.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.addresses.in_use().map(|ip| SocketAddr::new(ip, self.name.port.get()))
    }
}

impl Servers {
    pub fn new(first: ServerName, others: impl IntoIterator<Item = ServerName>) -> Self {
        let others = others.into_iter().map(Place::new).collect();
        Servers { first: Place::new(first), others, in_use: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The server with this number; the first has number 0.
    pub fn get_mut(&mut self, number: usize) -> Option<&mut Place> {
        match number.checked_sub(1) {
            None => Some(&mut self.first),
            Some(number) => self.others.get_mut(number),
        }
    }

    pub fn get(&self, number: usize) -> Option<&Place> {
        self.iter().nth(number)
    }

    /// Whether there is more than one.
    pub fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// The number of the one that has our data.
    pub fn number_in_use(&self) -> usize {
        self.in_use
    }

    /// The one that has our data.
    pub fn in_use(&self) -> &Place {
        self.get(self.in_use).unwrap_or(&self.first)
    }

    pub fn in_use_mut(&mut self) -> &mut Place {
        match self.in_use.checked_sub(1) {
            Some(number) if number < self.others.len() => &mut self.others[number],
            Some(_) | None => &mut self.first,
        }
    }

    /// Data goes to the server with this number.
    pub fn use_one(&mut self, number: usize) {
        self.in_use = number;
    }

    /// All addresses at which any of them may be.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let of_place = |place: &Place| place.addresses.in_use().into_iter().collect::<Vec<_>>();
        self.iter()
            .flat_map(move |place| of_place(place).into_iter().chain(place.addresses.others()))
    }

    /// The addresses of those that do not have our data.
    pub fn standby_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let standby = self.iter().enumerate().filter(|(number, _)| *number != self.in_use);
        standby.flat_map(|(_, place)| {
            place.addresses.in_use().into_iter().chain(place.addresses.others())
        })
    }

    /// Where answers may come from, whether data may or not: all of them, where there are several.
    pub fn answering(&self) -> BTreeSet<SocketAddr> {
        match self.are_several() {
            true => self.iter().filter_map(Place::remote).collect(),
            false => BTreeSet::new(),
        }
    }

    /// Which server has our data, and where that is; `None`: it is not known, or a start knows it by the
    /// configuration alone.
    pub fn to_remember(&self) -> Option<(String, SocketAddr)> {
        let place = self.in_use();
        let is_told = !self.are_several() && place.name.host.address().is_some();
        (!is_told).then_some((place.name.to_string(), place.remote()?))
    }

    /// Takes over a tunnel to `remote` from an earlier process, before a name was looked up. `remembered` is
    /// what that process had [to remember](Self::to_remember). The number of the server that is there, if one
    /// can be.
    pub fn adopt(
        &mut self,
        remote: SocketAddr,
        remembered: Option<&(String, SocketAddr)>,
    ) -> Option<usize> {
        let was_there = |place: &Place| {
            remembered.is_some_and(|(name, at)| *at == remote && place.name.to_string() == *name)
        };
        let is_there = |place: &Place| place.remote() == Some(remote);
        let may_be_there = |place: &Place| {
            place.addresses.in_use().is_none() && place.name.port.get() == remote.port()
        };
        let position = |is: &dyn Fn(&Place) -> bool| self.iter().position(is);
        let number = position(&was_there)
            .or_else(|| position(&is_there))
            .or_else(|| position(&may_be_there))?;
        self.get_mut(number)?.addresses.use_one(remote.ip());
        self.in_use = number;
        Some(number)
    }
}
