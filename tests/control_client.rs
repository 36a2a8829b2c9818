//! The client's end of the control protocol: when it says hello, which answers it believes, and what it
//! knows of its connection.

#[path = "control/played.rs"]
mod played;

use std::time::Duration;

use ipipou::auth::{Pair, SharedSecret, Signer};
use ipipou::engine::control::{Client, ClientConfig, ClientHeard, State};
use ipipou::wire::control::{Answer, AnswerKind, Cookie, Hello, HelloKind, Refusal};
use played::*;

const START: f64 = 1000.0;
const COOKIE: Cookie = [1; 16];

/// A client, and answers that are made by hand.
struct Talk {
    client: Client,
    pair: Pair,
    rng: Rng,
}

impl Talk {
    fn new() -> Self {
        let pair = Pair::of_server(&SERVER_SEED, &public(&seed_of(A)), &shared_secret()).unwrap();
        Talk { client: client(A, secs(START)), pair, rng: Rng(7) }
    }

    fn poll(&mut self, boot: f64) -> Option<Packet> {
        let rng = &mut self.rng;
        self.client.poll(secs(boot), UNIX, &mut |bytes| rng.fill(bytes))
    }

    fn bye(&mut self, boot: f64) -> Option<Packet> {
        let rng = &mut self.rng;
        self.client.bye(secs(boot), UNIX, &mut |bytes| rng.fill(bytes))
    }

    fn due(&self) -> f64 {
        self.client.next_deadline().as_secs_f64()
    }

    /// The hello that is due next, and when.
    fn next(&mut self) -> (f64, Packet) {
        let due = self.due();
        assert_eq!(self.poll(due - 0.001), None, "it was due before");
        (due, self.poll(due).unwrap())
    }

    fn answer(&mut self, answer: Answer, boot: f64) -> ClientHeard {
        let bytes = self.pair.seal(&answer);
        self.client.receive(&bytes, secs(boot))
    }

    fn challenge(&mut self, hello: &Packet, cookie: Cookie, boot: f64) -> ClientHeard {
        self.answer(Answer { cookie, ..answer(AnswerKind::Challenge, hello) }, boot)
    }

    fn accept(&mut self, hello: &Packet, lease: u32, boot: f64) -> ClientHeard {
        let accept = answer(AnswerKind::Accept, hello);
        self.answer(Answer { lease: Some(lease), cookie: [2; 16], ..accept }, boot)
    }

    fn refuse(&mut self, hello: &Packet, why: Refusal, boot: f64) -> ClientHeard {
        self.answer(answer(AnswerKind::Refuse(why), hello), boot)
    }

    fn state(&self, boot: f64) -> State {
        self.client.state(secs(boot))
    }

    /// A client that was accepted at the start, for three minutes.
    fn connected() -> Self {
        let mut talk = Talk::new();
        let hello = talk.poll(START).unwrap();
        assert_eq!(talk.accept(&hello, 180, START), ClientHeard::Accepted);
        talk
    }
}

fn answer(kind: AnswerKind, hello: &Packet) -> Answer {
    let echo = Hello::parse(hello).unwrap().mac;
    Answer { kind, echo, cookie: COOKIE, seen: None, lease: None, inner: Vec::new(), mtu: None }
}

fn cookie(packet: &Packet) -> Cookie {
    Hello::parse(packet).unwrap().fields.cookie
}

fn is_signed(packet: &Packet) -> bool {
    let pair = Pair::of_server(&SERVER_SEED, &public(&seed_of(A)), &shared_secret()).unwrap();
    pair.is_signed(&Hello::parse(packet).unwrap(), &shared_secret())
}

#[test]
fn an_unanswered_hello_is_sent_again_more_and_more_rarely() {
    let mut talk = Talk::new();
    assert_eq!(talk.state(START), State::Trying { tries: 0, since: secs(START) });
    let mut last = START;
    assert!(talk.poll(START).is_some());
    for (n, expected) in (2..).zip([1.0, 2.0, 4.0, 8.0, 16.0, 27.0, 27.0, 27.0]) {
        let (due, _) = talk.next();
        let wait = due - last;
        assert!((expected * 0.799..=expected * 1.201).contains(&wait), "{wait}, not {expected}");
        assert_eq!(talk.state(due), State::Trying { tries: n, since: secs(START) });
        last = due;
    }
}

