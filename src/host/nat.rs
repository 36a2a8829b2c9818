//! The nftables table of a gateway: what may be forwarded to and from the tunnel, and which source
//! address it gets. It leaves the host's own firewall alone: a packet that this table lets through goes
//! on to that.
//!
//! ```text
//! chain forward { type filter hook forward priority mangle
//!   iifname DEV tcp flags syn tcp option maxseg size set rt mtu
//!   oifname DEV tcp flags syn tcp option maxseg size set rt mtu
//!   oifname DEV ct state { established, related } accept   # these two, unless others may begin
//!   iifname != DEV oifname DEV drop
//!   iifname { TURNED ON } oifname != { DEV, OTHER GATEWAYS } drop
//! }
//! chain postrouting { type nat hook postrouting priority srcnat
//!   ip saddr { SOURCES } oifname != { DEV, lo } masquerade
//! }
//! ```
//!
//! The rules of a full tunnel are in [`answers`](super::answers).
//!
//! `rt mtu` is the smaller MTU of both directions (`get_tcpmss` in net/netfilter/nft_rt.c), and a
//! segment size is never made larger (`nft_exthdr_tcp_set_eval`).

use std::collections::BTreeMap;
use std::io;

use ipnet::Ipv4Net;
use nftables::batch::Batch;
use nftables::expr::{CT, Expression, MetaKey, NamedExpression, Prefix, RT, RTKey, TcpOption};
use nftables::schema::{Chain, NfListObject, Rule, Table};
use nftables::stmt::{Mangle, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::answers;
use super::expression::{MANGLE, Rules, any_of, devices, eq, header, interface, meta, ne, text};
use super::nft::{NftError, nft};
use super::table::{Handles, Table as TableFound};
use crate::engine::host::{Family, ForwardingRules, GatewayFound, GatewaySpec};

/// `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT: i32 = 100;

/// The table, one in each family, and the rules that were put into it.
pub struct Nat {
    tables: Tables<TableFound>,
    installed: Option<Tables<Handles>>,
    /// Whether the log has said that this host cannot have rules for answers.
    has_warned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tables<T> {
    v4: T,
    v6: T,
}

impl Tables<Handles> {
    fn have_rules(&self) -> bool {
        !self.v4.rules.is_empty() || !self.v6.rules.is_empty()
    }
}

impl Nat {
    pub fn in_table(table: &str) -> Self {
        let in_family = |family| TableFound::new(family, table);
        let tables = Tables { v4: in_family(Family::V4), v6: in_family(Family::V6) };
        Nat { tables, installed: None, has_warned: false }
    }

    /// Whether our rules are there. Rules that were omitted because the host cannot have them count as
    /// there.
    pub fn read(&mut self) -> io::Result<GatewayFound> {
        let handles = self.handles()?;
        Ok(match &self.installed {
            Some(installed) if *installed == handles => GatewayFound::Intact,
            Some(_) | None if handles.have_rules() => GatewayFound::Unknown,
            Some(_) | None => GatewayFound::Missing,
        })
    }

    /// Replaces the tables as a whole, in one transaction. Without the rules for answers a tunnel is
    /// still of use.
    pub fn install(&mut self, spec: &GatewaySpec) -> Result<(), NftError> {
        // A kernel may have no nftables for IPv6; then there is nothing to remove.
        let six = self.handles()?.v6 != Handles::default();
        let mut nothing_is_left = false;
        if let Err(error) = nft(&["-f", "-"], &json(spec, six)) {
            if spec.answers.is_empty() {
                return Err(error);
            }
            let without = GatewaySpec { answers: BTreeMap::new(), ..spec.clone() };
            if spec.forwarding.is_some() || !matches!(error, NftError::NoProgram(_)) {
                nft(&["-f", "-"], &json(&without, six))?;
            }
            nothing_is_left = spec.forwarding.is_none();
            if !std::mem::replace(&mut self.has_warned, true) {
                tracing::warn!(
                    "connections from outside to containers and others behind this host get their \
                     answers through the tunnel: no rules: {error}"
                );
            }
        }
        let handles = self.handles()?;
        // Another program may have removed it all in the meantime.
        self.installed = (nothing_is_left || handles.have_rules()).then_some(handles);
        Ok(())
    }

    /// Removes the tables; nothing happens if there are none.
    pub fn remove(&mut self) -> Result<(), NftError> {
        self.installed = None;
        super::absent_is_fine(self.tables.v4.delete())?;
        Ok(super::absent_is_fine(self.tables.v6.delete())?)
    }

    fn handles(&mut self) -> io::Result<Tables<Handles>> {
        Ok(Tables { v4: self.tables.v4.handles()?, v6: self.tables.v6.handles()? })
    }
}

/// The whole transaction as `nft -j` reads it. `six`: whether there is an IPv6 table to replace.
fn json(spec: &GatewaySpec, six: bool) -> String {
    let mut batch = Batch::new();
    let mut chains = Vec::new();
    if let Some(rules) = &spec.forwarding {
        let forward = forward(spec, rules);
        chains.push(("forward", NfChainType::Filter, NfHook::Forward, MANGLE, forward));
        let postrouting = postrouting(spec, rules);
        chains.push((
            "postrouting",
            NfChainType::NAT,
            NfHook::Postrouting,
            SOURCE_NAT,
            postrouting,
        ));
    }
    chains.extend(answers::chains(spec, Family::V4));
    table(&mut batch, NfFamily::IP, &spec.table, chains);
    let chains = answers::chains(spec, Family::V6);
    if six || !chains.is_empty() {
        table(&mut batch, NfFamily::IP6, &spec.table, chains);
    }
    // Maps with string keys only: nothing in these types can fail to serialise.
    serde_json::to_string(&batch.to_nftables()).unwrap_or_default()
}

/// Replaces a table.
fn table<'a>(batch: &mut Batch<'a>, family: NfFamily, name: &'a str, chains: Vec<Rules>) {
    let itself = || NfListObject::Table(Table { family, name: name.into(), handle: None });
    batch.add(itself()); // or the deletion would fail the first time
    batch.delete(itself());
    if chains.is_empty() {
        return;
    }
    batch.add(itself());
    for (chain, kind, hook, priority, rules) in chains {
        if rules.is_empty() {
            continue; // a NAT chain makes the kernel track connections
        }
        batch.add(NfListObject::Chain(Chain {
            family,
            table: name.into(),
            name: chain.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
        for expr in rules {
            batch.add(NfListObject::Rule(Rule {
                family,
                table: name.into(),
                chain: chain.into(),
                expr: expr.into(),
                ..Rule::default()
            }));
        }
    }
}

fn forward(spec: &GatewaySpec, wanted: &ForwardingRules) -> Vec<Vec<Statement<'static>>> {
    let own = || any_of(devices(spec).collect());
    let clamp = |key| vec![eq(meta(key), own()), syn(), clamp_to_path()];
    let mut rules = vec![clamp(MetaKey::Iifname), clamp(MetaKey::Oifname)];
    if !wanted.into_tunnel {
        let state = NamedExpression::CT(CT { key: "state".into(), family: None, dir: None });
        let answers = any_of(vec![text("established"), text("related")]);
        rules.push(vec![
            eq(meta(MetaKey::Oifname), own()),
            eq(Expression::Named(state), answers),
            Statement::Accept(None),
        ]);
        rules.push(vec![
            ne(meta(MetaKey::Iifname), own()),
            eq(meta(MetaKey::Oifname), own()),
            Statement::Drop(None),
        ]);
    }
    // Packets from the tunnel's own interfaces may go anywhere.
    let is_own = |name: &str| spec.devices.iter().any(|device| device.as_str() == name);
    let turned_on = wanted.turned_on.iter().filter(|name| !is_own(name));
    let turned_on: Vec<_> = turned_on.map(|name| interface(name)).collect();
    if !turned_on.is_empty() {
        let gateways = wanted.gateways.iter().map(|name| interface(name));
        let gateways = any_of(devices(spec).chain(gateways).collect());
        rules.push(vec![
            eq(meta(MetaKey::Iifname), any_of(turned_on)),
            ne(meta(MetaKey::Oifname), gateways),
            Statement::Drop(None),
        ]);
    }
    rules
}

fn postrouting(spec: &GatewaySpec, wanted: &ForwardingRules) -> Vec<Vec<Statement<'static>>> {
    let Some((sources, by)) = &wanted.masquerade else { return Vec::new() };
    // `nft` does not accept overlapping networks in a set.
    let sources = Ipv4Net::aggregate(&sources.iter().copied().collect());
    if sources.is_empty() {
        return Vec::new();
    }
    let sources = any_of(sources.iter().map(network).collect());
    let leaving = match by {
        Some(by) => eq(meta(MetaKey::Oifname), interface(by.as_str())),
        None => {
            let not_by = any_of(devices(spec).chain([text("lo")]).collect());
            ne(meta(MetaKey::Oifname), not_by)
        }
    };
    let saddr = header("ip", "saddr");
    vec![vec![eq(saddr, sources), leaving, Statement::Masquerade(None)]]
}

/// `tcp option maxseg size set rt mtu`
fn clamp_to_path() -> Statement<'static> {
    Statement::Mangle(Mangle {
        key: Expression::Named(NamedExpression::TcpOption(TcpOption {
            name: "maxseg".into(),
            field: Some("size".into()),
        })),
        value: Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None })),
    })
}

