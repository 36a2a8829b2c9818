//! Decides what is done with a received datagram: whether it is delivered, is for the engine, or is
//! dropped.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::classify::{Class, classify, is_control};
use super::drops::Reason;
use super::table::{Forwarding, Judgement};
use crate::engine::host::PacketShape;
use crate::wire::inner::{self, Inner};

/// The sender whose datagrams are sorted.
pub struct Sender {
    pub from: SocketAddr,
    /// The monotonic clock.
    pub now: Duration,
    /// The last inner source address that was accepted: most packets have the same one as the packet
    /// before.
    pub known: Option<IpAddr>,
}

/// What is done with a datagram.
pub enum Verdict {
    Deliver(Inner),
    /// Judge it again once it is noted where this inner address is.
    Learn(IpAddr),
    Control,
    Drop(Reason),
}

impl Sender {
    #[inline]
    pub fn verdict(&mut self, forwarding: &Forwarding, payload: &[u8]) -> Verdict {
        let control = forwarding.spec().control;
        let class = classify(payload, control);
        let Class::Data(inner) = class else {
            return self.control_or(Reason::RxMalformed, class, payload, forwarding);
        };
        if self.known != Some(inner.source) {
            match forwarding.judge(self.from, inner.source, self.now) {
                Judgement::Deliver => self.known = Some(inner.source),
                Judgement::Learn => return Verdict::Learn(inner.source),
                Judgement::Stranger => {
                    return self.control_or(Reason::RxStranger, class, payload, forwarding);
                }
                Judgement::WrongSource => return Verdict::Drop(Reason::RxWrongSource),
            }
        }
        match inner::is_redirect_v4(payload, &inner) {
            true => Verdict::Drop(Reason::RxRedirect),
            false => Verdict::Deliver(inner),
        }
    }

    fn control_or(
        &self,
        reason: Reason,
        class: Class,
        payload: &[u8],
        forwarding: &Forwarding,
    ) -> Verdict {
        let control = forwarding.spec().control;
        let is_expected = control != Some(PacketShape::Answers) || forwarding.hears(self.from);
        match is_expected && is_control(class, payload, self.from, control) {
            true => Verdict::Control,
            false => Verdict::Drop(reason),
        }
    }
}
