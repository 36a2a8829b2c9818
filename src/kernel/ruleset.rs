//! The table: its chains, sets and counters, and how it replaces an earlier one. The rules are in
//! [`judgement`] and [`rewriting`].

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use nftables::batch::Batch;
use nftables::expr::Expression;
use nftables::schema::{
    Chain, Counter as CounterObject, Element, FlushObject, Map, NfCmd, NfListObject, Rule, Set,
    SetType, SetTypeValue, Table,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::words::{
    CHAIN_TO_LINK, Contents, SET_ADDRESSES, SET_ALTERNATES, SET_KNOWN, SET_KNOWN_ADDRESSES,
    SET_REMOTES, elements,
};
use super::{judgement, quoted, rewriting};
use crate::engine::host::{Admitted, Control, RuleSpec};
use crate::host::expression::{address, concat, number};

/// Priority of the raw hook, before conntrack (`NF_IP_PRI_RAW` in linux/netfilter_ipv4.h).
const RAW: i32 = -300;
/// `NF_IP_PRI_MANGLE`: before most firewalls. What is dropped here is gone; what is accepted goes on to
/// them. An authentication packet never reaches them, so they need no rule for the port of a remote
/// that is not admitted yet.
const MANGLE: i32 = -150;

/// Behind the filters of firewalls: they see the address that packets came to.
const BEHIND_FIREWALLS: i32 = 1000;

/// How many elements our sets have room for. With such a number, the kernel takes its fixed hash table,
/// which is faster than the one that grows (`nft_hash_estimate`, `nft_rhash_estimate`).
const MOST_REMOTES: u32 = 1024;

/// Chains that a table of this or an earlier version may have and another table does without.
const CHAINS: [&str; 15] = [
    "prerouting",
    "rewrite",
    "input",
    "outer",
    "error",
    "quoted",
    "quoted_port",
    "quoted_remote",
    "port",
    "control",
    "hello",
    CHAIN_TO_LINK,
    "output",
    "reassemble",
    "data",
];

/// What happens to an existing table of this name.
#[derive(Debug, Clone, Copy)]
pub enum Replacement {
    /// Its chains and sets stay, and their contents are exchanged. Packets that pass meanwhile see
    /// either all of the old contents or all of the new ones.
    Contents,
    /// It is deleted, and a new one is made. While the kernel exchanges the hooks, a packet may pass
    /// both, be rewritten by one and dropped by the other. This is always possible.
    Whole,
}

/// The whole transaction as `nft -j` reads it.
pub fn json(spec: &RuleSpec, admitted: &BTreeSet<Admitted>, how: Replacement) -> String {
    with_notrack(serde_json::to_value(table(spec, admitted, how).to_nftables()))
}

/// `nft` 1.x wants `{"notrack": null}` where the crate (0.6) writes `"notrack"`.
fn with_notrack(ruleset: serde_json::Result<serde_json::Value>) -> String {
    fn mend(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(s) if s == "notrack" => {
                *value = serde_json::json!({ "notrack": null });
            }
            serde_json::Value::Array(items) => items.iter_mut().for_each(mend),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(mend),
            _ => {}
        }
    }
    // Maps with string keys only: nothing in these types can fail to serialise.
    let mut ruleset = ruleset.unwrap_or_default();
    mend(&mut ruleset);
    ruleset.to_string()
}

