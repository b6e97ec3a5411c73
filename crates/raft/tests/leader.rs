//! What a leader makes of its followers' answers to heartbeats.

mod support;

use quorate_raft::{Envelope, Message, ReplicaId, Ticks, Timing};
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

/// What a follower whose clock shows `reading` answers to a heartbeat.
fn answer(beat: &Envelope, reading: u64) -> Option<Message> {
    let Message::Heartbeat { session, timing, .. } = &beat.message else { return None };
    let timing = Timing {
        probe_time: Ticks(reading),
        echo_time: timing.probe_time,
        round: timing.round,
        ..Timing::default()
    };
    Some(Message::HeartbeatReply { session: *session, installing: false, timing })
}

/// One heartbeat interval, in which follower 2 answers with this reading of its clock; returns the
/// reading that the heartbeat gave back to it.
fn echo_in_beat(bench: &mut Bench, reading: u64) -> u64 {
    let sent = bench.tick(INTERVAL);
    let beat = sent.iter().find(|sent| sent.to.id == ReplicaId(2)).expect("a heartbeat for all");
    let Message::Heartbeat { timing, .. } = &beat.message else { panic!("{beat}") };
    let reply = answer(beat, reading).expect("a heartbeat");
    bench.step(2, 1, reply);
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
