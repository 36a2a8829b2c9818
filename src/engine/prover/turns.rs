//! Whose turn it is among several servers: which one has our data, and which one is asked.
//!
//! Data stays where it is until another server has let us in, so an outage changes nothing on the host,
//! unless that server can be asked from another local outer address only. While another than the first
//! has our data, the first is asked now and then by hellos that show no cookie: to these it answers with a
//! challenge, which proves that it is there (it has a MAC, and the tag of our hello in it), and for which it
//! keeps nothing and moves nothing. When it has answered for [`BACK_AFTER`], it is asked to let us in, by
//! the cookie of its last challenge, and has our data once it has done so.

use std::time::Duration;

use crate::engine::control::{Client, HELLOS_IN_TURN};

/// How long the first server has to answer before it has our data again. It doubles each time that it did
/// not let us in then, up to [`BACK_AT_LAST`].
const BACK_AFTER: Duration = Duration::from_secs(60);
const BACK_AT_LAST: Duration = Duration::from_secs(32 * 60);

/// How often the first server is asked, by how much that differs, and how many times in a row it may be
/// silent. When its last answer is older than that, time passed in which nobody asked: the machine slept.
const ASK_EVERY: Duration = Duration::from_secs(10);
pub const SPREAD: Duration = Duration::from_secs(2);
const MAY_MISS: u32 = 1;
const LONGEST_GAP: Duration = Duration::from_secs(25);

/// How long there may be no way to a server before the next one is asked.
const NO_WAY_FOR: Duration = Duration::from_secs(3);

/// How often news make the servers be asked from the beginning, while none lets us in. A route that comes
/// and goes every second would otherwise keep us with a server that is silent.
const NEWS_EVERY: Duration = Duration::from_secs(60);

/// How hellos get to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its address is not known, or there is no way to it.
    Nowhere,
    /// From our outer address as it is.
    Beside,
    /// From another outer address, which ours becomes when the server has our data.
    Instead,
}

/// Why it is the turn of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The server with number `from` did not answer, refused, or cannot be reached: `to` is asked.
    Next {
        /// The server that was asked until now.
        from: usize,
        /// The server that is asked from now on.
        to: usize,
        /// What was the matter.
        why: Passed,
        /// It happens the first time since we were connected.
        is_news: bool,
    },
    /// The first server has answered for this long and is asked to let us in.
    Back(Duration),
}

/// Why a server's turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It did not answer.
    Silent,
    /// It does not let us in.
    Refused,
    /// There is no way to it.
    NoWay,
}

/// Whose turn it is. Times are by CLOCK_BOOTTIME.
#[derive(Debug)]
pub struct Turns {
    in_use: usize,
    asking: usize,
    /// How many turns were over since the last accept.
    over: usize,
    /// How many hellos without an accept the server that is asked has before its turn is over.
    tries: u32,
    no_way_since: Option<Duration>,
    /// When news made the servers be asked from the beginning, since one let us in last.
    news_at: Option<Duration>,
    /// The first server is asked to let us in, and another one has.
    is_going_back: bool,
    back: Back,
}

/// The way back to the first server.
#[derive(Debug)]
struct Back {
    ask_at: Duration,
    answers_since: Option<Duration>,
    answered_at: Duration,
    missed: u32,
    after: Duration,
}

impl Turns {
    pub fn new(boot: Duration) -> Self {
        Turns {
            in_use: 0,
            asking: 0,
            over: 0,
            tries: HELLOS_IN_TURN,
            no_way_since: None,
            news_at: None,
            is_going_back: false,
            back: Back {
                ask_at: boot,
                answers_since: None,
                answered_at: boot,
                missed: 0,
                after: BACK_AFTER,
            },
        }
    }

    /// The number of the server that has our data.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// The number of the server that is asked.
    pub fn asking(&self) -> usize {
        self.asking
    }

    /// A whole round of turns is over without an accept.
    pub fn is_round_over(&self, servers: usize) -> bool {
        self.over >= servers
    }

    /// The server with this number has our data.
    pub fn adopt(&mut self, number: usize) {
        (self.in_use, self.asking) = (number, number);
    }

    /// There are news of the host: the server that is asked is asked from the beginning, three times. False
    /// when it goes on as before, because that has happened a short time ago and none has let us in.
    pub fn begin_again(&mut self, client: &Client, boot: Duration) -> bool {
        let tries = client.tries();
        if self.over > 0 || tries > 0 || self.no_way_since.is_some() {
            if self.news_at.is_some_and(|at| boot.saturating_sub(at) < NEWS_EVERY) {
                return tries == 0;
            }
            self.news_at = Some(boot);
        }
        (self.over, self.tries) = (0, tries.saturating_add(HELLOS_IN_TURN));
        self.no_way_since = self.no_way_since.and(Some(boot));
        true
    }

    /// The server that is asked is at another address, where it has had no hello yet. It had `before` where it
    /// was: its turn goes on with what is left.
    pub fn count_from_zero(&mut self, before: u32) {
        self.tries = self.tries.saturating_sub(before).max(1);
    }

    /// A server let us in. True when it has our data from now on, and another had before.
    pub fn accepted(&mut self, number: usize, boot: Duration) -> bool {
        (self.asking, self.is_going_back) = (number, false);
        (self.over, self.tries, self.no_way_since) = (0, HELLOS_IN_TURN, None);
        self.news_at = None;
        let before = std::mem::replace(&mut self.in_use, number);
        if number == 0 {
            self.back.after = BACK_AFTER;
        }
        if before != number {
            self.back.forget(boot);
        }
        before != number
    }

