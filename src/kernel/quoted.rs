//! The rules about what an ICMP error quotes, one or two for each admitted remote. `nft` cannot look
//! bytes of a payload up in a set of addresses, and would not load a dump with such a rule. So these
//! rules compare, and change with the remotes, over netlink (see `judgement.rs`):
//!
//! ```text
//! chain quoted      { @th,192,32 ADDRESS goto quoted_remote }
//! chain quoted_port { @th,192,32 ADDRESS @th,240,16 PORT accept }
//! ```
//!
//! In bytes from the start of the ICMP header, the quoted packet's destination address is at 24, and
//! its destination port at 30.

use std::ffi::CStr;

use netlink_bindings::nftables::{
    ExprListAttrs, ExprOps, IterableExprListAttrs, PushExprListAttrs, PushRuleAttrs,
};
use netlink_bindings::traits::Pusher;

use super::words::{CHAIN_QUOTED, CHAIN_QUOTED_PORT, CHAIN_QUOTED_REMOTE, Contents};

/// Registers and verdicts of linux/netfilter/nf_tables.h, `NF_ACCEPT` of linux/netfilter.h.
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG32_00: u32 = 8;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_GOTO: u32 = (-4i32).cast_unsigned();
const NF_ACCEPT: u32 = 1;

const DESTINATION: u32 = 24;
const DESTINATION_PORT: u32 = 30;

/// A rule that compares bytes at given offsets, and the verdict that follows.
#[derive(Debug)]
pub struct QuotedRule {
    chain: &'static str,
    compares: Vec<(u32, Vec<u8>)>,
    goto: Option<&'static str>,
}

/// The chains that hold these rules and no others.
pub const CHAINS: [&str; 2] = [CHAIN_QUOTED, CHAIN_QUOTED_PORT];

/// How many such rules these remotes need.
pub fn count(contents: &Contents) -> usize {
    match contents.behind.is_empty() {
        true => contents.known_addresses.len() + contents.known.len(),
        false => 0,
    }
}

pub fn rules(contents: &Contents) -> Vec<QuotedRule> {
    // Those that share a link are looked up: see `shared.rs`.
    if !contents.behind.is_empty() {
        return Vec::new();
    }
    let address = |ip: std::net::Ipv4Addr| (DESTINATION, ip.octets().to_vec());
    let about = contents.known_addresses.iter().map(|ip| QuotedRule {
        chain: CHAIN_QUOTED,
        compares: vec![address(*ip)],
        goto: Some(CHAIN_QUOTED_REMOTE),
    });
    let to = contents.known.iter().map(|remote| QuotedRule {
        chain: CHAIN_QUOTED_PORT,
        compares: vec![
            address(*remote.ip()),
            (DESTINATION_PORT, remote.port().to_be_bytes().to_vec()),
        ],
        goto: None,
    });
    about.chain(to).collect()
}

impl QuotedRule {
    /// The chain that it is in.
    pub fn chain(&self) -> &'static str {
        self.chain
    }

    /// Whether a rule that the kernel tells is this one: it compares the same values.
    pub fn is(&self, expressions: IterableExprListAttrs<'_>) -> bool {
        let compared = expressions.filter_map(|expression| {
            let Ok(ExprListAttrs::Elem(expression)) = expression else { return None };
            let Ok(ExprOps::Cmp(cmp)) = expression.get_data() else { return None };
            cmp.get_data().ok()?.get_value().ok()
        });
        compared.eq(self.compares.iter().map(|(_, value)| value.as_slice()))
    }

    /// Writes the rule into the netlink message that creates it.
    pub fn push<P: Pusher>(&self, message: PushRuleAttrs<P>, table: &CStr) {
        let mut list: PushExprListAttrs<_> =
            message.push_table(table).push_chain_bytes(self.chain.as_bytes()).nested_expressions();
        for (offset, value) in &self.compares {
            list = list
                .nested_elem()
                .nested_data_payload()
                .push_dreg(NFT_REG32_00)
                .push_base(NFT_PAYLOAD_TRANSPORT_HEADER)
                .push_offset(*offset)
                .push_len(u32::try_from(value.len()).unwrap_or(0))
                .end_nested()
                .end_nested();
            list = list
                .nested_elem()
                .nested_data_cmp()
                .push_sreg(NFT_REG32_00)
                .push_op(NFT_CMP_EQ)
                .nested_data()
                .push_value(value)
                .end_nested()
                .end_nested()
                .end_nested();
        }
        let verdict = list
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(NFT_REG_VERDICT)
            .nested_data()
            .nested_verdict();
        match self.goto {
            Some(chain) => drop(verdict.push_code(NFT_GOTO).push_chain_bytes(chain.as_bytes())),
            None => drop(verdict.push_code(NF_ACCEPT)),
        }
    }
}
