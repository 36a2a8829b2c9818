//! Rules that judge what may reach the FOU listener and the `ipip` links. They are in hook input:
//! there, packets are for this host and whole, the kernel has already checked their source (martians,
//! rp_filter), and the host's own NAT is undone. So what a router merely forwards is not judged, and
//! what its DNAT sends to the tunnel's port is. For a server (a client drops what a server queues):
//! ```text
//! chain input { type filter hook input priority mangle
//!   ip daddr OUTER udp dport PORT iifname != INSIDE udp length != 81
//!       ip saddr . udp sport @remotes accept                 # @known with alternate addresses: `rewriting.rs`
//!   ip protocol icmp goto error
//!   ip daddr OUTER goto outer
//! }
//! chain outer {
//!   udp dport PORT goto port
//!   ip protocol 4 ip saddr @addresses drop                   # plain IPIP would match our link too
//! }
//! chain port {
//!   iifname INSIDE drop                                      # a way into a tunnel from inside one
//!   udp length 81 @th,64,4 4 @th,80,16 != 73 goto control    # looks like IPv4 but for its length
//!   @th,64,4 4 ip saddr . udp sport @remotes accept          # data of a known remote
//!   @th,64,4 4 drop                                          # data of a stranger
//!   goto control
//! }
//! chain control {
//!   udp length != 81-520 limit rate 5/second queue num NUMBER        # proves nothing; why, the log says
//!   udp length != 81-520 drop
//!   ip saddr . udp sport @known limit rate 10/second queue num NUMBER
//!   meter light { ip saddr limit rate 20/second } limit rate 1000/second queue num NUMBER
//!   meta random < 2/3 limit rate 3500/second queue num NUMBER
//!   drop
//! }
//! chain error {
//!   icmp type { destination-unreachable, redirect, time-exceeded, parameter-problem } goto quoted
//! }
//! chain quoted {                                             # QUOTED: what the packet was that failed
//!   QUOTED ip daddr REMOTE goto quoted_remote                # see `quoted.rs`
//! }
//! chain quoted_remote {
//!   icmp type redirect drop
//!   QUOTED ip protocol 4 QUOTED ip saddr OUTER drop          # this tunnel has no plain IPIP; or ALTERNATE
//!   icmp type != destination-unreachable accept
//!   icmp code != frag-needed accept
//!   QUOTED ip protocol tcp accept                            # the kernel checks its sequence number
//!   icmp mtu < 1280 drop
//!   QUOTED ip protocol icmp drop
//!   QUOTED ip hdrlength != 5 drop                            # the ports are elsewhere
//!   QUOTED ip protocol udp QUOTED udp sport PORT jump quoted_port
//!   QUOTED ip protocol udp QUOTED udp sport PORT drop
//! }
//! chain quoted_port {
//!   QUOTED ip daddr REMOTE QUOTED udp dport REMOTE accept
//! }
//! ```
//!
//! The first rule is the path of nearly every data packet, so it is as short as possible: `make bench`
//! measures what the path costs. All packets take it except those of the length of an authentication
//! packet (81 with the UDP header), which are looked at more closely. It compares the interface only
//! where the listener is not bound to one. The rules about alternate addresses are there only while one
//! is in use. `@th,64,4` is the first four bits of the UDP payload: the version of the inner packet.
//! The queue has no `bypass`: without the daemon, nothing is let in. INSIDE are the links of this and
//! other ipipou processes, except the one that has our outer address: a tunnel may be in a tunnel.
//!
//! What the chain `control` is like for clients, and for servers with named peers, is in `control.rs`.
//!
//! The kernel believes an ICMP error that quotes one of our packets, no matter who sent it and to which
//! local address: "fragmentation needed" changes the path to the remote for all protocols
//! (`ipv4_update_pmtu`), below `net.ipv4.route.min_pmtu` in such a way that nothing large gets through
//! a tunnel any more; any error that quotes plain IPIP makes the next packets of the link fail
//! (`ipip_err`). So the quoted addresses and ports have to be those of an admitted remote, and a path
//! narrower than 1280 bytes, the least of IPv6, is not believed at all. Anybody can make the host send
//! an echo reply; because the kernel sends it without DF, no router ever says that it did not fit.

