//! What a leader makes of its followers' answers to heartbeats.

mod support;

use bytes::Bytes;
use quorate_raft::{
    AppendResult, Config, Envelope, Index, Message, ProgressKind, ReadId, ReplicaId,
    ReplicationSession, Term, Ticks, Timing,
};
use support::{Bench, log_id, plain};

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
    Some(Message::HeartbeatReply { session: *session, installing: false, last: None, timing })
}

/// The appends among these messages to this replica, and their bytes.
fn appends(sent: &[Envelope], to: u64) -> (usize, usize) {
    let appends = sent.iter().filter(|sent| sent.to.id == ReplicaId(to));
    let sizes = appends.filter_map(|sent| match &sent.message {
        Message::Append { entries, .. } => {
            Some(entries.iter().map(|entry| entry.payload.len()).sum::<usize>())
        }
        _ => None,
    });
    sizes.fold((0, 0), |total, size| (total.0 + 1, total.1 + size))
}

/// All heartbeats among these messages are answered, by followers that install a snapshot or not;
/// returns what the leader sends because of it.
fn answer_all(bench: &mut Bench, sent: &[Envelope], installing: bool) -> Vec<Envelope> {
    let term = bench.raft.term().0;
    let mut because = Vec::new();
    for beat in sent {
        if let Some(mut reply) = answer(beat, 500) {
            if let Message::HeartbeatReply { installing: told, .. } = &mut reply {
                *told = installing;
            }
            because.extend(bench.step(beat.to.id.0, term, reply));
        }
    }
    because
}

/// So many rounds of reads in one moment, each confirmed; returns all that was sent meanwhile.
fn read_rounds(bench: &mut Bench, rounds: u64) -> Vec<Envelope> {
    let mut all = Vec::new();
    for read in 0..rounds {
        bench.raft.read_index(Ticks(bench.now), ReadId(read)).expect("the leader takes it");
        let sent = bench.drain();
        all.extend(answer_all(bench, &sent, false));
        all.extend(sent);
    }
    let beats = all.iter().filter(|sent| matches!(sent.message, Message::Heartbeat { .. }));
    assert_eq!(beats.count() as u64, 2 * rounds, "one round for each read");
    all
}

/// Proposes four entries of half a mebibyte, which are sent to all and lost at follower 3.
fn propose_much(bench: &mut Bench) {
    for _ in 0..4 {
        let payload = Bytes::from(vec![0; 1 << 19]);
        bench.raft.propose(Ticks(bench.now), payload, 0).expect("the leader takes it");
    }
    bench.drain();
    bench.acknowledge(2, 5);
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
    let session = ReplicationSession { term: Term(1), counter: 1 };
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

/// A probe that is not answered is repeated once per heartbeat interval, however many rounds of reads
/// are confirmed in it: each may be as large as an append can be.
#[test]
fn a_lost_probe_is_repeated_once_per_interval_whatever_is_read() {
    let mut bench = leader();
    propose_much(&mut bench);
    bench.raft.unreachable(Ticks(bench.now), ReplicaId(3));
    let sent = read_rounds(&mut bench, 100);
    assert!(appends(&sent, 3).0 <= 1, "{:?}", appends(&sent, 3));
    for _ in 0..3 {
        let beats = bench.tick(INTERVAL);
        let mut sent = answer_all(&mut bench, &beats, false);
        sent.extend(read_rounds(&mut bench, 100));
        assert_eq!(appends(&sent, 3).0, 1, "{:?}", appends(&sent, 3));
    }
}

/// While a write is on its way, an answer to a heartbeat makes the leader ask what may be lost: once
/// per heartbeat interval too.
#[test]
fn rounds_of_reads_cause_no_empty_appends_while_a_write_is_on_its_way() {
    let mut bench = leader();
    bench.propose("x");
    let sent = read_rounds(&mut bench, 100);
    assert!(appends(&sent, 2).0 <= 1 && appends(&sent, 3).0 <= 1, "{:?}", appends(&sent, 2));
    let beats = bench.tick(INTERVAL);
    let mut sent = answer_all(&mut bench, &beats, false);
    sent.extend(read_rounds(&mut bench, 100));
    assert_eq!((appends(&sent, 2).0, appends(&sent, 3).0), (1, 1));
}

/// A follower that installs a snapshot, of an earlier leader too, drops every append until it is done.
#[test]
fn a_follower_that_installs_gets_no_probe_until_it_is_done() {
    let mut bench = leader();
    propose_much(&mut bench);
    bench.raft.unreachable(Ticks(bench.now), ReplicaId(3));
    for _ in 0..100 {
        let beats = bench.tick(INTERVAL);
        let (to_3, others): (Vec<_>, Vec<_>) =
            beats.into_iter().partition(|beat| beat.to.id == ReplicaId(3));
        answer_all(&mut bench, &others, false);
        let sent = answer_all(&mut bench, &to_3, true);
        assert_eq!(appends(&sent, 3), (0, 0));
    }
    let beats = bench.tick(INTERVAL);
    let sent = answer_all(&mut bench, &beats, false);
    assert_eq!(appends(&sent, 3).0, 1, "it is done");
}

/// The same where the leader streams: what it sent is dropped, and asking for it is no use yet.
#[test]
fn a_follower_that_installs_is_asked_for_nothing_while_the_leader_streams() {
    let mut bench = leader();
    propose_much(&mut bench);
    for _ in 0..10 {
        let beats = bench.tick(INTERVAL);
        let sent = answer_all(&mut bench, &beats, true);
        assert_eq!(appends(&sent, 3), (0, 0));
    }
    let beats = bench.tick(INTERVAL);
    let sent = answer_all(&mut bench, &beats, false);
    assert_eq!(appends(&sent, 3).0, 1, "it is done");
}

/// The refusal of the first probe tells that a follower needs entries which are purged. It gets a
/// snapshot, and not first what is left of the log.
#[test]
fn a_blank_follower_gets_no_entries_before_its_snapshot() {
    let config = Config { retain_entries: 0, ..plain() };
    let mut bench = Bench::with(config, 1, 3, 1, &[1, 1, 1, 1, 1, 1]);
    bench.elect();
    bench.acknowledge(2, 7);
    assert_eq!(bench.raft.compact(Index(4)), log_id(4, 1));
    let rejected = AppendResult::Rejected { prev: Index(6), hint: log_id(0, 0) };
    let (session, timing) = (bench.session(3), Timing::default());
    let sent = bench.step(3, 2, Message::AppendReply { session, result: rejected, timing });
    assert_eq!(appends(&sent, 3), (0, 0));
    let blank = bench.raft.status().progress[1];
    assert_eq!((blank.replica, blank.state), (ReplicaId(3), ProgressKind::Snapshot));
}
