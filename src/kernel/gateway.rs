//! The nftables table of a gateway: what is forwarded to and from the tunnel, and whose address it
//! gets. It leaves the host's own firewall alone: a packet it has nothing against goes on to that.
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
//! `rt mtu` is the smaller one of both directions (`get_tcpmss` in net/netfilter/nft_rt.c), and a
//! segment size is never made larger (`nft_exthdr_tcp_set_eval`).

use std::io;

use ipnet::Ipv4Net;
use nftables::batch::Batch;
use nftables::expr::{CT, Expression, MetaKey, NamedExpression, Prefix, RT, RTKey, TcpOption};
use nftables::schema::{Chain, NfListObject, Rule, Table};
use nftables::stmt::{Mangle, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::elements::{Elements, Handles};
use super::expression::{any_of, eq, header, interface, meta, ne, text};
use super::rules::{RulesError, nft};
use crate::engine::host::{GatewayFound, GatewaySpec};

/// `NF_IP_PRI_MANGLE` in linux/netfilter_ipv4.h: after conntrack, before most firewalls.
const MANGLE: i32 = -150;
/// `NF_IP_PRI_NAT_SRC`.
const SOURCE_NAT: i32 = 100;

/// The table, and the rules we put into it.
pub struct Gateway {
    elements: Elements,
    installed: Option<Handles>,
}

impl Gateway {
    pub fn in_table(table: &str) -> Self {
        Gateway { elements: Elements::in_table(table), installed: None }
    }

    /// Whether our rules are there.
    pub fn read(&mut self) -> io::Result<GatewayFound> {
        let handles = self.elements.handles()?;
        Ok(match &self.installed {
            _ if handles.rules.is_empty() => GatewayFound::Missing,
            Some(installed) if *installed == handles => GatewayFound::Intact,
            Some(_) | None => GatewayFound::Unknown,
        })
    }

    /// Replaces the table as a whole, in one transaction.
    pub fn install(&mut self, spec: &GatewaySpec) -> Result<(), RulesError> {
        nft(&["-f", "-"], &json(spec))?;
        self.installed = Some(self.elements.handles()?);
        Ok(())
    }

    /// Removes the table; none is no error.
    pub fn remove(&mut self) -> Result<(), RulesError> {
        self.installed = None;
        Ok(super::absent_is_fine(self.elements.delete_table())?)
    }
}

/// The whole transaction as `nft -j` reads it.
fn json(spec: &GatewaySpec) -> String {
    // Maps with string keys only: nothing in these types can fail to serialise.
    serde_json::to_string(&table(spec).to_nftables()).unwrap_or_default()
}

fn table(spec: &GatewaySpec) -> Batch<'_> {
    let mut batch = Batch::new();
    let name: &str = &spec.table;
    let itself =
        || NfListObject::Table(Table { family: NfFamily::IP, name: name.into(), handle: None });
    batch.add(itself()); // or the next would fail the first time
    batch.delete(itself());
    batch.add(itself());
    let chains = [
        ("forward", NfChainType::Filter, NfHook::Forward, MANGLE, forward(spec)),
        ("postrouting", NfChainType::NAT, NfHook::Postrouting, SOURCE_NAT, postrouting(spec)),
    ];
    for (chain, kind, hook, priority, rules) in chains {
        if rules.is_empty() {
            continue; // a NAT chain makes the kernel track connections
        }
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::IP,
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
                family: NfFamily::IP,
                table: name.into(),
                chain: chain.into(),
                expr: expr.into(),
                ..Rule::default()
            }));
        }
    }
    batch
}

