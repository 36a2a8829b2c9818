//! Takes an answer at the client: whether it belongs to a hello, and when the next hello is due.

use std::time::Duration;

use super::accepted::{Accepted, ClientHeard};
use super::client::{Client, Leaving, Shown};
use super::outstanding::Sent;
use super::timing;
use crate::wire::control::{Answer, AnswerKind, Refusal};

/// How many challenges of one try are answered at once. More of them come when packets reach several
/// servers in turn; then hellos would be sent without end.
const ANSWERED_AT_ONCE: u8 = 2;

/// The lease of an accept that does not say one.
const DEFAULT_LEASE: Duration = Duration::from_secs(180);

/// No server has a shorter one: one that says so would have us say hello several times a second.
const LEAST_LEASE: Duration = Duration::from_secs(30);

impl Client {
    /// Takes a UDP payload that came from the address and port that hellos go to.
    pub fn receive(&mut self, payload: &[u8], boot: Duration) -> ClientHeard {
        let Ok(received) = Answer::parse(payload) else { return ClientHeard::Nothing };
        let Some(sent) = self.outstanding.find(&received.answer.echo, boot) else {
            return ClientHeard::Nothing;
        };
        if !self.pair.is_answer_mac(received.authenticated, &received.mac) {
            return ClientHeard::Nothing;
        }
        match received.answer.kind {
            AnswerKind::Challenge => {
                if sent.is_challenged || sent.number < self.cookie_of {
                    return ClientHeard::Nothing;
                }
                sent.is_challenged = true;
                let sent = *sent;
                self.challenged(&received.answer, sent, boot)
            }
            AnswerKind::Accept => {
                let sent = *sent;
                self.accepted(received.answer, sent, boot)
            }
            AnswerKind::Refuse(why) => {
                let sent = *sent;
                self.refused(why, sent, boot)
            }
        }
    }

    fn challenged(&mut self, answer: &Answer, sent: Sent, boot: Duration) -> ClientHeard {
        self.round_trip = Some(boot.saturating_sub(sent.at));
        self.cookie = Some(Shown { cookie: answer.cookie, is_of_accept: false });
        self.cookie_of = sent.number;
        if self.answered_at_once < ANSWERED_AT_ONCE && self.leaving.is_none_or(|l| l.0 > 0) {
            self.answered_at_once += 1;
            self.at_once = true;
        }
        // The server is there, so an answer can be waited for as at the start. But not each time: then
        // hellos would never become rarer where challenges are all that ever comes.
        if !std::mem::replace(&mut self.is_brought_forward, true) {
            self.due = self.due.min(boot.saturating_add(self.retry_after(0)));
            self.step = 1;
        }
        ClientHeard::Challenged
    }

    fn accepted(&mut self, answer: Answer, sent: Sent, boot: Duration) -> ClientHeard {
        self.outstanding.close(sent.number);
        if sent.number >= self.cookie_of {
            self.cookie = Some(Shown { cookie: answer.cookie, is_of_accept: true });
            self.cookie_of = sent.number;
        }
        let lease =
            answer.lease.map_or(DEFAULT_LEASE, |lease| match Duration::from_secs(lease.into()) {
                Duration::ZERO => Duration::ZERO,
                lease => lease.max(LEAST_LEASE),
            });
        if let Some(leaving) = &mut self.leaving {
            if !lease.is_zero() {
                return ClientHeard::Nothing; // of a hello from before
            }
            *leaving = Leaving(0);
            self.due = Duration::ZERO;
            return ClientHeard::Gone;
        }
        if lease.is_zero() {
            return ClientHeard::Nothing;
        }
        let round_trip = boot.saturating_sub(sent.at);
        let goes_on = self.accepted.take().filter(|accepted| boot < accepted.until);
        self.accepted = Some(Accepted {
            since: goes_on.map_or(boot, |accepted| accepted.since),
            until: sent.at.saturating_add(lease),
            round_trip,
            seen: answer.seen,
            inner: answer.inner,
            mtu: answer.mtu,
        });
        self.round_trip = Some(round_trip);
        (self.refused, self.tries, self.trying_since) = (None, 0, boot);
        (self.answered_at_once, self.is_brought_forward, self.extra_at) = (0, false, None);
        // A later hello still has to be accepted: it may have gone from where we are now.
        if sent.number == self.outstanding.last() {
            self.step = 0;
            let after = timing::keepalive_after(self.config.keepalive, lease, self.lot);
            self.due = boot.saturating_add(after);
        }
        ClientHeard::Accepted
    }

    fn refused(&mut self, why: Refusal, sent: Sent, boot: Duration) -> ClientHeard {
        self.outstanding.close(sent.number);
        if self.leaving.is_some() {
            return ClientHeard::Nothing;
        }
        self.round_trip = Some(boot.saturating_sub(sent.at));
        let before = self.refused.map_or(0, |(_, times)| times);
        self.refused = Some((why, before + 1));
        self.accepted = None;
        (self.tries, self.trying_since) = (0, boot);
        (self.at_once, self.is_brought_forward, self.extra_at) = (false, false, None);
        (self.due, self.step) = (boot.saturating_add(timing::refused_after(before)), 0);
        ClientHeard::Refused(why)
    }
}
