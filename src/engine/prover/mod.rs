//! Authenticates us to one peer: by packets that stand alone, or by control protocol v2 where we know the
//! server's key.

mod connection;
mod conversation;
mod dated;
mod told;
mod turns;

use std::net::SocketAddr;
use std::time::Duration;

use super::config::Shows;
use super::host::Traffic;
use super::memory::Memory;
use super::{Now, RETRY_AFTER, Report};
pub use connection::{Connection, Pong};
use conversation::Conversation;
use dated::Dated;
pub use turns::{Access, Passed, Turn};

/// Makes the one authentication packet of a client that sends no more than that.
pub fn first_packet(shows: &Shows, memory: &Memory, now: &Now) -> Vec<u8> {
    Dated::new(shows.clone(), memory, now).packet(now)
}

/// What authenticates us to one peer.
#[derive(Debug)]
pub enum Prover {
    /// Packets that stand alone: a signed time, a token, or nothing.
    Dated(Dated),
    /// Hellos, which the server answers.
    Conversation(Box<Conversation>),
}

impl Prover {
    /// `memory` is an earlier process'.
    pub fn new(shows: Shows, memory: &Memory, now: &Now) -> Self {
        match Conversation::new(&shows, memory, now) {
            Some(conversation) => Prover::Conversation(Box::new(conversation)),
            None => Prover::Dated(Dated::new(shows, memory, now)),
        }
    }

    /// A packet is due at `when`, time since the start of the process, unless one is due earlier.
    pub fn authenticate_at(&mut self, when: Duration) {
        match self {
            Prover::Dated(dated) => dated.authenticate_at(when),
            Prover::Conversation(conversation) => conversation.authenticate_at(when),
        }
    }

    /// A packet could not be sent: it is sent again soon, which does not count as another try.
    pub fn send_failed(&mut self, now: &Now) {
        match self {
            Prover::Dated(dated) => dated.authenticate_at(now.monotonic + RETRY_AFTER),
            Prover::Conversation(conversation) => conversation.send_failed(now),
        }
    }

    /// Data goes to the server that is to have it: those that had it before can get a goodbye.
    pub fn data_has_moved(&mut self) {
        match self {
            Prover::Dated(_) => {}
            Prover::Conversation(conversation) => conversation.data_has_moved(),
        }
    }

    /// The server with this number is at another address now.
    pub fn start_over(&mut self, server: usize, now: &Now) {
        match self {
            Prover::Dated(dated) => dated.authenticate_at(now.monotonic),
            Prover::Conversation(conversation) => conversation.start_over(server, now),
        }
    }

    /// The number of the server that is to have our data.
    pub fn server(&self) -> usize {
        match self {
            Prover::Dated(_) => 0,
            Prover::Conversation(conversation) => conversation.server(),
        }
    }

    /// An earlier process left the tunnel to the server with this number.
    pub fn adopt(&mut self, server: usize) {
        match self {
            Prover::Dated(_) => {}
            Prover::Conversation(conversation) => conversation.adopt(server),
        }
    }

