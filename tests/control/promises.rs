//! What the protocol promises: judged at every packet that arrives, and at the end.

use super::*;

impl Play {
    pub(super) fn is_on(&self, peer: PeerId, at: SocketAddr) -> bool {
        self.hosts.iter().any(|h| h.is_on && h.peer == peer && h.address == at)
    }

    /// How long ago a peer said its last word; 0 as long as one of its hosts runs.
    pub(super) fn silent_for(&self, peer: PeerId) -> f64 {
        let mut hosts = self.hosts.iter().filter(|host| host.peer == peer);
        match hosts.clone().any(|host| host.is_on) {
            true => 0.0,
            false => self.now - hosts.by_ref().map(|host| host.last_word).fold(0.0, f64::max),
        }
    }

    /// Whether what was held back since a snapshot may still count.
    pub(super) fn is_fresh_image(&self) -> bool {
        self.boot() - self.restored <= 2.0 * EPOCH
    }

    pub(super) fn is_tricked(&self, peer: PeerId) -> bool {
        self.tricked.get(&peer).is_some_and(|at| self.now - at <= 2.0 * EPOCH)
    }

    /// An answer reaches its client, then what the client has to say is sent.
    pub(super) fn client_hears(&mut self, host: usize, answer: &[u8], is_injected: bool) {
        let now = self.now;
        let to = &mut self.hosts[host];
        if !to.is_on {
            return;
        }
        let heard = to.client.receive(answer, secs(now));
        to.was_accepted |= heard == ClientHeard::Accepted;
        let peer = to.peer;
        if heard == ClientHeard::Nothing {
            return;
        }
        if is_injected {
            self.tricked.insert(peer, now);
        }
        let echo: [u8; 16] = answer[4..20].try_into().unwrap();
        match self.made.get(&echo) {
            Some((maker, made)) if *maker == host && now - made <= 10.0 => {}
            Some((maker, made)) => {
                self.broken(&format!("{host} believes an answer to {maker} of {made}"))
            }
            None => self.broken("an answer to no hello"),
        }
        self.say(host);
    }

    /// A packet reaches the server. `by`: the adversary sent it.
    pub(super) fn server_hears(
        &mut self,
        packet: &Packet,
        peer: PeerId,
        from: SocketAddr,
        to: Path,
    ) {
        let (boot, now) = (secs(self.boot()), self.now);
        let before = self.server.session(peer).map(|s| (s.last_hello, s.until));
        self.server.expire(boot);
        let left = self.server.session(peer).cloned();
        let ends = if to.is_second { to_l2(from) } else { to_l1(from) };
        let rng = &mut self.rng;
        let heard = self.server.receive(packet, ends, boot, &mut |bytes| rng.fill(bytes));
        let is_adversary = to.by == By::Adversary;
        if is_adversary && signature_was_checked(heard.outcome) {
            self.note(SIGNATURES);
        }
        self.check_population();
        let session = self.server.session(peer).cloned();
        let is_tricked = self.is_tricked(peer) || to.by == By::Relay;
        let is_image = self.is_fresh_image();
        let was_at = left.as_ref().map(|session| (session.remote, session.local));
        let is_at = session.as_ref().map(|session| (session.remote, session.local));
        if let Some((remote, local)) = is_at {
            let was_remote = was_at.map(|(remote, _)| remote);
            let own = self.own[&peer].get(&remote).copied();
            if was_remote != Some(remote) {
                match own {
                    _ if remote == victim() => self.broken("moved to somebody who never asked"),
                    None if is_tricked && self.power != Power::None => self.note(TRICK),
                    None if is_image && self.tricked.contains_key(&peer) => self.note(IMAGE),
                    None => self.broken(&format!("moved to {remote}, where the peer never was")),
                    Some(left) if is_adversary && !self.is_on(peer, remote) => {
                        match now - left.unwrap_or(now) <= 2.0 * EPOCH {
                            true => self.note(FORMER),
                            false if is_image => self.note(IMAGE),
                            false => self.broken("moved to an address that it left long ago"),
                        }
                    }
                    Some(_) => {}
                }
            } else if was_at != is_at && is_adversary {
                match (is_tricked && self.power != Power::None, is_image) {
                    (true, _) => self.note(TRICK),
                    (false, true) => self.note(IMAGE),
                    (false, false) => self.broken(&format!("{local} is answered from now")),
                }
            }
        }
        let after = session.as_ref().map(|s| (s.last_hello, s.until));
        if is_adversary && session.is_some() && after != before {
            let silent = self.silent_for(peer);
            match () {
                () if silent <= 0.0 => {}
                () if silent <= 2.0 * EPOCH => self.note(LATE),
                () if is_image => self.note(IMAGE),
                () => self.broken(&format!("refreshed {silent:.0} s after the last word")),
            }
        }
        if let (Some((remote, _)), None, true) = (was_at, is_at, is_adversary) {
            let is_live =
                |h: &Host| h.is_on && h.peer == peer && h.address == remote && h.was_accepted;
            match (self.hosts.iter().any(is_live), is_image) {
                (false, _) => {}
                (true, true) => self.note(IMAGE),
                (true, false) => self.broken("a live session was ended by a copy"),
            }
        }
        let bytes = self.bytes.entry(from).or_default();
        bytes.0 += packet.len();
        let Some(answer) = heard.answer else { return };
        bytes.1 += answer.len();
        if bytes.1 > bytes.0 || answer.len() > packet.len() {
            self.broken("more bytes are sent than came");
        }
        let maker = self.made[packet.last_chunk::<16>().unwrap()].0;
        if from != victim() {
            self.answers.push((answer.clone(), maker));
        }
        if to.is_second {
            return; // clients listen to the address that they speak to
        }
        for host in 0..self.hosts.len() {
            let is_relayed = to.by == By::Relay && host == maker;
            if is_relayed || self.hosts[host].address == from {
                for _ in 0..self.copies() {
                    let arrival = now + self.rng.uniform(0.01, 0.4);
                    let answer = answer.clone();
                    let flight = Flight::ToClient { answer, host, is_injected: is_relayed };
                    self.air.push((arrival, flight));
                }
            }
        }
    }