#[test]
fn clients_do_not_all_retry_at_the_same_time() {
    let mut due = [1, 2, 3, 4].map(|seed| {
        let mut talk = Talk { rng: Rng(seed), ..Talk::new() };
        talk.poll(START).unwrap();
        talk.client.next_deadline()
    });
    due.sort_unstable();
    assert!(due.windows(2).all(|two| two[0] < two[1]), "{due:?}");
}

#[test]
fn every_sending_is_another_hello() {
    let mut talk = Talk::new();
    let first = talk.poll(START).unwrap();
    let (_, second) = talk.next();
    assert_ne!(first[112..], second[112..], "the tag");
    assert_ne!(cookie(&first), cookie(&second), "what stands in for a cookie");
    assert_ne!(first[69..73], second[69..73], "the salt");
    let hello = Hello::parse(&first).unwrap();
    assert_eq!((hello.fields.seconds, hello.fields.kind), (UNIX, HelloKind::Hello));
    assert_eq!((hello.fields.mtu, hello.fields.wants_addresses), (Some(1472), true));
}

#[test]
fn a_challenge_is_answered_at_once_with_its_cookie_and_a_signature() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    assert_eq!(talk.challenge(&hello, COOKIE, START + 0.1), ClientHeard::Challenged);
    assert!(talk.due() <= START + 0.1);
    let second = talk.poll(START + 0.1).unwrap();
    assert_eq!(cookie(&second), COOKIE);
    assert!(is_signed(&hello) && is_signed(&second));
    assert!((0.8..=1.2).contains(&(talk.due() - START - 0.1)), "{}", talk.due());
}

#[test]
fn two_challenges_are_answered_at_once_in_each_try() {
    let mut talk = Talk::new();
    let mut hello = talk.poll(START).unwrap();
    for _ in 0..2 {
        talk.challenge(&hello, COOKIE, START);
        hello = talk.poll(START).unwrap();
    }
    assert_eq!(talk.challenge(&hello, [3; 16], START), ClientHeard::Challenged);
    assert_eq!(talk.poll(START), None);
    let (due, hello) = talk.next();
    assert!((0.8..=1.2).contains(&(due - START)), "{due}");
    assert_eq!(cookie(&hello), [3; 16], "the cookie was taken nevertheless");
    talk.challenge(&hello, COOKIE, due);
    assert!(talk.poll(due).is_some());
}

#[test]
fn challenges_alone_do_not_keep_a_client_from_retrying_more_rarely() {
    let mut talk = Talk::new();
    let mut at = START;
    let mut waits = Vec::new();
    for _ in 0..7 {
        let due = talk.due();
        waits.push(due - at);
        at = due;
        while let Some(hello) = talk.poll(at) {
            talk.challenge(&hello, COOKIE, at);
        }
    }
    let least = [0.0, 0.8, 1.6, 3.2, 6.4, 12.8, 21.6];
    assert!(waits.iter().zip(least).all(|(wait, least)| *wait >= least - 0.001), "{waits:?}");
}

#[test]
fn a_challenge_brings_a_late_retry_forward_once() {
    let mut talk = Talk::new();
    talk.poll(START).unwrap();
    let (at, hello) = (0..5).map(|_| talk.next()).last().unwrap();
    assert!(talk.due() - at > 12.0);
    talk.challenge(&hello, COOKIE, at);
    talk.poll(at).unwrap();
    assert!((0.8..=1.2).contains(&(talk.due() - at)), "{}", talk.due() - at);
}

#[test]
fn a_challenge_counts_once_and_not_after_a_newer_cookie() {
    let mut talk = Talk::new();
    let first = talk.poll(START).unwrap();
    let (_, second) = talk.next();
    let at = START + 2.0;
    talk.challenge(&second, [3; 16], at);
    assert_eq!(talk.challenge(&second, [4; 16], at), ClientHeard::Nothing);
    assert_eq!(talk.challenge(&first, [5; 16], at), ClientHeard::Nothing);
    assert_eq!(cookie(&talk.poll(at).unwrap()), [3; 16]);
}