use nftables::expr::{Expression, MetaKey};
use nftables::stmt::Statement;

use super::control::{control, hello};
use super::words::{
    CHAIN_QUOTED, CHAIN_QUOTED_PORT, CHAIN_QUOTED_REMOTE, SET_ADDRESSES, SET_KNOWN, SET_REMOTES,
    Statements, UDP_HEADER, control_length, refuse,
};
use super::{rewriting, shared};
use crate::engine::host::{Control, PacketShape, RuleSpec};
use crate::host::expression::{
    address, any_of, below, eq, goto, icmp, interface, interfaces, ip, jump, meta, named_set, ne,
    number, source, text, transport, udp,
};

const ICMP: u16 = 1;
const IPIP: u16 = 4;
const TCP: u16 = 6;
const UDP: u16 = 17;

/// A path is never taken to be narrower (RFC 8200, section 5), unless the user sets less.
const LEAST_MTU: u32 = 1280;

/// Where the total length in an IPv4 header ends: a shorter payload does not have one.
const IPV4_LENGTH_END: u16 = 4;

pub fn chains(spec: &RuleSpec) -> Vec<(&'static str, Vec<Statements>)> {
    vec![
        ("input", input(spec)),
        ("outer", outer(spec)),
        ("port", port(spec)),
        ("control", control(spec)),
        ("hello", hello(spec)),
        ("error", error(spec)),
        (CHAIN_QUOTED, Vec::new()),
        (CHAIN_QUOTED_PORT, Vec::new()),
        (CHAIN_QUOTED_REMOTE, quoted_remote(spec)),
    ]
}

fn input(spec: &RuleSpec) -> Vec<Statements> {
    let mut data = vec![eq(ip("daddr"), address(spec.outer)), eq(udp("dport"), number(spec.port))];
    if !spec.bound {
        data.extend(inside(spec).map(|name| ne(meta(MetaKey::Iifname), name)));
    }
    data.extend(control_length(spec).map(|length| ne(udp("length"), number(length))));
    let known = of_known_remotes(spec).into_iter();
    let mut rules: Vec<Statements> =
        known.map(|known| data.iter().cloned().chain(known).collect()).collect();
    rules.extend(rewriting::forged(spec));
    rules.push(vec![eq(ip("protocol"), number(ICMP)), goto("error")]);
    rules.push(vec![eq(ip("daddr"), address(spec.outer)), goto("outer")]);
    rules
}

/// Each of these lets data of remotes in that are known.
fn of_known_remotes(spec: &RuleSpec) -> Vec<Statements> {
    match &spec.shared {
        Some(_) => shared::senders(),
        None => {
            let set = if spec.alternate.is_empty() { SET_REMOTES } else { SET_KNOWN };
            vec![vec![eq(source(), named_set(set)), Statement::Accept(None)]]
        }
    }
}

/// The interfaces of tunnels: those with one of these names, and those whose names begin so.
fn inside(spec: &RuleSpec) -> impl Iterator<Item = Expression<'static>> {
    let named: Vec<_> = spec.inside.iter().map(|name| interface(name)).collect();
    let named = (!named.is_empty()).then(|| any_of(named));
    named.into_iter().chain(spec.inside_too.iter().map(|start| interfaces(start)))
}

fn outer(spec: &RuleSpec) -> Vec<Statements> {
    let mut rules = vec![vec![eq(udp("dport"), number(spec.port)), goto("port")]];
    if spec.shared.is_none() {
        let plain = eq(ip("protocol"), number(IPIP));
        let from_remote = eq(ip("saddr"), named_set(SET_ADDRESSES));
        rules.push(refuse(spec, vec![plain, from_remote], "plain_ipip"));
    }
    rules
}

fn port(spec: &RuleSpec) -> Vec<Statements> {
    let is_data = || eq(inner_version(), number(4));
    let mut rules: Vec<Statements> = Vec::new();
    for name in inside(spec) {
        let from_inside = vec![eq(meta(MetaKey::Iifname), name)];
        rules.push(refuse(spec, from_inside, "inside_tunnel"));
    }
    rules.extend(
        lookalike(spec).map(|matches| matches.into_iter().chain([goto("control")]).collect()),
    );
    let known = of_known_remotes(spec).into_iter();
    rules.extend(known.map(|known| [is_data()].into_iter().chain(known).collect()));
    match spec.control {
        // A server that knows its client by address alone: that client's data proves as much as
        // anything.
        Control::Queue { shape: PacketShape::FromRemote { .. }, .. } => {}
        Control::Queue {
            shape: PacketShape::NotIpv4 { .. } | PacketShape::Hellos { .. } | PacketShape::Answers,
            ..
        }
        | Control::Refuse => {
            rules.push(refuse(spec, vec![is_data()], "stranger_data"));
        }
    }
    rules.push(vec![goto("control")]);
    rules
}

