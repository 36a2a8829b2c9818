//! The nouns of a host: what was found there, what is wanted, and the steps from one to the other.

mod addresses;
mod around;
mod fast_path;
mod found;
pub mod gateway;
mod interface;
mod interfaces;
mod label;
pub mod needs;
mod noted;
pub mod own_addresses;
pub mod plan;
mod routing;
mod rules;
pub mod step;
pub mod surroundings;
pub mod undone;
mod userspace;
pub mod wanted;

pub use addresses::Addresses;
pub use around::{forget, give_back};
pub use fast_path::{FastPath, FastPathEnds, FastPathFound, FastPeer, LinkHeader, Takes};
pub use found::{Found, GatewayFound, NameServers, Userspace, Way};
pub use interface::{
    Address, AddressState, Encapsulation, Interface, InterfaceAddress, InterfaceKind, IpipLink,
    Master, Scope, Traffic,
};
pub use interfaces::Interfaces;
pub use label::{LinkForwarding, is_gateway, is_labelled};
pub use routing::{
    Answers, Family, ForwardingRules, GatewaySpec, KernelRoute, KernelRouteTo, PolicyRule,
    PolicyRuleKind, ROUTE_PROTOCOL, Route, RouteTarget, RulesOfHost,
};
pub use rules::{Admitted, Control, Listener, PacketShape, RuleSpec, RulesFound, SharedLink};
pub use userspace::{LearnSpec, PeerTable, RemoteSpec, SocketSpec};
