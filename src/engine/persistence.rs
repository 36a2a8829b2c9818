//! A client that does not authenticate by the clock tries again until something comes back: its
//! server may not be there yet, or may have forgotten it. That something comes back is seen by the
//! counters of the tunnel's interface, as many servers answer nothing else.

use std::time::Duration;

use super::host::Traffic;

const FIRST: Duration = Duration::from_secs(1);
/// The longest time between two tries; a client that authenticates as often by itself has no need
/// of them.
pub const LONGEST: Duration = Duration::from_secs(60);
/// That nothing comes back is said after the try that was this long waited for.
const SAID_AFTER: Duration = Duration::from_secs(4);
/// The host was to be read, and was not.
const UNREAD: Duration = Duration::from_secs(1);

/// What is done about a packet that may not have arrived.
#[derive(Debug)]
pub struct Persistence {
    stage: Stage,
    /// Our clock when the counters are looked at next.
    look_at: Duration,
    /// The counters as last read.
    traffic: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has come back: so many packets had been received when the first was sent, and so long
    /// is waited this time.
    Trying { received: u64, wait: Duration },
    /// Since this reading, has the interface sent, and received nothing?
    Watching { since: Traffic },
}

/// What the counters say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    Fine,
    /// Try again. After some tries it should be said, once.
    Silence {
        say: bool,
    },
}

impl Persistence {
    pub fn new() -> Self {
        let stage = Stage::Watching { since: Traffic::default() };
        Persistence { stage, look_at: Duration::MAX, traffic: Traffic::default() }
    }

    /// When the counters are to be looked at.
    pub fn look_at(&self) -> Duration {
        self.look_at
    }

    /// Whether the host should be read for the counters now.
    pub fn asks(&mut self, now: Duration) -> bool {
        let due = self.look_at <= now;
        if due {
            self.look_at = now + UNREAD;
        }
        due
    }

    /// A packet was sent for a reason of its own.
    pub fn sent(&mut self, now: Duration) {
        self.stage = Stage::Trying { received: self.traffic.rx_packets, wait: FIRST };
        self.look_at = now + FIRST;
    }

    /// Takes the counters; what they say, when they were asked for.
    pub fn read(&mut self, traffic: Traffic, asked: bool, now: Duration) -> Finding {
        self.traffic = traffic;
        if !asked {
            return Finding::Fine;
        }
        match self.stage {
            Stage::Trying { received, .. } if traffic.rx_packets > received => {
                self.watch(traffic, now);
                Finding::Fine
            }
            Stage::Trying { wait: LONGEST, .. } => {
                self.watch(traffic, now);
                Finding::Silence { say: false }
            }
            Stage::Trying { received, wait } => {
                let say = wait == SAID_AFTER;
                // A new interface counts from zero.
                let received = received.min(traffic.rx_packets);
                let wait = (2 * wait).min(LONGEST);
                self.stage = Stage::Trying { received, wait };
                self.look_at = now + wait;
                Finding::Silence { say }
            }
            Stage::Watching { since } => {
                let silent =
                    traffic.tx_packets > since.tx_packets && traffic.rx_packets <= since.rx_packets;
                self.watch(traffic, now);
                if silent { Finding::Silence { say: false } } else { Finding::Fine }
            }
        }
    }

    fn watch(&mut self, since: Traffic, now: Duration) {
        self.stage = Stage::Watching { since };
        self.look_at = now + LONGEST;
    }
}
