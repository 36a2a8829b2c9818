//! Whether this network namespace has IPsec policies, which are asked about packets when they have
//! passed the programs of a fast path.

use std::io;

use netlink_sys::protocols::NETLINK_XFRM;

use super::netlink::{ask, attribute};

/// `XFRM_MSG_GETSPDINFO` and `XFRM_MSG_GETDEFAULT` in linux/xfrm.h.
const GET_NUMBERS: u16 = 0x25;
const GET_DEFAULT: u16 = 0x28;
/// What precedes the attributes in an answer about numbers: flags, which say nothing.
const NUMBERS_HEADER: usize = 4;
/// `XFRMA_SPD_INFO`, and how many numbers of it (`struct xfrmu_spdinfo`) are of policies of the
/// namespace, in, out and forwarding: those of sockets, such as of a daemon that speaks IKE, come after
/// them (`xfrm_spd_getinfo` in net/xfrm/xfrm_policy.c).
const XFRMA_SPD_INFO: u16 = 1;
const OF_NAMESPACE: usize = 3;
/// `XFRM_USERPOLICY_BLOCK`.
const BLOCK: u8 = 1;

/// Whether there are any policies, or packets without one are dropped. When that cannot be found out, the
/// answer is yes.
pub fn has_policies() -> bool {
    match read() {
        Ok(has) => has,
        Err(error) => {
            tracing::debug!("cannot read the IPsec policies: {error}");
            true
        }
    }
}

fn read() -> io::Result<bool> {
    let flags = [0; NUMBERS_HEADER];
    match ask(NETLINK_XFRM, GET_NUMBERS, &flags, |answer| {
        Some(attribute(answer, NUMBERS_HEADER, XFRMA_SPD_INFO)?.to_vec())
    }) {
        Ok(numbers) if counts_any(&numbers) => return Ok(true),
        Ok(_) => {}
        // A kernel without IPsec.
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        Err(e) => return Err(e),
    }
    // A `struct xfrm_userpolicy_default`, padded.
    match ask(NETLINK_XFRM, GET_DEFAULT, &[0; 4], |answer| Some(blocks(answer))) {
        // Kernels before 5.15 have no such message.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        answer => answer,
    }
}

/// Whether any of the first numbers is not zero.
fn counts_any(numbers: &[u8]) -> bool {
    numbers.chunks(4).take(OF_NAMESPACE).flatten().any(|byte| *byte != 0)
}

/// Whether packets in, forwarded or out are dropped if no policy says otherwise.
fn blocks(defaults: &[u8]) -> bool {
    defaults.iter().take(OF_NAMESPACE).any(|default| *default == BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_of_sockets_do_not_count() {
        let numbers = |all: [u32; 6]| counts_any(&all.map(u32::to_ne_bytes).concat());
        assert!(numbers([1, 0, 0, 0, 0, 0]) && numbers([0, 256, 0, 0, 0, 0]));
        assert!(numbers([0, 0, 1 << 24, 0, 0, 0]));
        assert!(!numbers([0, 0, 0, 1, 1, 1]));
    }

    #[test]
    fn a_default_that_drops_counts() {
        assert!(blocks(&[1, 2, 2]) && blocks(&[2, 1, 2]) && blocks(&[2, 2, 1, 0]));
        assert!(!blocks(&[2, 2, 2, 1]) && !blocks(&[0, 0, 0]));
    }
}
