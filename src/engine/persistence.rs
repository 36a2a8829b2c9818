//! A client that does not authenticate by the clock tries again until something comes back: its
//! server may not be there yet, or may have forgotten it. The counters of the tunnel's interface show
//! whether something came back, because many servers do not answer the packet itself.

use std::time::Duration;

use super::host::Traffic;

const FIRST: Duration = Duration::from_secs(1);
/// The longest time between two tries. A client whose keepalive is at least as frequent does not need
/// them.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Once a try was waited for this long in vain, the log says so.
const SAID_AFTER: Duration = Duration::from_secs(4);
/// How long to wait for a reading that was asked for, before it is asked for again.
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
    /// Nothing has come back: `received` packets had come in when the first try was sent, and this try
    /// is given the time `wait`.
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SILENCE: Finding = Finding::Silence { say: false };

    fn traffic(rx_packets: u64, tx_packets: u64) -> Traffic {
        Traffic { rx_packets, tx_packets, ..Traffic::default() }
    }

    #[test]
    fn the_counters_are_requested_when_due_and_again_if_they_are_not_read() {
        let mut persistence = Persistence::new();
        assert!(!persistence.asks(1000 * SECOND), "nothing was sent");
        persistence.sent(5 * SECOND);
        assert!(!persistence.asks(5 * SECOND) && persistence.asks(6 * SECOND));
        assert!(!persistence.asks(6 * SECOND) && persistence.asks(7 * SECOND));
        assert_eq!(persistence.look_at(), 8 * SECOND);
    }

    #[test]
    fn each_silence_lengthens_the_wait_and_is_reported_once() {
        let mut persistence = Persistence::new();
        persistence.sent(Duration::ZERO);
        let mut said = Vec::new();
        for _ in 0..7 {
            let now = persistence.look_at();
            assert_eq!(persistence.read(traffic(0, 9), false, now), Finding::Fine, "not asked");
            let finding = persistence.read(traffic(0, 9), true, now);
            assert_ne!(finding, Finding::Fine);
            said.push((now.as_secs(), finding == Finding::Silence { say: true }));
        }
        let at = [1, 3, 7, 15, 31, 63, 123];
        assert_eq!(said, at.map(|second| (second, second == 7)));
        assert_eq!(persistence.look_at(), 183 * SECOND);
    }

    #[test]
    fn a_received_packet_ends_the_silence_even_on_a_new_interface() {
        let mut persistence = Persistence::new();
        persistence.read(traffic(100, 0), false, Duration::ZERO);
        persistence.sent(Duration::ZERO);
        assert_eq!(persistence.read(traffic(100, 0), true, SECOND), SILENCE);
        // It counts from zero.
        assert_eq!(persistence.read(traffic(0, 0), true, 3 * SECOND), SILENCE);
        assert_eq!(persistence.read(traffic(1, 0), true, 7 * SECOND), Finding::Fine);
        assert_eq!(persistence.look_at(), 67 * SECOND);
    }

    #[test]
    fn an_answered_tunnel_is_watched_every_minute() {
        let mut persistence = Persistence::new();
        persistence.sent(Duration::ZERO);
        assert_eq!(persistence.read(traffic(1, 1), true, SECOND), Finding::Fine);
        for (minute, counters, finding) in [
            (1, traffic(1, 1), Finding::Fine), // idle
            (2, traffic(1, 2), SILENCE),
            (3, traffic(2, 3), Finding::Fine),
            (4, traffic(3, 3), Finding::Fine),
            (5, traffic(3, 4), SILENCE),
        ] {
            let now = SECOND + minute * LONGEST;
            assert_eq!(persistence.look_at(), now);
            assert_eq!(persistence.read(counters, true, now), finding, "{minute}");
        }
    }
}
