//! Tells whether the other end of a client's tunnel is there. A server answers nothing unless it is
//! asked to, so packets that come out of the tunnel, and such answers, are the only signs.

use std::time::Duration;

use super::host::Traffic;

/// How long packets may go out and none come in before the other end is thought to be away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the interface's counters have shown so far.
#[derive(Debug, Default)]
pub struct Heard {
    last: Option<Traffic>,
    /// Our clock then.
    read_at: Duration,
    /// Unix time of the reading that last saw packets come in, and our clock then.
    data: Option<u64>,
    came_at: Option<Duration>,
    /// The same of answers to authentication packets.
    reply: Option<u64>,
    /// Our clock at the first reading that saw packets go out since then.
    unanswered: Option<Duration>,
    /// The same since the server's address became another one, and at the last such reading.
    sending: Option<(Duration, Duration)>,
    answers: u64,
}

/// Whether a client's server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// Packets or answers came in, and no more than a few packets went out since.
    Connected,
    /// Nothing has ever come in.
    Never,
    /// Packets go out for this long, and nothing has come in.
    Unanswered(Duration),
}

impl Heard {
    /// Takes the counters of a reading. Those of a new interface begin at zero. `answers` to
    /// authentication packets do not come out of the interface. Whether something came in.
    pub fn read(&mut self, traffic: Traffic, answers: u64, unix: u64, now: Duration) -> bool {
        self.read_at = now;
        let answered = std::mem::replace(&mut self.answers, answers) < answers;
        if answered {
            self.reply = Some(unix);
            self.unanswered = None;
        }
        let Some(last) = self.last.replace(traffic) else { return answered };
        let received = traffic.rx_packets > last.rx_packets;
        if received {
            self.data = Some(unix);
            self.came_at = Some(now);
            self.unanswered = None;
        } else if traffic.tx_packets > last.tx_packets && !answered {
            self.unanswered = self.unanswered.or(Some(now));
            let first = self.sending.map_or(now, |(first, _)| first);
            self.sending = Some((first, now));
        }
        if received || answered {
            self.sending = None;
        }
        received || answered
    }

    /// The server answered a hello.
    pub fn answered(&mut self, unix: u64) {
        self.reply = Some(unix);
        self.unanswered = None;
        self.sending = None;
    }

    /// The server is tried at another address.
    pub fn at_another(&mut self) {
        self.sending = None;
    }

    /// For how long packets went out to this address of the server, while nothing came back. Who
    /// stopped to send waits for nothing.
    pub fn silent_for(&self) -> Duration {
        self.sending.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first))
    }

    /// Whether packets have come in within so long before the last reading.
    pub fn came_within(&self, time: Duration) -> bool {
        self.came_at.is_some_and(|at| self.read_at.saturating_sub(at) < time)
    }

    /// Unix time when data last came in.
    pub fn last_data(&self) -> Option<u64> {
        self.data
    }

    /// Unix time when the last answer to an authentication packet came in, where these do not come out
    /// of the interface.
    pub fn last_reply(&self) -> Option<u64> {
        self.reply
    }

    pub fn contact(&self) -> Contact {
        let since = self.unanswered.map(|since| self.read_at.saturating_sub(since));
        match (self.data.or(self.reply), since) {
            (None, _) => Contact::Never,
            (Some(_), Some(since)) if since > PATIENCE => Contact::Unanswered(since),
            (Some(_), _) => Contact::Connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(readings: &[(u64, u64, u64)]) -> Heard {
        let mut heard = Heard::default();
        for &(second, rx_packets, tx_packets) in readings {
            let traffic = Traffic { rx_packets, tx_packets, ..Traffic::default() };
            heard.read(traffic, 0, 1000 + second, Duration::from_secs(second));
        }
        heard
    }

    fn contact(readings: &[(u64, u64, u64)]) -> Contact {
        heard(readings).contact()
    }

    #[test]
    fn packets_from_before_the_start_do_not_count_as_contact() {
        assert_eq!(contact(&[]), Contact::Never);
        assert_eq!(contact(&[(0, 7, 7), (3, 7, 9)]), Contact::Never);
        assert_eq!(heard(&[(0, 7, 7), (3, 7, 9)]).last_data(), None);
    }

    #[test]
    fn an_idle_tunnel_stays_connected_and_an_unanswered_one_does_not() {
        assert_eq!(contact(&[(0, 0, 0), (3, 1, 1), (6, 1, 1), (9999, 1, 1)]), Contact::Connected);
        assert_eq!(heard(&[(0, 0, 0), (3, 1, 1), (6, 1, 1)]).last_data(), Some(1003));
        let sending = [(0, 0, 0), (3, 1, 1), (6, 1, 2), (9, 1, 3)];
        let later = |second| contact(&[&sending[..], &[(second, 1, 3)]].concat());
        assert_eq!(later(16), Contact::Connected);
        assert_eq!(later(17), Contact::Unanswered(Duration::from_secs(11)));
        let back = [(0, 0, 0), (3, 1, 1), (6, 1, 2), (30, 2, 3)];
        assert_eq!(contact(&back), Contact::Connected);
    }

    #[test]
    fn silence_counts_only_while_packets_are_sent_and_none_come() {
        let silent = |readings: &[_]| heard(readings).silent_for().as_secs();
        let once = [(0, 0, 0), (3, 0, 1), (99, 0, 1)];
        assert_eq!(silent(&once), 0);
        let again = [&once[..], &[(102, 0, 2)]].concat();
        assert_eq!(silent(&again), 99);
        let answered = [&again[..], &[(105, 1, 3)]].concat();
        assert_eq!(silent(&answered), 0);
        assert_eq!(silent(&[&answered[..], &[(108, 1, 4), (120, 1, 5)]].concat()), 12);
        // A reply is an answer, and another address has time of its own.
        let mut heard = heard(&again);
        assert!(!heard.read(heard.last.unwrap(), 0, 1103, Duration::from_secs(103)));
        assert!(heard.read(heard.last.unwrap(), 1, 1104, Duration::from_secs(104)));
        assert_eq!((heard.silent_for(), heard.contact()), (Duration::ZERO, Contact::Connected));
        assert_eq!((heard.last_reply(), heard.last_data()), (Some(1104), None));
    }

    #[test]
    fn a_reply_counts_as_contact_like_data() {
        // (second, packets that came in, that went out, replies)
        let contact = |readings: &[(u64, u64, u64, u64)]| {
            let mut heard = Heard::default();
            for &(second, rx_packets, tx_packets, replies) in readings {
                let traffic = Traffic { rx_packets, tx_packets, ..Traffic::default() };
                heard.read(traffic, replies, 1000 + second, Duration::from_secs(second));
            }
            heard.contact()
        };
        let replied = [(0, 0, 0, 0), (3, 0, 0, 1)];
        assert_eq!(contact(&replied), Contact::Connected);
        assert_eq!(contact(&[(0, 0, 0, 1)]), Contact::Connected, "before the first reading");
        // Packets that go out after it wait for something of their own.
        let unanswered = [&replied[..], &[(6, 0, 1, 1), (17, 0, 2, 1)]].concat();
        assert_eq!(contact(&unanswered), Contact::Unanswered(Duration::from_secs(11)));
        assert_eq!(contact(&[&unanswered[..], &[(20, 0, 3, 2)]].concat()), Contact::Connected);
    }

    #[test]
    fn a_new_interface_counts_from_zero() {
        let renewed = [(0, 0, 0), (3, 9, 9), (6, 0, 0), (9, 1, 1)];
        assert_eq!(heard(&renewed).last_data(), Some(1009));
    }
}