#[test]
fn an_accept_closes_its_hello_and_older_ones() {
    let mut talk = Talk::new();
    let first = talk.poll(START).unwrap();
    let (_, second) = talk.next();
    let (at, third) = talk.next();
    assert_eq!(talk.accept(&second, 180, at), ClientHeard::Accepted);
    assert_eq!(talk.accept(&second, 180, at), ClientHeard::Nothing);
    assert_eq!(talk.challenge(&second, COOKIE, at), ClientHeard::Nothing);
    assert_eq!(talk.accept(&first, 180, at), ClientHeard::Nothing);
    assert_eq!(talk.refuse(&first, Refusal::Disabled, at), ClientHeard::Nothing);
    // The third one still has no answer, and is sent again.
    assert!(talk.due() - at < 5.0, "{}", talk.due());
    assert_eq!(talk.accept(&third, 180, at), ClientHeard::Accepted);
    assert!(talk.due() - at > 24.0, "{}", talk.due());
}

#[test]
fn the_cookie_of_a_late_accept_does_not_replace_a_newer_one() {
    let mut talk = Talk::new();
    let first = talk.poll(START).unwrap();
    let (at, second) = talk.next();
    talk.challenge(&second, COOKIE, at);
    assert_eq!(talk.accept(&first, 180, at), ClientHeard::Accepted);
    let third = talk.poll(at).unwrap();
    assert_eq!(cookie(&third), COOKIE);
    assert!(is_signed(&third));
}

#[test]
fn a_connection_lasts_from_the_sending_of_the_hello() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    let seen = Some(a0());
    let inner = vec!["10.8.0.7/24".parse().unwrap()];
    let accept = Answer {
        lease: Some(60),
        seen,
        inner: inner.clone(),
        mtu: Some(1400),
        ..answer(AnswerKind::Accept, &hello)
    };
    assert_eq!(talk.answer(accept, START + 3.0), ClientHeard::Accepted);
    let accepted = talk.client.last_accept().unwrap();
    assert_eq!((accepted.since, accepted.until), (secs(START + 3.0), secs(START + 60.0)));
    assert_eq!((accepted.round_trip, accepted.seen), (Duration::from_secs(3), seen));
    assert_eq!((&accepted.inner, accepted.mtu), (&inner, Some(1400)));
    assert_eq!(talk.state(START + 59.9), State::Connected { since: secs(START + 3.0) });
    assert!(matches!(talk.state(START + 60.0), State::Trying { .. }));
}

#[test]
fn an_accept_without_a_lease_is_good_for_three_minutes() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    talk.answer(answer(AnswerKind::Accept, &hello), START);
    assert!(matches!(talk.state(START + 179.9), State::Connected { .. }));
    assert!(matches!(talk.state(START + 180.0), State::Trying { .. }));
}

#[test]
fn an_accept_of_no_lease_connects_nobody() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    assert_eq!(talk.accept(&hello, 0, START), ClientHeard::Nothing);
    assert!(matches!(talk.state(START), State::Trying { tries: 1, .. }));
}

#[test]
fn a_keepalive_is_due_after_27_seconds_or_a_third_of_the_lease() {
    for (lease, expected) in [(180, 25.0..=29.0), (81, 23.0..=27.0), (30, 8.0..=10.0)] {
        let mut talk = Talk::new();
        let hello = talk.poll(START).unwrap();
        talk.accept(&hello, lease, START);
        let wait = talk.due() - START;
        assert!(expected.contains(&wait), "{wait} of {lease}");
    }
}

#[test]
fn a_keepalive_is_not_signed_and_shows_the_cookie_of_the_accept() {
    let mut talk = Talk::connected();
    let (_, keepalive) = talk.next();
    assert_eq!(cookie(&keepalive), [2; 16]);
    assert!(!is_signed(&keepalive));
}