fn network(network: &Ipv4Net) -> Expression<'static> {
    Expression::Named(NamedExpression::Prefix(Prefix {
        addr: Box::new(text(network.network().to_string())),
        len: network.prefix_len().into(),
    }))
}

/// `tcp flags syn`, whatever other flags are set.
fn syn() -> Statement<'static> {
    let (left, right) = (header("tcp", "flags"), text("syn"));
    Statement::Match(Match { left, right, op: Operator::IN })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> GatewaySpec {
        let source = |text: &str| text.parse::<Ipv4Net>().unwrap();
        GatewaySpec {
            table: "ipipou-0-gateway".to_owned(),
            devices: ["ipipou0".parse().unwrap()].into(),
            forwarding: Some(ForwardingRules {
                masquerade: Some(([source("10.0.0.0/8"), source("10.1.0.0/16")].into(), None)),
                turned_on: ["eth0".to_owned(), "ipipou0".to_owned()].into(),
                gateways: ["ipipou1".to_owned()].into(),
                into_tunnel: false,
            }),
            answers: BTreeMap::new(),
        }
    }

    fn changed(change: impl FnMut(&mut ForwardingRules)) -> GatewaySpec {
        let mut spec = spec();
        spec.forwarding.iter_mut().for_each(change);
        spec
    }

    /// The statements of a chain, one string for each rule.
    fn chain(spec: &GatewaySpec, name: &str) -> Vec<String> {
        let all: serde_json::Value = serde_json::from_str(&json(spec, false)).unwrap();
        let commands = all["nftables"].as_array().unwrap();
        let rules = commands.iter().map(|command| &command["add"]["rule"]);
        rules.filter(|rule| rule["chain"] == name).map(|rule| rule["expr"].to_string()).collect()
    }

    #[test]
    fn without_masquerade_nothing_is_tracked() {
        assert!(json(&spec(), false).contains("\"nat\""));
        let spec = changed(|rules| (rules.masquerade, rules.into_tunnel) = (None, true));
        let json = json(&spec, false);
        assert!(!json.contains("\"nat\"") && !json.contains("\"ct\""), "{json}");
    }

    #[test]
    fn overlapping_sources_are_merged() {
        let [rule] = chain(&spec(), "postrouting").try_into().unwrap();
        assert!(rule.contains("10.0.0.0") && !rule.contains("10.1.0.0"), "{rule}");
    }

    #[test]
    fn packets_from_the_tunnel_itself_are_never_dropped() {
        let drops = |spec: &GatewaySpec| -> Vec<String> {
            let rules = chain(spec, "forward").into_iter();
            rules.filter(|rule| rule.contains("drop")).collect()
        };
        let from = |rule: &str| rule.split("oifname").next().unwrap().to_owned();
        let forwards = changed(|rules| rules.into_tunnel = true);
        let [rule] = drops(&forwards).try_into().unwrap();
        assert!(from(&rule).contains("eth0") && !from(&rule).contains("ipipou0"), "{rule}");
        let alone = changed(|rules| {
            rules.into_tunnel = true;
            rules.turned_on = ["ipipou0".to_owned()].into();
        });
        assert_eq!(drops(&alone), Vec::<String>::new());
    }

    #[test]
    fn each_gateway_judges_the_packets_into_its_own_tunnel() {
        let rules = chain(&spec(), "forward");
        let [.., own, others] = rules.as_slice() else { panic!("{rules:?}") };
        assert!(own.contains("drop") && !own.contains("ipipou1"), "{own}");
        assert!(others.contains("drop") && others.contains("ipipou1"), "{others}");
    }

    #[test]
    fn a_star_in_a_name_stands_for_itself() {
        let spec = changed(|rules| rules.turned_on = ["eth*".to_owned()].into());
        let rules = chain(&spec, "forward");
        assert!(rules.iter().any(|rule| rule.contains(r#""eth\\*""#)), "{rules:?}");
    }
}