fn forward(spec: &GatewaySpec) -> Vec<Vec<Statement<'static>>> {
    let own = || any_of(devices(spec).collect());
    let clamp = |key| vec![eq(meta(key), own()), syn(), clamp_to_path()];
    let mut rules = vec![clamp(MetaKey::Iifname), clamp(MetaKey::Oifname)];
    if !spec.into_tunnel {
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
    // The tunnel's own may go anywhere.
    let is_own = |name: &str| spec.devices.iter().any(|device| device.as_str() == name);
    let turned_on = spec.turned_on.iter().filter(|name| !is_own(name));
    let turned_on: Vec<_> = turned_on.map(|name| interface(name)).collect();
    if !turned_on.is_empty() {
        let gateways = spec.gateways.iter().map(|name| interface(name));
        let gateways = any_of(devices(spec).chain(gateways).collect());
        rules.push(vec![
            eq(meta(MetaKey::Iifname), any_of(turned_on)),
            ne(meta(MetaKey::Oifname), gateways),
            Statement::Drop(None),
        ]);
    }
    rules
}

fn postrouting(spec: &GatewaySpec) -> Vec<Vec<Statement<'static>>> {
    let Some((sources, by)) = &spec.masquerade else { return Vec::new() };
    // Overlapping networks are no set for `nft`.
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

/// The tunnel's own interfaces.
fn devices(spec: &GatewaySpec) -> impl Iterator<Item = Expression<'static>> + '_ {
    spec.devices.iter().map(|device| interface(device.as_str()))
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

/// `tcp flags syn`, whatever flags are beside it.
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
            masquerade: Some(([source("10.0.0.0/8"), source("10.1.0.0/16")].into(), None)),
            turned_on: ["eth0".to_owned(), "ipipou0".to_owned()].into(),
            gateways: ["ipipou1".to_owned()].into(),
            into_tunnel: false,
        }
    }

    /// The statements of a chain, a rule each.
    fn chain(spec: &GatewaySpec, name: &str) -> Vec<String> {
        let all: serde_json::Value = serde_json::from_str(&json(spec)).unwrap();
        let commands = all["nftables"].as_array().unwrap();
        let rules = commands.iter().map(|command| &command["add"]["rule"]);
        rules.filter(|rule| rule["chain"] == name).map(|rule| rule["expr"].to_string()).collect()
    }

    #[test]
    fn without_masquerade_nothing_is_tracked() {
        assert!(json(&spec()).contains("\"nat\""));
        let mut spec = spec();
        (spec.masquerade, spec.into_tunnel) = (None, true);
        let json = json(&spec);
        assert!(!json.contains("\"nat\"") && !json.contains("\"ct\""), "{json}");
    }

    #[test]
    fn overlapping_sources_are_one() {
        let [rule] = chain(&spec(), "postrouting").try_into().unwrap();
        assert!(rule.contains("10.0.0.0") && !rule.contains("10.1.0.0"), "{rule}");
    }

    #[test]
    fn what_comes_from_the_tunnel_itself_is_never_dropped() {
        let drops = |spec: &GatewaySpec| -> Vec<String> {
            let rules = chain(spec, "forward").into_iter();
            rules.filter(|rule| rule.contains("drop")).collect()
        };
        let from = |rule: &str| rule.split("oifname").next().unwrap().to_owned();
        let forwards = GatewaySpec { into_tunnel: true, ..spec() };
        let [rule] = drops(&forwards).try_into().unwrap();
        assert!(from(&rule).contains("eth0") && !from(&rule).contains("ipipou0"), "{rule}");
        let alone = GatewaySpec { turned_on: ["ipipou0".to_owned()].into(), ..forwards };
        assert_eq!(drops(&alone), Vec::<String>::new());
    }

    #[test]
    fn what_enters_the_tunnel_of_another_gateway_is_its_own_to_judge() {
        let rules = chain(&spec(), "forward");
        let [.., own, others] = rules.as_slice() else { panic!("{rules:?}") };
        assert!(own.contains("drop") && !own.contains("ipipou1"), "{own}");
        assert!(others.contains("drop") && others.contains("ipipou1"), "{others}");
    }

    #[test]
    fn a_star_in_a_name_stands_for_itself() {
        let spec = GatewaySpec { turned_on: ["eth*".to_owned()].into(), ..spec() };
        let rules = chain(&spec, "forward");
        assert!(rules.iter().any(|rule| rule.contains(r#""eth\\*""#)), "{rules:?}");
    }
}