fn table<'a>(spec: &'a RuleSpec, admitted: &BTreeSet<Admitted>, how: Replacement) -> Batch<'a> {
    let mut batch = Batch::new();
    let name: &str = &spec.table;
    let itself = || Table { family: NfFamily::IP, name: name.into(), handle: None };
    let hooks = [
        ("prerouting", NfHook::Prerouting, RAW),
        ("input", NfHook::Input, MANGLE),
        (CHAIN_TO_LINK, NfHook::Input, BEHIND_FIREWALLS),
        ("output", NfHook::Output, RAW),
    ];
    let chain = |chain: &'static str| {
        let hook = hooks.iter().find(|(name, ..)| *name == chain);
        NfListObject::Chain(Chain {
            family: NfFamily::IP,
            table: name.into(),
            name: chain.into(),
            _type: hook.map(|_| NfChainType::Filter),
            hook: hook.map(|(_, hook, _)| *hook),
            prio: hook.map(|(.., priority)| *priority),
            policy: hook.map(|_| NfChainPolicy::Accept),
            ..Chain::default()
        })
    };
    let mut chains = judgement::chains(spec);
    chains.extend(rewriting::chains(spec));
    chains.retain(|(name, rules)| !rules.is_empty() || quoted::CHAINS.contains(name));

    batch.add(NfListObject::Table(itself())); // or the deletion would fail the first time
    match how {
        Replacement::Contents => {
            batch.add_cmd(NfCmd::Flush(FlushObject::Table(itself())));
            // An empty base chain would still cost every packet of the host.
            for idle in CHAINS.iter().filter(|idle| !chains.iter().any(|(name, _)| name == *idle)) {
                let bare = Chain {
                    family: NfFamily::IP,
                    table: name.into(),
                    name: (*idle).into(),
                    ..Chain::default()
                };
                batch.add(NfListObject::Chain(bare.clone())); // or the deletion may fail
                batch.delete(NfListObject::Chain(bare));
            }
        }
        Replacement::Whole => {
            batch.delete(NfListObject::Table(itself()));
            batch.add(NfListObject::Table(itself()));
        }
    }
    for counter in counters(spec) {
        batch.add(NfListObject::Counter(CounterObject {
            family: NfFamily::IP,
            table: name.into(),
            name: (*counter).into(),
            ..CounterObject::default()
        }));
    }
    for set in sets(spec) {
        batch.add(set.clone());
        match set {
            NfListObject::Set(set) => batch.add_cmd(NfCmd::Flush(FlushObject::Set(set))),
            NfListObject::Map(map) => batch.add_cmd(NfCmd::Flush(FlushObject::Map(map))),
            _ => {}
        }
    }
    for (name, _) in &chains {
        batch.add(chain(name));
    }
    for (chain, rules) in chains {
        for expr in rules {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: name.into(),
                chain: chain.into(),
                expr: expr.into(),
                ..Rule::default()
            }));
        }
    }
    for element in initial(spec, admitted) {
        batch.add(element);
    }
    batch
}

fn counters(spec: &RuleSpec) -> &'static [&'static str] {
    const ALL: [&str; 8] = [
        "plain_ipip",
        "private_address",
        "stranger_data",
        "stranger_other",
        "inside_tunnel",
        "icmp_error",
        "flood",
        "no_peer",
    ];
    match (spec.counters, spec.control) {
        (false, _) => &[],
        (true, Control::Refuse) => &ALL[..6],
        (true, Control::Queue { .. }) if spec.shared.is_some() => &ALL,
        (true, Control::Queue { .. }) => &ALL[..7],
    }
}

fn sets(spec: &RuleSpec) -> Vec<NfListObject<'_>> {
    use SetType::{InetService, Ipv4Addr};
    let remote = || SetTypeValue::Concatenated(Cow::Borrowed(&[Ipv4Addr, InetService]));
    let address = || SetTypeValue::Single(Ipv4Addr);
    let set = |name: &'static str, set_type, size| {
        let (family, table) = (NfFamily::IP, spec.table.as_str().into());
        Set { family, table, name: name.into(), set_type, size, ..Set::default() }
    };
    let map = |name: &'static str, set_type, map, size| {
        let (family, table) = (NfFamily::IP, spec.table.as_str().into());
        Map { family, table, name: name.into(), set_type, map, size, ..Map::default() }
    };
    let of_set = |set| NfListObject::Set(Box::new(set));
    let of_map = |map| NfListObject::Map(Box::new(map));
    // Those are made before, and filled afterwards.
    if spec.shared.is_some() {
        return Vec::new();
    }
    let size = Some(MOST_REMOTES);
    vec![
        of_set(set(SET_REMOTES, remote(), size)),
        of_set(set(SET_ADDRESSES, address(), size)),
        of_set(set(SET_KNOWN, remote(), size)),
        of_set(set(SET_KNOWN_ADDRESSES, address(), size)),
        of_map(map(SET_ALTERNATES, remote(), address(), size)),
    ]
}