    /// The first server answered. It counts while another one has our data.
    pub fn answered(&mut self, boot: Duration) {
        if !self.watches_first() {
            return;
        }
        self.back.forget_if_old(boot);
        (self.back.missed, self.back.answered_at) = (0, boot);
        self.back.answers_since.get_or_insert(boot);
    }

    /// Whether the first server is to be asked whether it is there; it is noted that it was.
    pub fn asks_first(&mut self, boot: Duration, lot: Duration) -> bool {
        if !self.watches_first() || self.back.ask_at > boot {
            return false;
        }
        self.back.ask_at = boot.saturating_add(ASK_EVERY).saturating_add(lot);
        self.back.missed += 1;
        if self.back.is_silent() {
            self.back.answers_since = None;
        }
        true
    }

    /// Whether the first server has missed several questions, once for each time that it did.
    pub fn first_is_silent(&mut self) -> bool {
        let is_silent = self.back.is_silent();
        if is_silent {
            self.back.missed = 0;
        }
        is_silent
    }

    /// When the first server is asked whether it is there.
    pub fn asks_at(&self) -> Option<Duration> {
        self.watches_first().then_some(self.back.ask_at)
    }

    /// How long another server waits for a way to the one that is asked.
    pub fn no_way_until(&self) -> Option<Duration> {
        self.no_way_since.map(|since| since.saturating_add(NO_WAY_FOR))
    }

    fn watches_first(&self) -> bool {
        self.in_use != 0 && self.asking == self.in_use
    }

    /// Gives the turn to another server, when that of the one that is asked is over.
    pub fn go_on(
        &mut self,
        clients: &mut [Client],
        access: &[Access],
        boot: Duration,
    ) -> Option<Turn> {
        let access = |number: usize| access.get(number).copied().unwrap_or(Access::Nowhere);
        if let Some(turn) = self.go_back(clients, access(0), boot) {
            return Some(turn);
        }
        let no_way = access(self.asking) == Access::Nowhere;
        self.no_way_since = self.no_way_since.filter(|_| no_way).or(no_way.then_some(boot));
        let asked = clients.get(self.asking)?;
        let why = if asked.refused_until().is_some_and(|until| boot < until) {
            Passed::Refused
        } else if asked.is_silent(self.tries, boot) {
            Passed::Silent
        } else if self.no_way_since.is_some_and(|s| boot.saturating_sub(s) >= NO_WAY_FOR) {
            Passed::NoWay
        } else {
            return None;
        };
        self.next(why, clients, access, boot)
    }

    /// Asks the first server to let us in, when it has answered for long enough.
    fn go_back(&mut self, clients: &mut [Client], first: Access, boot: Duration) -> Option<Turn> {
        self.back.forget_if_old(boot);
        let since = self.back.answers_since.filter(|_| self.watches_first())?;
        let answers_for = boot.saturating_sub(since);
        if answers_for < self.back.after || self.back.missed > 0 || first != Access::Beside {
            return None;
        }
        let client = clients.first_mut()?;
        (self.asking, self.is_going_back) = (0, true);
        client.say_now(boot);
        self.tries = client.tries().saturating_add(HELLOS_IN_TURN);
        self.back.forget(boot);
        // Until it has let us in.
        self.back.after = (2 * self.back.after).min(BACK_AT_LAST);
        Some(Turn::Back(answers_for))
    }

    fn next(
        &mut self,
        why: Passed,
        clients: &mut [Client],
        access: impl Fn(usize) -> Access,
        boot: Duration,
    ) -> Option<Turn> {
        let (from, count) = (self.asking, clients.len());
        let refuses = |number: usize| {
            let until = clients.get(number).and_then(Client::refused_until);
            until.is_some_and(|until| boot < until)
        };
        let others = (1..count).map(|step| (from + step) % count);
        // What was only an attempt to go back ends where the data is.
        let stays = std::mem::take(&mut self.is_going_back);
        let to = match stays {
            true => Some(self.in_use),
            false => others.into_iter().find(|n| access(*n) != Access::Nowhere && !refuses(*n)),
        };
        let Some(to) = to else {
            // It goes on alone.
            match why {
                Passed::Silent => {
                    self.over += 1;
                    self.tries = clients.get(from)?.tries().saturating_add(1);
                }
                Passed::Refused => self.tries = HELLOS_IN_TURN,
                Passed::NoWay => self.no_way_since = Some(boot),
            }
            return None;
        };
        self.no_way_since = None;
        if stays && let Some(client) = clients.get_mut(from).filter(|_| why == Passed::Silent) {
            client.rest(boot);
        }
        self.asking = to;
        self.over += usize::from(!stays);
        let client = clients.get_mut(to)?;
        if stays {
            self.tries = client.tries().saturating_add(HELLOS_IN_TURN);
            return None;
        }
        let hellos = if self.over < count { HELLOS_IN_TURN } else { 1 };
        self.tries = client.tries().saturating_add(hellos);
        match self.over < count {
            true => client.say_now(boot),
            false => client.take_turn(boot),
        }
        if access(to) == Access::Instead || access(self.in_use) == Access::Nowhere {
            self.in_use = to;
            self.back.forget(boot); // its answers while it had our data do not count later
        }
        Some(Turn::Next { from, to, why, is_news: self.over < count })
    }
}

impl Back {
    fn forget(&mut self, boot: Duration) {
        (self.answers_since, self.missed) = (None, 0);
        self.ask_at = boot.saturating_add(ASK_EVERY);
    }

    fn is_silent(&self) -> bool {
        self.missed > 1 + MAY_MISS
    }

    fn forget_if_old(&mut self, boot: Duration) {
        if boot.saturating_sub(self.answered_at) > LONGEST_GAP {
            self.answers_since = None;
        }
    }
}
