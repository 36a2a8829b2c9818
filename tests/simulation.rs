//! The real engine of a server whose peers are named in files, on a simulated host and clock: its
//! clients move, leave, share addresses and lose packets, while an adversary records, delays, drops,
//! repeats, changes, injects and relays what they send. What must always hold is asserted as it happens:
//!
//! 1. Nobody but the owner of a key moves its session, and only to an address that echoed a cookie. Left
//!    over: a former address within two epochs, and for two epochs one that the adversary reads.
//! 2. Nobody is flooded: no address gets more bytes than came from it, and data goes to sessions only.
//! 3. No clock: the server's is set again and again, and nothing follows.
//! 4. A stranger costs a compare: no step, no report, no answer. Who captured a hello costs no signature.
//! 5. A keepalive is a hello: at the end, everybody whose packets come through is in, and both ends know.
//! 6. Every packet is one of protocol 2.
//! 7. Random bytes do no harm.
//!
//! `IPIPOU_SEEDS=100 IPIPOU_FIRST_SEED=7 cargo test --test simulation` plays others, or more of them.

#[path = "simulation/adversary.rs"]
mod adversary;
#[path = "engine/host.rs"]
#[allow(dead_code)]
mod host;
#[path = "control/played.rs"]
mod played;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/world.rs"]
mod world;

use world::World;

/// Says which seed it was when something does not hold.
fn play(seed: u64, peers: u32, clients: u32, seconds: f64) {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("with IPIPOU_SEEDS=1 IPIPOU_FIRST_SEED={}", self.0);
            }
        }
    }
    let seed = Seed(seed);
    let mut world = World::new(seed.0, peers, clients);
    world.play(seconds);
    world.end();
    println!("seed {}, {peers} peers: {:?}", seed.0, world.notes);
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |n| n.parse().unwrap())
}

#[test]
fn the_promises_hold_for_a_few_peers_that_are_attacked_much() {
    let first = number("IPIPOU_FIRST_SEED", 0);
    for seed in first..first + number("IPIPOU_SEEDS", 6) {
        play(seed, 12, 12, 400.0);
    }
}

#[test]
fn the_promises_hold_for_ten_thousand_peers() {
    play(number("IPIPOU_FIRST_SEED", 0), 10_000, 1500, 60.0);
}