/// What the sets contain from the beginning: a packet that comes next is judged by them.
fn initial<'a>(spec: &'a RuleSpec, admitted: &BTreeSet<Admitted>) -> Vec<NfListObject<'a>> {
    let of_set = |set: &'static str, elem: Expression<'static>| {
        NfListObject::Element(Element {
            family: NfFamily::IP,
            table: spec.table.as_str().into(),
            name: set.into(),
            elem: vec![elem].into(),
        })
    };
    let key = |remote: SocketAddrV4| concat(vec![address(*remote.ip()), number(remote.port())]);
    let all = match spec.shared {
        Some(_) => Contents::default(),
        None => elements(admitted),
    };
    let remotes = all.remotes.iter().map(|remote| of_set(SET_REMOTES, key(*remote)));
    let known = all.known.iter().map(|remote| of_set(SET_KNOWN, key(*remote)));
    let addresses = all.addresses.iter().map(|ip| of_set(SET_ADDRESSES, address(*ip)));
    let known_addresses =
        all.known_addresses.iter().map(|ip| of_set(SET_KNOWN_ADDRESSES, address(*ip)));
    let alternates = all.alternates.iter().map(|(remote, alternate)| {
        of_set(SET_ALTERNATES, Expression::List(vec![key(*remote), address(*alternate)]))
    });
    remotes.chain(known).chain(addresses).chain(known_addresses).chain(alternates).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::{Datapath, QueueConfig};
    use crate::engine::host::PacketShape;
    use crate::engine::limits;

    fn spec(control: Control) -> RuleSpec {
        RuleSpec {
            table: "ipipou-0".to_owned(),
            outer: [203, 0, 113, 1].into(),
            port: 10000,
            alternate: BTreeSet::new(),
            bound: true,
            inside: ["ipipou0".to_owned()].into(),
            inside_too: BTreeSet::new(),
            shared: None,
            silenced: BTreeSet::new(),
            answering: BTreeSet::new(),
            untracked: true,
            control,
            counters: true,
        }
    }

    fn signed() -> Control {
        let queue = QueueConfig { number: 0, max_len: 24 };
        Control::Queue { queue, shape: PacketShape::of_lengths(73..=512) }
    }

    /// The chains that have rules, and how many each has.
    fn chains(spec: &RuleSpec) -> Vec<(&'static str, usize)> {
        let all = judgement::chains(spec).into_iter();
        let all = all.chain(rewriting::chains(spec));
        all.map(|(name, rules)| (name, rules.len())).filter(|(_, rules)| *rules > 0).collect()
    }

    fn has(spec: &RuleSpec, chain: &str) -> usize {
        chains(spec).iter().find(|(name, _)| *name == chain).map_or(0, |(_, rules)| *rules)
    }

    #[test]
    fn chains_before_routing_hold_only_the_rules_that_are_needed() {
        let alternate: BTreeSet<_> = [[172, 29, 0, 0].into()].into();
        let client = RuleSpec { untracked: false, ..spec(Control::Refuse) };
        assert_eq!((has(&client, "prerouting"), has(&client, "output")), (0, 0));
        let server = spec(signed());
        assert_eq!((has(&server, "prerouting"), has(&server, "output")), (1, 1));
        for before in [client, server] {
            let with = RuleSpec { alternate: alternate.clone(), ..before.clone() };
            assert_eq!(has(&with, "prerouting"), has(&before, "prerouting"));
            assert_eq!(has(&with, "output"), has(&before, "output") + 1);
            assert_eq!(has(&with, CHAIN_TO_LINK), 1);
            // What has it already is refused.
            assert_eq!(has(&with, "input"), has(&before, "input") + 2);
            let silenced = ["198.51.100.7:4500".parse().unwrap()].into();
            let with = RuleSpec { silenced, ..before.clone() };
            assert_eq!(has(&with, "output"), has(&before, "output") + 1);
        }
    }

    /// The first packet matters: the sets are filled again over netlink later, which would hide a
    /// fault.
    #[test]
    fn a_table_is_installed_with_the_admitted_remotes() {
        let direct = Admitted::direct("198.51.100.7:4500".parse().unwrap());
        let remote = "192.0.2.9:65535".parse().unwrap();
        let alternate =
            Admitted { alternate: Some([172, 29, 0, 3].into()), ..Admitted::direct(remote) };
        let text = json(&spec(signed()), &[direct, alternate].into(), Replacement::Contents);
        let ruleset: serde_json::Value = serde_json::from_str(&text).unwrap();
        let added: BTreeSet<String> = ruleset["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|command| command["add"].get("element"))
            .map(|element| format!("{} {}", element["name"].as_str().unwrap(), element["elem"]))
            .collect();
        let expected = [
            r#"addresses ["198.51.100.7"]"#,
            r#"known [{"concat":["192.0.2.9",65535]}]"#,
            r#"known [{"concat":["198.51.100.7",4500]}]"#,
            r#"known_addresses ["192.0.2.9"]"#,
            r#"known_addresses ["198.51.100.7"]"#,
            r#"privates [[{"concat":["192.0.2.9",65535]},"172.29.0.3"]]"#,
            r#"remotes [{"concat":["198.51.100.7",4500]}]"#,
        ];
        assert_eq!(added, expected.map(str::to_owned).into());
    }

    #[test]
    fn the_sets_have_room_for_all_that_the_datapath_carries() {
        let most = Datapath::Kernel.capabilities().most_remotes;
        assert_eq!(Some(most), usize::try_from(MOST_REMOTES).ok());
    }

    #[test]
    fn every_chain_can_be_taken_away() {
        let alternate: BTreeSet<_> = [[172, 29, 0, 0].into()].into();
        for control in [Control::Refuse, signed()] {
            let all = chains(&RuleSpec { alternate: alternate.clone(), ..spec(control) });
            assert!(all.iter().all(|(name, _)| CHAINS.contains(name)), "{all:?}");
        }
    }

    #[test]
    fn the_rules_check_the_interface_if_the_listener_does_not() {
        let rules = |bound| {
            let spec = RuleSpec { bound, ..spec(signed()) };
            serde_json::to_string(&judgement::chains(&spec)[0].1[0]).unwrap()
        };
        assert!(!rules(true).contains("iifname") && rules(false).contains("iifname"));
    }

    fn rules(shape: PacketShape, answering: &[&str]) -> Vec<String> {
        let queue = QueueConfig { number: 0, max_len: 1024 };
        let answering = answering.iter().map(|server| server.parse().unwrap()).collect();
        let spec = RuleSpec { answering, ..spec(Control::Queue { queue, shape }) };
        let chains = judgement::chains(&spec).into_iter();
        let chains = chains.filter(|(name, _)| ["control", "hello"].contains(name));
        let rules = chains.flat_map(|(_, rules)| rules);
        rules.map(|rule| serde_json::to_string(&rule).unwrap()).collect()
    }

    #[test]
    fn each_server_of_a_client_has_a_budget_before_the_sample_that_all_share() {
        let servers = ["192.0.2.1:10000", "192.0.2.2:10000", "192.0.2.3:10001"];
        let rules = rules(PacketShape::Answers, &servers);
        let budget = format!(r#""rate":{}"#, limits::KNOWN_REMOTE.per_second);
        let of_budget: BTreeSet<_> = rules.iter().filter(|rule| rule.contains(&budget)).collect();
        // One more for each admitted remote.
        assert_eq!(of_budget.len(), servers.len() + 1, "{rules:#?}");
        assert!(of_budget.iter().all(|rule| !rule.contains(r#""set""#)), "{of_budget:#?}");
        let sampled = rules.iter().position(|rule| rule.contains("random")).unwrap();
        assert_eq!(sampled, servers.len() + 1, "{rules:#?}");
        assert_eq!(rules.len(), sampled + 2, "{rules:#?}");
    }

    #[test]
    fn each_known_remote_of_a_hub_has_a_budget_within_that_of_all() {
        let rules = rules(PacketShape::Hellos { receiver: [1; 8] }, &[]);
        let known = rules.iter().find(|rule| rule.contains("@known")).unwrap();
        let at = |what: &str| known.find(what).unwrap_or_else(|| panic!("{known}"));
        let each = at(&format!(r#""rate":{}"#, limits::KNOWN_REMOTE.per_second));
        let all = at(&format!(r#""rate":{}"#, limits::KNOWN_REMOTES.per_second));
        assert!(at(r#""meter""#) < each && each < all && all < at(r#""queue""#), "{known}");
    }
}