/// An old server in the place of a new one would understand no other.
#[test]
fn hellos_are_signed_again_once_three_had_no_accept() {
    let mut talk = Talk::connected();
    let hellos: Vec<_> = (0..5).map(|_| talk.next().1).collect();
    assert_eq!(hellos.iter().map(is_signed).collect::<Vec<_>>(), [false, false, false, true, true]);
    assert_ne!(cookie(&hellos[3]), [2; 16]);
}

#[test]
fn a_lost_keepalive_is_sent_again_while_the_session_is_good() {
    let mut talk = Talk::connected();
    let (at, _) = talk.next();
    assert!(talk.client.is_confirming());
    let (again, hello) = talk.next();
    assert!((0.8..=1.2).contains(&(again - at)), "{again}");
    assert_eq!(talk.state(again), State::Connected { since: secs(START) });
    assert_eq!(talk.accept(&hello, 180, again), ClientHeard::Accepted);
    assert!(!talk.client.is_confirming());
    assert_eq!(talk.state(again + 179.0), State::Connected { since: secs(START) });
}

#[test]
fn a_connection_that_is_not_confirmed_ends_with_its_lease() {
    let mut talk = Talk::connected();
    let (first, _) = talk.next();
    while talk.due() < START + 180.0 {
        talk.next();
    }
    let State::Trying { tries, since } = talk.state(START + 180.0) else { panic!("connected") };
    assert_eq!(since, secs(first));
    assert!(tries >= 8, "{tries}");
}

#[test]
fn after_a_suspend_a_hello_is_due_at_once() {
    let mut talk = Talk::connected();
    let awake = START + 8.0 * 3600.0;
    assert!(matches!(talk.state(awake), State::Trying { .. }));
    assert!(talk.poll(awake).is_some());
    assert_eq!(talk.state(awake), State::Trying { tries: 1, since: secs(awake) });
}

#[test]
fn an_answer_that_was_held_back_for_more_than_ten_seconds_is_ignored() {
    for (late, heard) in [(10.0, ClientHeard::Accepted), (10.1, ClientHeard::Nothing)] {
        let mut talk = Talk::new();
        let hello = talk.poll(START).unwrap();
        assert_eq!(talk.accept(&hello, 180, START + late), heard);
    }
}

#[test]
fn an_answer_counts_only_with_an_outstanding_tag_and_a_right_mac() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    let accept = Answer { lease: Some(180), ..answer(AnswerKind::Accept, &hello) };
    let good = talk.pair.seal(&accept);
    let other = SharedSecret::new(b"another".to_vec());
    let others = Pair::of_server(&SERVER_SEED, &public(&seed_of(A)), &other).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let foreign = talk.pair.seal(&Answer { echo: [9; 16], ..accept.clone() });
    for bad in [&others.seal(&accept), &flipped, &foreign, &good[..51].to_vec(), &hello.to_vec()] {
        assert_eq!(talk.client.receive(bad, secs(START)), ClientHeard::Nothing);
    }
    assert_eq!(talk.client.receive(&good, secs(START)), ClientHeard::Accepted);
}

#[test]
fn a_refused_client_waits_half_a_minute_and_then_a_minute() {
    let mut talk = Talk::new();
    let mut hello = talk.poll(START).unwrap();
    let mut at = START;
    for wait in [30.0, 60.0, 60.0] {
        assert_eq!(
            talk.refuse(&hello, Refusal::Expired, at),
            ClientHeard::Refused(Refusal::Expired)
        );
        assert_eq!(talk.state(at), State::Refused { why: Refusal::Expired });
        let due = talk.due();
        assert!((due - at - wait).abs() < 0.001, "{due}");
        (at, hello) = talk.next();
        assert_eq!(talk.state(at), State::Refused { why: Refusal::Expired });
    }
    // What it said last does not count once it is silent.
    let (silent, hello) = talk.next();
    assert!((0.8..=1.2).contains(&(silent - at)), "{silent}");
    assert_eq!(talk.state(silent), State::Trying { tries: 2, since: secs(at) });
    talk.accept(&hello, 180, silent);
    assert_eq!(talk.state(silent), State::Connected { since: secs(silent) });
}

