//! What a leader makes of its followers' answers to heartbeats.

mod support;

use quorate_raft::{Envelope, Index, Message, ReplicaId, SessionId, Term, Ticks, Timing};
use support::Bench;

const INTERVAL: u64 = 10;

/// A leader of three whose first entry both followers hold.
fn leader() -> Bench {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.elect();
    bench.acknowledge(2, 1);
    bench.acknowledge(3, 1);
    bench
}

/// What a follower whose clock shows `reading` answers to a heartbeat. Where that is much, its
/// machine has not started anew yet.
fn answer(beat: &Envelope, reading: u64) -> Option<Message> {
    let Message::Heartbeat { session, timing, .. } = &beat.message else { return None };
    let timing = Timing {
        probe_time: Ticks(reading),
        boot: start_of(reading),
        echo_time: timing.probe_time,
        round: timing.round,
        ..Timing::default()
    };
    Some(Message::HeartbeatReply { session: *session, installing: false, timing })
}

/// The start of a follower's process that read this from its clock.
fn start_of(reading: u64) -> u64 {
    if reading > 8_000_000 { 1 } else { 2 }
}

/// One heartbeat interval, in which follower 2 answers with this reading of its clock; returns the
/// reading that the heartbeat gave back to it.
fn echo_in_beat(bench: &mut Bench, reading: u64) -> u64 {
    let sent = bench.tick(INTERVAL);
    let beat = sent.iter().find(|sent| sent.to.id == ReplicaId(2)).expect("a heartbeat for all");
    let Message::Heartbeat { timing, .. } = &beat.message else { panic!("{beat}") };
    let reply = answer(beat, reading).expect("a heartbeat");
    bench.step(2, 1, reply);
    if timing.echo_time > Ticks(0) {
        assert_eq!(timing.boot, start_of(timing.echo_time.0), "a reading goes with its start");
    }
    timing.echo_time.0
}

/// The clock of a machine begins anew when the machine starts. Its old readings mean nothing then.
#[test]
fn a_follower_whose_clock_began_anew_hears_of_its_new_readings() {
    let mut bench = leader();
    for beat in 0..5 {
        echo_in_beat(&mut bench, 8_640_000 + beat * INTERVAL);
    }
    assert_eq!(echo_in_beat(&mut bench, 8_640_050), 8_640_030, "two beats ago");
    let echoes: Vec<_> = (0..5).map(|beat| echo_in_beat(&mut bench, 300 + beat * 10)).collect();
    assert_eq!(echoes[3..], [310, 320], "{echoes:?}");
}

/// An answer that was overtaken is older than what is known.
#[test]
fn an_overtaken_answer_brings_no_old_reading_back() {
    let mut bench = leader();
    let late = bench.tick(INTERVAL);
    for beat in 0..4 {
        echo_in_beat(&mut bench, 300 + beat * 10);
    }
    let late = late.iter().find(|sent| sent.to.id == ReplicaId(2)).expect("a heartbeat for all");
    bench.step(2, 1, answer(late, 8_640_000).expect("a heartbeat"));
    let echoes: Vec<_> = (4..8).map(|beat| echo_in_beat(&mut bench, 300 + beat * 10)).collect();
    assert_eq!(echoes, [320, 330, 340, 350]);
}

/// A reading counts only in the start of the process that took it.
#[test]
fn a_reading_of_an_earlier_start_is_no_age() {
    let mut follower = Bench::new(2, 3, 1, &[1]);
    let session = SessionId { term: Term(1), counter: 1 };
    let mut hear = |timing| {
        let sent = follower.step(1, 1, Message::Heartbeat { session, commit: Index(1), timing });
        let Message::HeartbeatReply { timing, .. } = sent[0].message else { panic!("{}", sent[0]) };
        (timing, follower.raft.freshness())
    };
    let (own, _) = hear(Timing::default());
    let echo = Timing {
        echo_time: own.probe_time,
        echo_commit: Index(1),
        boot: own.boot,
        ..Timing::default()
    };
    let (_, age) = hear(Timing { boot: own.boot ^ 1, ..echo });
    assert_eq!(age, None, "the clock of an earlier start showed the same");
    let (_, age) = hear(echo);
    assert_eq!(age, Some((own.probe_time, Index(1))));
}
