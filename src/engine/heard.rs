//! Whether the other end of a client's tunnel is there, as far as the old protocol tells: a server
//! answers nothing unless it is asked to, so what comes out of the tunnel is all there is to see.

use std::time::Duration;

use super::host::Traffic;

/// How long packets may go out and none come in before the other end is thought to be away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the interface's counters told so far.
#[derive(Debug, Default)]
pub struct Heard {
    last: Option<Traffic>,
    /// Our clock then.
    read_at: Duration,
    /// Unix time of the reading that last saw packets come in.
    data: Option<u64>,
    /// Our clock at the first reading that saw packets go out since then.
    unanswered: Option<Duration>,
}

/// Whether a client's server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contact {
    /// Packets came in, and no more than a few went out since.
    Connected,
    /// Nothing has ever come in.
    Never,
    /// Packets go out for this long, and nothing has come in.
    Unanswered(Duration),
}

impl Heard {
    /// Takes the counters of a reading. Those of a new interface begin at zero.
    pub fn read(&mut self, traffic: Traffic, unix: u64, now: Duration) {
        self.read_at = now;
        let Some(last) = self.last.replace(traffic) else { return };
        if traffic.rx_packets > last.rx_packets {
            self.data = Some(unix);
            self.unanswered = None;
        } else if traffic.tx_packets > last.tx_packets {
            self.unanswered = self.unanswered.or(Some(now));
        }
    }

    /// Unix time when data last came in.
    pub fn last_data(&self) -> Option<u64> {
        self.data
    }

    pub fn contact(&self) -> Contact {
        let since = self.unanswered.map(|since| self.read_at.saturating_sub(since));
        match (self.data, since) {
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
            heard.read(traffic, 1000 + second, Duration::from_secs(second));
        }
        heard
    }

    fn contact(readings: &[(u64, u64, u64)]) -> Contact {
        heard(readings).contact()
    }

    #[test]
    fn what_came_in_before_us_is_no_contact() {
        assert_eq!(contact(&[]), Contact::Never);
        assert_eq!(contact(&[(0, 7, 7), (3, 7, 9)]), Contact::Never);
        assert_eq!(heard(&[(0, 7, 7), (3, 7, 9)]).last_data(), None);
    }

    #[test]
    fn an_idle_tunnel_stays_connected_and_an_unanswered_one_does_not() {
        assert_eq!(contact(&[(0, 0, 0), (3, 1, 1), (9999, 1, 1)]), Contact::Connected);
        assert_eq!(heard(&[(0, 0, 0), (3, 1, 1), (6, 1, 1)]).last_data(), Some(1003));
        let sending = [(0, 0, 0), (3, 1, 1), (6, 1, 2), (9, 1, 3)];
        let later = |second| contact(&[&sending[..], &[(second, 1, 3)]].concat());
        assert_eq!(later(16), Contact::Connected);
        assert_eq!(later(17), Contact::Unanswered(Duration::from_secs(11)));
        let back = [(0, 0, 0), (3, 1, 1), (6, 1, 2), (30, 2, 3)];
        assert_eq!(contact(&back), Contact::Connected);
    }

    #[test]
    fn a_new_interface_counts_from_zero() {
        let renewed = [(0, 0, 0), (3, 9, 9), (6, 0, 0), (9, 1, 1)];
        assert_eq!(heard(&renewed).last_data(), Some(1009));
    }
}
