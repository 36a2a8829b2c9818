//! The addresses that a reading found on all interfaces of the namespace.

use std::ops::Deref;

use super::interface::Address;

/// Addresses, in the order of the indexes of their interfaces; those of one interface are in the order in
/// which the kernel lists them, and are found without a look at the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(Vec<Address>);

impl Addresses {
    /// Those of the interface of this index.
    pub fn on(&self, interface: u32) -> &[Address] {
        let start = self.0.partition_point(|address| address.interface < interface);
        let rest = self.0.get(start..).unwrap_or_default();
        let end = rest.partition_point(|address| address.interface == interface);
        rest.get(..end).unwrap_or_default()
    }

    /// Adds one behind those of its interface.
    pub fn add(&mut self, address: Address) {
        let at = self.0.partition_point(|other| other.interface <= address.interface);
        self.0.insert(at, address);
    }

    /// Removes all for which `stays` is false.
    pub fn retain(&mut self, stays: impl FnMut(&Address) -> bool) {
        self.0.retain(stays);
    }

    /// Removes those of the interface of this index.
    pub fn remove_all_on(&mut self, interface: u32) {
        let start = self.0.partition_point(|address| address.interface < interface);
        let count = self.on(interface).len();
        self.0.drain(start..start + count);
    }
}

impl Deref for Addresses {
    type Target = [Address];

    fn deref(&self) -> &[Address] {
        &self.0
    }
}

impl FromIterator<Address> for Addresses {
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_by_key(|address| address.interface);
        Addresses(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::host::InterfaceAddress;

    fn address(interface: u32, last: u8) -> Address {
        let local = [10, 0, 0, last].into();
        let network = ipnet::Ipv4Net::new_assert(local, 24).into();
        Address::new(interface, InterfaceAddress::new(local.into(), network))
    }

    #[test]
    fn those_of_one_interface_are_together_in_the_kernels_order() {
        let given = [address(7, 9), address(2, 3), address(7, 1), address(9, 4)];
        let mut all: Addresses = given.into_iter().collect();
        assert_eq!(all.on(7), [address(7, 9), address(7, 1)]);
        assert_eq!((all.on(1), all.on(8), all.on(10)), (&[][..], &[][..], &[][..]));
        all.add(address(7, 5));
        all.add(address(8, 6));
        assert_eq!(all.on(7), [address(7, 9), address(7, 1), address(7, 5)]);
        assert_eq!(all.on(8), [address(8, 6)]);
        all.remove_all_on(7);
        all.remove_all_on(1);
        assert_eq!(*all, [address(2, 3), address(8, 6), address(9, 4)]);
    }
}
