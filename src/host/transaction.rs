//! A batch of nftables messages of which the kernel acknowledges only the last: it sends all answers at
//! once, and hundreds of them do not fit into a socket's buffer. An error is reported for each message
//! in any case (`nfnetlink_rcv_batch` in net/netfilter/nfnetlink.c).

use netlink_bindings::nftables::ChainedFinal;
use netlink_bindings::traits::{LookupFn, NetlinkChained};

/// `NLM_F_ACK` in linux/netlink.h.
const NLM_F_ACK: u16 = 4;

/// Where length and flags are in a message's header (`nlmsghdr`).
const LENGTH: std::ops::Range<usize> = 0..4;
const FLAGS: std::ops::Range<usize> = 6..8;

pub struct Transaction {
    batch: ChainedFinal<'static>,
    /// The number of the message that is acknowledged: the one before the end of the batch.
    answered: usize,
}

impl Transaction {
    pub fn of(mut batch: ChainedFinal<'static>) -> Self {
        let answered = batch.chain_len().saturating_sub(2);
        let mut rest = batch.buf_mut().as_mut_slice();
        for message in 0.. {
            let Some(length) = rest.get(LENGTH).and_then(|bytes| bytes.try_into().ok()) else {
                break;
            };
            if let Some(flags) = rest.get_mut(FLAGS)
                && message != answered
            {
                let [low, high] = NLM_F_ACK.to_ne_bytes();
                flags[0] &= !low;
                flags[1] &= !high;
            }
            let length = u32::from_ne_bytes(length).next_multiple_of(4);
            let next = usize::try_from(length).unwrap_or(usize::MAX);
            rest = rest.get_mut(next..).unwrap_or_default();
        }
        Transaction { batch, answered }
    }
}

impl NetlinkChained for Transaction {
    fn protonum(&self) -> u16 {
        self.batch.protonum()
    }

    fn payload(&self) -> &[u8] {
        self.batch.payload()
    }

    fn chain_len(&self) -> usize {
        self.batch.chain_len()
    }

    fn get_index(&self, seq: u32) -> Option<usize> {
        NetlinkChained::get_index(&self.batch, seq)
    }

    fn name(&self, index: usize) -> &'static str {
        self.batch.name(index)
    }

    fn lookup(&self, index: usize) -> LookupFn {
        self.batch.lookup(index)
    }

    fn supports_ack(&self, index: usize) -> Option<bool> {
        (index < self.chain_len()).then_some(index == self.answered)
    }
}