#[test]
fn a_refusal_ends_a_connection() {
    let mut talk = Talk::connected();
    let (at, keepalive) = talk.next();
    talk.refuse(&keepalive, Refusal::Disabled, at);
    assert_eq!(talk.state(at), State::Refused { why: Refusal::Disabled });
    assert_eq!(talk.client.last_accept(), None);
}

#[test]
fn a_hello_can_be_asked_for_at_any_time() {
    let mut talk = Talk::connected();
    talk.client.say_now(secs(START + 3.0));
    assert!(talk.poll(START + 3.0).is_some());
    assert!((0.8..=1.2).contains(&(talk.due() - START - 3.0)), "{}", talk.due());
    assert_eq!(talk.state(START + 3.0), State::Connected { since: secs(START) });
    // As well while it is refused, or retries rarely.
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    talk.refuse(&hello, Refusal::Full, START);
    talk.client.say_now(secs(START + 3.0));
    assert!(talk.poll(START + 3.0).is_some());
    let late = (0..5).map(|_| talk.next().0).last().unwrap();
    talk.client.say_now(secs(late + 0.1));
    assert!(talk.poll(late + 0.1).is_some());
    assert!((0.8..=1.2).contains(&(talk.due() - late - 0.1)), "{}", talk.due());
}

#[test]
fn at_another_address_the_last_one_does_not_count() {
    let mut talk = Talk::connected();
    let (at, outstanding) = talk.next();
    talk.client.server_changed(secs(at));
    assert_eq!(talk.state(at), State::Trying { tries: 0, since: secs(at) });
    assert_eq!(talk.accept(&outstanding, 180, at), ClientHeard::Nothing);
    let hello = talk.poll(at).unwrap();
    assert_ne!(cookie(&hello), [2; 16]);
    assert!(is_signed(&hello));
    assert_eq!(talk.challenge(&hello, COOKIE, at), ClientHeard::Challenged);
    // Not even a refusal.
    let hello = talk.poll(at).unwrap();
    talk.refuse(&hello, Refusal::Elsewhere, at);
    talk.client.server_changed(secs(at));
    assert!(matches!(talk.state(at), State::Trying { .. }));
    assert!(talk.poll(at).is_some());
}

#[test]
fn goodbye_is_said_three_times() {
    let mut talk = Talk::connected();
    let first = talk.bye(START + 5.0).unwrap();
    assert_eq!(cookie(&first), [2; 16]);
    let (second_at, second) = talk.next();
    let (third_at, third) = talk.next();
    for bye in [first, second, third] {
        assert_eq!(Hello::parse(&bye).unwrap().fields.kind, HelloKind::Bye);
    }
    assert!((second_at - START - 5.3).abs() < 0.001 && (third_at - START - 5.6).abs() < 0.001);
    assert_eq!(talk.client.next_deadline(), Duration::MAX);
    assert_eq!((talk.poll(START + 99.0), talk.bye(START + 99.0)), (None, None));
}

#[test]
fn goodbye_is_over_once_the_server_heard_it() {
    let mut talk = Talk::connected();
    let (at, keepalive) = talk.next();
    let bye = talk.bye(at).unwrap();
    // The hello before it was accepted, and its answer comes only now: the cookie has changed.
    let accept = answer(AnswerKind::Accept, &keepalive);
    let accept = Answer { lease: Some(180), cookie: [6; 16], ..accept };
    assert_eq!(talk.answer(accept, at), ClientHeard::Nothing);
    assert_eq!(talk.challenge(&bye, [7; 16], at), ClientHeard::Challenged);
    let bye = talk.poll(at).unwrap();
    let hello = Hello::parse(&bye).unwrap();
    assert_eq!((hello.fields.kind, hello.fields.cookie), (HelloKind::Bye, [7; 16]));
    assert_eq!(talk.accept(&bye, 0, at), ClientHeard::Gone);
    assert_eq!(talk.client.next_deadline(), Duration::MAX);
    assert_eq!((talk.poll(at + 1.0), talk.bye(at + 1.0)), (None, None));
    talk.client.say_now(secs(at));
    assert_eq!(talk.poll(at + 1.0), None);
}