/// Matches a packet that has the length of an authentication packet and looks like IPv4, except that
/// the length in its header differs.
pub fn lookalike(spec: &RuleSpec) -> Option<Statements> {
    let Control::Queue { shape: PacketShape::NotIpv4 { length, .. }, .. } = spec.control else {
        return None;
    };
    let mut matches = vec![
        eq(udp("length"), number(length.saturating_add(UDP_HEADER))),
        eq(inner_version(), number(4)),
    ];
    if length >= IPV4_LENGTH_END {
        matches.push(ne(inner_length(), number(length)));
    }
    Some(matches)
}

fn error(spec: &RuleSpec) -> Vec<Statements> {
    let kinds = ["destination-unreachable", "redirect", "time-exceeded", "parameter-problem"];
    let kinds = any_of(kinds.into_iter().map(text).collect());
    let is_error = eq(icmp("type"), kinds);
    match spec.shared {
        Some(_) => {
            let about_remote = [is_error].into_iter().chain(shared::about_remote()).collect();
            vec![refuse(spec, shared::elsewhere(), "icmp_error"), about_remote]
        }
        None => vec![vec![is_error, goto(CHAIN_QUOTED)]],
    }
}

fn quoted_remote(spec: &RuleSpec) -> Vec<Statements> {
    const FRAG_NEEDED: u16 = 4;
    const NO_OPTIONS: u16 = 0x45;
    let refuse = |matches| refuse(spec, matches, "icmp_error");
    let of = |protocol| eq(quote::protocol(), number(protocol));
    let about_port = match spec.shared {
        Some(_) => vec![shared::about_port(), Statement::Accept(None)],
        None => vec![jump(CHAIN_QUOTED_PORT)],
    };
    let mut rules = vec![refuse(vec![eq(icmp("type"), text("redirect"))])];
    // With an alternate address of ours, that from the outer one may be another tunnel's.
    let outer = Some(spec.outer).filter(|_| spec.alternate.is_empty());
    rules.extend(
        spec.alternate.iter().copied().chain(outer).map(|own| {
            refuse(vec![of(IPIP), eq(quote::source(), Expression::Number(own.to_bits()))])
        }),
    );
    rules.extend([
        vec![ne(icmp("type"), text("destination-unreachable")), Statement::Accept(None)],
        vec![ne(icmp("code"), number(FRAG_NEEDED)), Statement::Accept(None)],
        vec![of(TCP), Statement::Accept(None)],
        refuse(vec![below(icmp("mtu"), LEAST_MTU)]),
        refuse(vec![of(ICMP)]),
        refuse(vec![ne(quote::first_byte(), number(NO_OPTIONS))]),
        vec![of(UDP), eq(quote::source_port(), number(spec.port))]
            .into_iter()
            .chain(about_port)
            .collect(),
        refuse(vec![of(UDP), eq(quote::source_port(), number(spec.port))]),
    ]);
    rules
}

/// Fields of the packet that an ICMP error quotes: its IPv4 header begins after the 8 bytes of the ICMP
/// header.
mod quote {
    use super::{Expression, transport};

    const BEGIN: u32 = 64;

    pub fn first_byte() -> Expression<'static> {
        transport(BEGIN, 8)
    }

    pub fn protocol() -> Expression<'static> {
        transport(BEGIN + 72, 8)
    }

    pub fn source() -> Expression<'static> {
        transport(BEGIN + 96, 32)
    }

    pub fn source_port() -> Expression<'static> {
        transport(BEGIN + 160, 16)
    }
}

fn inner_version() -> Expression<'static> {
    transport(64, 4)
}

fn inner_length() -> Expression<'static> {
    transport(64 + 16, 16)
}