    /// How long the server that is asked has not answered, when it had enough time to; `None`: it need not answer,
    /// or has.
    pub fn silent_for(&self, now: &Now) -> Option<Duration> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => conversation.silent_for(now),
        }
    }

    /// Whether a server ever answered a hello of this process.
    pub fn has_answered(&self) -> bool {
        match self {
            Prover::Dated(_) => false,
            Prover::Conversation(conversation) => conversation.has_answered(),
        }
    }

    /// Whether the first of several servers, while another one has our data, has missed several questions where it
    /// was asked; true once for each time.
    pub fn first_is_silent(&mut self) -> bool {
        match self {
            Prover::Dated(_) => false,
            Prover::Conversation(conversation) => conversation.first_is_silent(),
        }
    }

    /// Gives the turn to another server, when that of the one that is asked is over. `access`: how packets
    /// get to each of them.
    pub fn take_turns(&mut self, access: &[Access], now: &Now) -> Option<Turn> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => conversation.take_turns(access, now),
        }
    }

    /// When [`Prover::take_turns`] has something to do, even though nothing can be sent.
    pub fn turn_deadline(&self) -> Option<Duration> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => conversation.turn_deadline(),
        }
    }

    /// The packets that are due, each with the number of the server that it is for; sets the time of the
    /// next.
    pub fn due_packets(&mut self, access: &[Access], now: &Now) -> Vec<(usize, Vec<u8>)> {
        match self {
            Prover::Dated(dated) => {
                dated.due_packet(now).map(|packet| (0, packet)).into_iter().collect()
            }
            Prover::Conversation(conversation) => conversation.due_packets(access, now),
        }
    }

    /// Time between two packets while all is well, give or take a few percent; `None`: there is one only.
    pub fn keepalive(&self) -> Option<Duration> {
        match self {
            Prover::Dated(dated) => dated.keepalive(),
            Prover::Conversation(conversation) => Some(conversation.keepalive),
        }
    }

    /// When something is due, as time since the start of the process.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self {
            Prover::Dated(dated) => dated.next_deadline(),
            Prover::Conversation(conversation) => Some(conversation.next_deadline()),
        }
    }

    /// Takes a packet that came from the server with this number: whether it is an answer to a hello, and
    /// what there is to say.
    pub fn receive(
        &mut self,
        server: usize,
        from: SocketAddr,
        payload: &[u8],
        now: &Now,
    ) -> (bool, Option<Report>) {
        match self {
            Prover::Dated(_) => (false, None),
            Prover::Conversation(conversation) => conversation.receive(server, from, payload, now),
        }
    }

    /// What there is to say now that time has passed.
    pub fn tell(&mut self, server: SocketAddr, now: &Now) -> Option<Report> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => conversation.tell(server, now),
        }
    }

    /// Whether the host should be read, to see whether something came back.
    pub fn asks_for_traffic(&mut self, now: &Now) -> bool {
        match self {
            Prover::Dated(dated) => dated.asks_for_traffic(now),
            Prover::Conversation(_) => false,
        }
    }

    /// Takes the counters of the link: when nothing comes back, we authenticate again. True when that
    /// should be said.
    pub fn read_traffic(&mut self, traffic: Traffic, now: &Now) -> bool {
        match self {
            Prover::Dated(dated) => dated.read_traffic(traffic, now),
            Prover::Conversation(conversation) => {
                conversation.read_traffic(traffic, now);
                false
            }
        }
    }

    /// Whether the times of the last packet must be written before it is sent.
    pub fn must_write(&mut self) -> bool {
        match self {
            Prover::Dated(dated) => dated.must_write(),
            Prover::Conversation(conversation) => conversation.must_write(),
        }
    }

    /// Unix time of the last packet.
    pub fn last_sent(&self) -> Option<u64> {
        match self {
            Prover::Dated(dated) => dated.last_sent(),
            Prover::Conversation(conversation) => conversation.last_sent(),
        }
    }

    /// Whether the server is there; `None` where it does not tell.
    pub fn connection(&self, now: &Now) -> Option<Connection> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => Some(conversation.connection(now)),
        }
    }

    /// Nothing more will be sent but the packet that this returns: it ends the session at once.
    pub fn close(&mut self, now: &Now) -> Option<Vec<u8>> {
        match self {
            Prover::Dated(dated) => {
                dated.close();
                None
            }
            Prover::Conversation(conversation) => conversation.close(now),
        }
    }

    /// Somebody asks whether the server with this number is there.
    pub fn ping(&mut self, server: usize, now: &Now) {
        match self {
            Prover::Dated(_) => {}
            Prover::Conversation(conversation) => conversation.ping(server, now),
        }
    }

    /// What it said.
    pub fn take_pong(&mut self) -> Option<Pong> {
        match self {
            Prover::Dated(_) => None,
            Prover::Conversation(conversation) => conversation.take_pong(),
        }
    }

    /// Whether the server has still to hear that we go, or to answer that.
    pub fn says_goodbye(&self, now: &Now) -> bool {
        match self {
            Prover::Dated(_) => false,
            Prover::Conversation(conversation) => conversation.says_goodbye(now),
        }
    }

    /// Puts into the memory what a restart must not forget.
    pub fn remember(&self, memory: &mut Memory) {
        match self {
            Prover::Dated(dated) => dated.remember(memory),
            Prover::Conversation(conversation) => conversation.remember(memory),
        }
    }
}