#[test]
fn a_client_that_no_server_ever_answered_says_no_goodbye() {
    let mut talk = Talk::new();
    talk.poll(START).unwrap();
    assert_eq!(talk.bye(START + 1.0), None);
    assert_eq!(talk.poll(START + 99.0), None);
}

#[test]
fn a_retry_waits_for_two_round_trips() {
    let mut talk = Talk::new();
    let hello = talk.poll(START).unwrap();
    talk.challenge(&hello, COOKIE, START + 3.0);
    let at = START + 3.0;
    talk.poll(at).unwrap();
    let wait = talk.due() - at;
    assert!((4.8..=7.2).contains(&wait), "{wait}");
}

#[test]
fn a_key_that_no_server_can_have_is_refused() {
    let config = ClientConfig {
        signer: Signer::new(&seed_of(A), shared_secret()),
        server_key: [0; 32],
        keepalive: Duration::from_secs(27),
        mtu: None,
        wants_addresses: false,
    };
    assert!(Client::new(config, secs(START)).is_err());
}

#[test]
fn an_extra_hello_does_not_change_when_the_next_is_due() {
    let mut talk = Talk::connected();
    talk.client.say_now(secs(START + 1.0));
    assert!(talk.poll(START + 1.0).is_some());
    let (due, tries) = (talk.due(), talk.client.tries());
    for n in 1..=7 {
        let now = START + 1.0 + 0.1 * f64::from(n);
        talk.client.say_too(secs(now));
        assert!((talk.due() - now).abs() < 1e-9);
        let hello = talk.poll(now).unwrap();
        assert_ne!(cookie(&hello), COOKIE);
        assert_eq!((talk.due(), talk.client.tries()), (due, tries));
    }
    assert!(talk.poll(due).is_some());
    assert_eq!(talk.client.tries(), tries + 1);
    // What has an answer is not said again.
    talk.client.say_too(secs(due + 0.1));
    let hello = talk.poll(due + 0.1).unwrap();
    talk.client.say_too(secs(due + 0.2));
    assert_eq!(talk.accept(&hello, 180, due + 0.15), ClientHeard::Accepted);
    assert!(talk.due() > due + 20.0, "{}", talk.due());
}

#[test]
fn a_question_whether_the_server_is_there_costs_no_goodbye() {
    let mut talk = Talk::connected();
    let ask = |talk: &mut Talk, boot: f64| {
        let rng = &mut talk.rng;
        talk.client.ask(secs(boot), UNIX, &mut |bytes| rng.fill(bytes)).unwrap()
    };
    let asked = ask(&mut talk, START + 5.0);
    assert_ne!(cookie(&asked), [2; 16], "it shows no cookie");
    assert!(is_signed(&asked));
    let goodbye = talk.bye(START + 6.0).unwrap();
    assert_eq!(cookie(&goodbye), [2; 16]);
}

#[test]
fn a_goodbye_shows_the_cookie_of_the_accept_for_as_long_as_the_lease_lasts() {
    for (silent_for, goodbyes) in [(100.0, true), (181.0, false)] {
        let mut talk = Talk::connected();
        let mut now = START + 60.0;
        while now < START + silent_for {
            now = talk.due().max(now);
            talk.poll(now).unwrap();
        }
        assert!(talk.client.tries() > 3);
        let goodbye = talk.bye(START + silent_for);
        assert_eq!(goodbye.map(|bye| cookie(&bye)), goodbyes.then_some([2; 16]), "{silent_for}");
    }
}

#[test]
fn a_lease_is_taken_to_be_half_a_minute_at_least() {
    for lease in [1, 29, 30] {
        let mut talk = Talk::new();
        let hello = talk.poll(START).unwrap();
        assert_eq!(talk.accept(&hello, lease, START), ClientHeard::Accepted);
        assert!((START + 8.0..=START + 10.0).contains(&talk.due()), "{}", talk.due() - START);
        assert!(talk.client.is_connected(secs(START + 29.9)));
        assert!(!talk.client.is_connected(secs(START + 30.0)));
    }
}
