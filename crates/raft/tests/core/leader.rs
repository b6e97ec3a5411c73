//! Heartbeat answers at the leader: clock readings, and the appends that they make due.

use crate::support::{Bench, log_id, plain};
use bytes::Bytes;
use quorate_raft::{
    AppendResult, Config, Envelope, Index, Message, ProgressKind, ProposeError, ReadId, ReplicaId,
    ReplicationSession, SMALL_BYTES, Term, Ticks, Timing,
};

const INTERVAL: u64 = 10;

/// A leader of three whose first entry both followers hold.
fn leader() -> Bench {
    let mut bench = Bench::new(1, 3, 0, &[]);
    bench.elect();
    bench.acknowledge(2, 1);
    bench.acknowledge(3, 1);
    bench
}

/// The answer to a heartbeat from a follower whose clock shows `reading`. A high reading is from
/// before its machine restarted.
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

/// Answers all heartbeats among these messages, from followers that install a snapshot or not;
/// returns the messages that the leader sends because of it.
fn answer_all(bench: &mut Bench, sent: &[Envelope], installing: bool) -> Vec<Envelope> {
    let term = bench.raft.term().0;
    let mut because = Vec::new();
    for beat in sent {
        if let Some(mut reply) = answer(beat, 500) {
            if let Message::HeartbeatReply { installing: reported, .. } = &mut reply {
                *reported = installing;
            }
            because.extend(bench.step(beat.to.id.0, term, reply));
        }
    }
    because
}

/// Runs this many rounds of reads at the same time, each confirmed; returns all messages sent
/// meanwhile.
fn read_rounds(bench: &mut Bench, rounds: u64) -> Vec<Envelope> {
    let mut all = Vec::new();
    for read in 0..rounds {
        bench.raft.read_index(Ticks(bench.now), ReadId(read)).expect("the leader accepts it");
        let sent = bench.drain();
        all.extend(answer_all(bench, &sent, false));
        all.extend(sent);
    }
    let beats = all.iter().filter(|sent| matches!(sent.message, Message::Heartbeat { .. }));
    assert_eq!(beats.count() as u64, 2 * rounds, "one round for each read");
    all
}

/// Proposes four entries of 512 KiB, which are sent to all and lost on the way to follower 3.
fn propose_two_mebibytes(bench: &mut Bench) {
    for _ in 0..4 {
        let payload = Bytes::from(vec![0; 1 << 19]);
        bench.raft.propose(Ticks(bench.now), payload, 0).expect("the leader accepts it");
    }
    bench.drain();
    bench.acknowledge(2, 5);
}

/// The start of the follower's process that took this reading.
fn start_of(reading: u64) -> u64 {
    if reading > 8_000_000 { 1 } else { 2 }
}

/// Runs one heartbeat interval, in which follower 2 answers with this reading of its clock; returns
/// the reading that the heartbeat echoed to it.
fn echo_in_beat(bench: &mut Bench, reading: u64) -> u64 {
    let sent = bench.tick(INTERVAL);
    let beat = sent.iter().find(|sent| sent.to.id == ReplicaId(2)).expect("a heartbeat for all");
    let Message::Heartbeat { timing, .. } = &beat.message else { panic!("{beat}") };
    let reply = answer(beat, reading).expect("a heartbeat");
    bench.step(2, 1, reply);
    if timing.echo_time > Ticks(0) {
        assert_eq!(timing.boot, start_of(timing.echo_time.0), "a reading is echoed with its start");
    }
    timing.echo_time.0
}

/// The clock of a machine restarts when the machine does. Its old readings are meaningless then.
#[test]
fn a_follower_whose_clock_restarted_gets_its_new_readings_echoed() {
    let mut bench = leader();
    for beat in 0..5 {
        echo_in_beat(&mut bench, 8_640_000 + beat * INTERVAL);
    }
    assert_eq!(echo_in_beat(&mut bench, 8_640_050), 8_640_030, "two beats ago");
    let echoes: Vec<_> = (0..5).map(|beat| echo_in_beat(&mut bench, 300 + beat * 10)).collect();
    assert_eq!(echoes[3..], [310, 320], "{echoes:?}");
}

/// An overtaken answer is older than the newest known reading.
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
fn a_reading_of_an_earlier_start_is_not_an_age() {
    let mut follower = Bench::new(2, 3, 1, &[1]);
    let session = ReplicationSession { term: Term(1), counter: 1 };
    let mut deliver = |timing| {
        let sent = follower.step(1, 1, Message::Heartbeat { session, commit: Index(1), timing });
        let Message::HeartbeatReply { timing, .. } = sent[0].message else { panic!("{}", sent[0]) };
        (timing, follower.raft.freshness())
    };
    let (own, _) = deliver(Timing::default());
    let echo = Timing {
        echo_time: own.probe_time,
        echo_commit: Index(1),
        boot: own.boot,
        ..Timing::default()
    };
    let (_, age) = deliver(Timing { boot: own.boot ^ 1, ..echo });
    assert_eq!(age, None, "the clock of an earlier start showed the same");
    let (_, age) = deliver(echo);
    assert_eq!(age, Some((own.probe_time, Index(1))));
}

/// A probe that is not answered is repeated once per heartbeat interval, however many rounds of
/// reads are confirmed in it: each may be as large as an append can be.
#[test]
fn a_lost_probe_is_repeated_once_per_interval_whatever_is_read() {
    let mut bench = leader();
    propose_two_mebibytes(&mut bench);
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

/// While a write is in flight, an answer to a heartbeat makes the leader send an append, in case
/// the write was lost: also once per heartbeat interval.
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

/// A follower that installs a snapshot, of an earlier leader too, drops every append until it is
/// done.
#[test]
fn a_follower_that_installs_a_snapshot_gets_no_probe_until_it_is_done() {
    let mut bench = leader();
    propose_two_mebibytes(&mut bench);
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

/// The same where the leader streams: its appends are dropped, and probing for them does not help
/// yet.
#[test]
fn a_follower_that_installs_gets_no_appends_while_the_leader_streams() {
    let mut bench = leader();
    propose_two_mebibytes(&mut bench);
    for _ in 0..10 {
        let beats = bench.tick(INTERVAL);
        let sent = answer_all(&mut bench, &beats, true);
        assert_eq!(appends(&sent, 3), (0, 0));
    }
    let beats = bench.tick(INTERVAL);
    let sent = answer_all(&mut bench, &beats, false);
    assert_eq!(appends(&sent, 3).0, 1, "it is done");
}

/// The rejection of the first probe shows that a follower needs purged entries. It gets a snapshot,
/// and not the rest of the log first.
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

#[test]
fn what_large_proposals_may_not_fill_is_left_for_small_ones() {
    let mut bench = leader();
    let mut propose =
        |bytes: u64| bench.raft.propose(Ticks(bench.now), Bytes::from(vec![0; bytes as usize]), 0);
    let limit = Config::default().max_uncommitted_bytes;
    let large = (0..1_000).take_while(|_| propose(2 * SMALL_BYTES).is_ok()).count() as u64;
    assert!(large * 2 * SMALL_BYTES <= limit / 4 * 3, "{large} large ones");
    assert!((large + 1) * 2 * SMALL_BYTES >= limit / 4 * 3 - large * 64, "{large} large ones");
    for _ in 0..1_000 {
        assert!(propose(1).is_ok(), "a small one");
    }
    assert!(matches!(propose(2 * SMALL_BYTES), Err(ProposeError::Full { .. })));
}