    pub(super) fn check_population(&mut self) {
        for id in [A, B] {
            let Some(remote) = self.server.session(id).map(|session| session.remote) else {
                continue;
            };
            if self.allowed[&id] != Allowed::Yes {
                self.broken("a disabled peer is in");
            }
            if self.server.at(remote) != Some(id) {
                self.broken("two peers have one remote");
            }
            let other = if id == A { B } else { A };
            if self.server.session(other).is_some_and(|session| session.remote == remote) {
                self.broken("two peers have one remote");
            }
        }
    }

    /// A session at an address where the peer never was ends at last with its lease.
    pub(super) fn check_places(&mut self) {
        for id in [A, B] {
            let Some(session) = self.server.session(id) else { continue };
            if self.own[&id].contains_key(&session.remote) || session.until < secs(self.boot()) {
                continue;
            }
            // A snapshot may have it as well.
            let tricked = self.tricked.get(&id).copied().unwrap_or(f64::MIN);
            let ago = (self.now - tricked).min(self.boot() - self.restored);
            if !self.tricked.contains_key(&id) || ago > 2.0 * EPOCH + self.lease {
                self.broken("at an address where the peer never was");
            }
        }
    }

    /// The adversary is gone and nothing is lost any more: everybody is in with his next hello.
    pub(super) fn end(&mut self) {
        self.step = STEPS;
        self.hosts.truncate(2);
        for id in [A, B] {
            self.server.insert(id, peer(id, secs(self.lease), Allowed::Yes));
            self.allowed.insert(id, Allowed::Yes);
        }
        for host in 0..2 {
            if !self.hosts[host].is_on {
                self.switch_on(host);
            }
        }
        for host in 0..2 {
            if host == 1 && self.hosts[0].address == self.hosts[1].address {
                continue; // the second one would take it from the first
            }
            self.now += 11.0;
            let (now, boot) = (secs(self.now), secs(self.boot()));
            let (rng, server) = (&mut self.rng, &mut self.server);
            let Host { client, peer, address, .. } = &mut self.hosts[host];
            client.say_now(now);
            let mut hellos = 0;
            while let Some(hello) = client.poll(now, UNIX, &mut |bytes| rng.fill(bytes)) {
                hellos += 1;
                server.expire(boot);
                let ends = to_l1(*address);
                let heard = server.receive(&hello, ends, boot, &mut |bytes| rng.fill(bytes));
                heard.answer.iter().for_each(|answer| {
                    client.receive(answer, now);
                });
            }
            let is_in = server.session(*peer).map(|session| session.remote) == Some(*address);
            let is_connected = matches!(client.state(now), State::Connected { .. });
            if !is_in || !is_connected || client.is_confirming() || hellos > 3 {
                self.broken(&format!("{host} is not in: {hellos} hellos, {is_in} {is_connected}"));
            }
        }
    }
}

/// How a packet came.
#[derive(Clone, Copy)]
pub(super) struct Path {
    pub(super) by: By,
    /// To the server's second address.
    pub(super) is_second: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Host,
    Relay,
    Adversary,
}

impl Path {
    pub(super) fn of(by: By) -> Self {
        Path { by, is_second: false }
    }
}

fn signature_was_checked(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Up { .. }
        | Outcome::Moved { .. }
        | Outcome::Ignored(Ignored::WrongSignature { .. }) => true,
        Outcome::Challenged { .. }
        | Outcome::Refreshed { .. }
        | Outcome::Left { .. }
        | Outcome::WasOut { .. }
        | Outcome::Refused { .. }
        | Outcome::Ignored(
            Ignored::NotForUs
            | Ignored::WrongMac { .. }
            | Ignored::ForeignBye
            | Ignored::TooManyChallenges
            | Ignored::TooManySignatures
            | Ignored::TooManyMoves,
        ) => false,
    }
}
