//! Throughput benchmark: entries per second that one CPU core carries through a group of three
//! whose network and disks cost nothing. Each is proposed, sent, written, acknowledged, committed
//! and applied on all three.
//!
//! `cargo bench -p quorate-raft` prints entries per second by batch size.

#![allow(clippy::disallowed_types, reason = "a bench measures time")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_raft::{
    Config, Envelope, GroupId, HardState, Index, LogId, Membership, NodeId, Raft, Replica,
    ReplicaId, Restored, Ticks,
};

const NOW: Ticks = Ticks(1_000);

fn replica(id: u64) -> Replica {
    Replica::new(ReplicaId(id), NodeId(id))
}

struct Trio {
    rafts: Vec<Raft>,
    applied: Vec<Index>,
}

impl Trio {
    fn new() -> Self {
        let restored = Restored {
            hard_state: HardState::default(),
            base: LogId::ZERO,
            applied: LogId::ZERO,
            stamp: 0,
            membership: Membership::of_voters((1..=3).map(replica)),
            entries: Vec::new(),
        };
        let raft = |id| {
            Raft::new(Config::default(), GroupId(1), replica(id), id, restored.clone(), NOW)
                .expect("a new group starts")
        };
        let mut trio = Self { rafts: (1..=3).map(raft).collect(), applied: vec![Index(0); 3] };
        trio.rafts[0].election_timeout(NOW);
        trio.settle();
        assert!(trio.rafts[0].is_leader());
        trio
    }

    /// Carries out all outputs until none is left.
    fn settle(&mut self) {
        let mut queue: Vec<Envelope> = Vec::new();
        loop {
            for (raft, applied) in self.rafts.iter_mut().zip(&mut self.applied) {
                while raft.has_output() {
                    let output = raft.take_output();
                    queue.extend(output.send);
                    if let Some(persist) = output.persist {
                        queue.extend(persist.send_after);
                        raft.on_persisted(NOW, persist.token);
                    }
                    if let Some(last) = output.committed.last() {
                        *applied = last.index;
                        raft.on_applied(NOW, last.index);
                    }
                }
            }
            if queue.is_empty() {
                return;
            }
            for envelope in queue.drain(..) {
                self.rafts[envelope.to.id.0 as usize - 1].step(NOW, envelope);
            }
        }
    }
}

fn main() {
    let payload = Bytes::from(vec![7; 256]);
    for batch in [1_u64, 16, 128, 1_024] {
        let mut trio = Trio::new();
        let (begin, mut entries) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_millis(1_500) {
            for _ in 0..batch {
                trio.rafts[0].propose(NOW, payload.clone(), 0).expect("the leader accepts it");
            }
            trio.settle();
            entries += batch;
            if entries % 65_536 < batch {
                for (raft, applied) in trio.rafts.iter_mut().zip(&trio.applied) {
                    raft.compact(*applied);
                }
            }
        }
        let rate = entries as f64 / begin.elapsed().as_secs_f64();
        assert!(trio.applied.iter().all(|applied| applied.0 > entries), "all was applied");
        println!("{batch:>5} entries per batch: {rate:>10.0} entries/s");
    }
}
