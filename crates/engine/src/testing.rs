//! Test support: a node with an engine on its own disk, and peers that agree with it.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::fatal::FatalHook;
use crate::limits::Limits;
use parking_lot::Mutex;
use quorate_machine::command::{self, CommandOperation, Kind};
use quorate_raft::{
    AppendResult, Config, Envelope, GroupId, Index, LogId, Membership, Message, NodeId, Replica,
    ReplicaId, Term, Timing,
};
use quorate_storage::{
    Database, DatabaseOptions, DeltaBudget, HashRange, LogBackend, RecordLog, RecoveredGroup,
    ShardInit, ShardStore, SnapshotSource,
};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Claim, Engine, Outbox, Parts, Proposal, Shard};
use crate::map_cell::MapCell;
use crate::metrics::EngineMetrics;
use crate::watchdog::BARRIER_MAX;

/// The group of a test that needs only one.
pub const GROUP: GroupId = GroupId(1);

/// The engine's share of 128 MiB.
pub const TEST_LIMITS: Limits =
    Limits { log_node: 32 << 20, log_group: 16 << 20, request_queue: 8 << 20 };

/// The replica of a group on a node: both have the same number.
#[must_use]
pub fn replica(number: u64) -> Replica {
    Replica { id: ReplicaId(number), node: NodeId(number) }
}

/// The database of a node in this directory.
#[must_use]
pub fn sled(dir: &Path) -> Database {
    Database::open(&dir.join("sled"), DatabaseOptions::default()).unwrap()
}

/// The new state of node 1's replica, one of `voters`.
pub fn store(
    sled: &Database,
    budget: &Arc<DeltaBudget>,
    group: GroupId,
    voters: u64,
) -> ShardStore {
    let init = ShardInit {
        group,
        replica: ReplicaId(1),
        membership: Membership::of_voters((1..=voters).map(replica)),
        range: HashRange::ALL,
        shard_epoch: 1,
    };
    ShardStore::create(sled, init, budget.clone()).unwrap()
}

/// The reply of a peer that agrees with everything, and whose wall clock shows `clock`.
#[must_use]
pub fn agree(envelope: Envelope, clock: u64) -> Option<Envelope> {
    let Envelope { group, from, to, term, message } = envelope;
    let echo = |timing: Timing| Timing { echo_time: timing.probe_time, clock, ..timing };
    let message = match message {
        Message::PreVote { .. } => {
            Message::PreVoteReply { proposed: Term(term.0 + 1), granted: true }
        }
        Message::Vote { .. } => Message::VoteReply { asked: term, granted: true },
        Message::Append { session, prev, entries, timing, .. } => {
            let last = Index(prev.index.0 + entries.len() as u64);
            let result = AppendResult::Accepted { last };
            Message::AppendReply { session, result, timing: echo(timing) }
        }
        Message::Heartbeat { session, timing, .. } => {
            Message::HeartbeatReply { session, installing: false, last: None, timing: echo(timing) }
        }
        _ => return None,
    };
    Some(Envelope { group, from: to, to: from, term, message })
}

/// Peers that answer immediately.
#[derive(Default)]
pub struct Peers {
    engine: OnceLock<Weak<Engine>>,
    got: Mutex<Vec<Envelope>>,
    /// A replica that reports this end of its log in its replies to heartbeats.
    ends: Mutex<Option<(ReplicaId, LogId)>>,
}

impl Outbox for Peers {
    fn send_all(&self, batch: &mut Vec<(NodeId, Envelope)>) {
        let envelopes: Vec<_> = batch.drain(..).map(|(_, envelope)| envelope).collect();
        self.got.lock().extend(envelopes.iter().cloned());
        let clock = crate::clock::Clock.unix_millis();
        let ends = *self.ends.lock();
        let answers = envelopes.into_iter().filter_map(|envelope| {
            let mut answer = agree(envelope, clock)?;
            if let Message::HeartbeatReply { last, .. } = &mut answer.message {
                *last = ends.filter(|ends| ends.0 == answer.from.id).map(|ends| ends.1);
            }
            Some(answer)
        });
        if let Some(engine) = self.engine.get().and_then(Weak::upgrade) {
            engine.deliver(answers.collect());
        }
    }
}

/// A node with an engine.
pub struct Node {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The memory that all deltas share.
    pub budget: Arc<DeltaBudget>,
    /// The other nodes.
    pub peers: Arc<Peers>,
    pub(crate) sled: Database,
    /// The last field, so that it is dropped after the database is closed.
    dir: tempfile::TempDir,
}

impl Node {
    /// A node with [`TEST_LIMITS`].
    #[must_use]
    pub fn start() -> Node {
        Self::with(TEST_LIMITS, 8 << 20)
    }

    /// A node with these limits, and a delta budget of `delta_bytes`.
    #[must_use]
    pub fn with(limits: Limits, delta_bytes: u64) -> Node {
        Self::with_options(limits, delta_bytes, DatabaseOptions::default())
    }

    /// The same over a database with these options.
    #[must_use]
    pub fn with_options(limits: Limits, delta_bytes: u64, options: DatabaseOptions) -> Node {
        let fatal = FatalHook(|error| panic!("the storage failed: {error}"));
        Self::with_parts(limits, delta_bytes, options, LogBackend::Sled, (fatal, BARRIER_MAX))
    }

    /// The same with this log, and with this end where a barrier takes longer than that.
    pub fn with_parts(
        limits: Limits,
        delta_bytes: u64,
        options: DatabaseOptions,
        backend: LogBackend,
        (fatal, barrier_max): (FatalHook, Duration),
    ) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let sled = Database::open(&dir.path().join("sled"), options).unwrap();
        let (log, _) = RecordLog::open(backend, &sled, dir.path()).unwrap();
        let budget = Arc::new(DeltaBudget::with_cache(delta_bytes, 8 << 20));
        let peers = Arc::<Peers>::default();
        let engine = Engine::start(Parts {
            node: NodeId(1),
            seed: 1,
            raft: Config::default(),
            limits,
            log,
            budget: budget.clone(),
            outbox: peers.clone(),
            map: MapCell::default(),
            snapshots: mpsc::channel(1).0,
            metrics: Arc::new(EngineMetrics::unregistered()),
            fatal,
            barrier_max,
        });
        let engine = engine.unwrap();
        peers.engine.set(Arc::downgrade(&engine)).unwrap();
        Node { engine, budget, peers, sled, dir }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The checkpoint of a replica, to be sent.
    pub fn pin_snapshot(&self, group: GroupId) -> SnapshotSource {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.engine.pin_snapshot(group)).unwrap()
    }

    /// Adds a replica, one of `voters`, which waits for a scrub or not.
    pub fn add(
        &self,
        group: GroupId,
        voters: u64,
        recovered: Option<RecoveredGroup>,
        scrub: bool,
    ) -> Arc<Shard> {
        let store = store(&self.sled, &self.budget, group, voters);
        self.engine.add(store, recovered, scrub).unwrap()
    }

    /// Adds a replica and makes it the leader of `voters`.
    pub fn lead(&self, group: GroupId, voters: u64) -> Arc<Shard> {
        let shard = self.add(group, voters, None, false);
        self.engine.campaign(group);
        wait("it leads", || shard.leadership().is_leader);
        shard
    }

    /// Proposes a command; the answer comes when it is applied.
    pub fn propose(
        &self,
        group: GroupId,
        payload: impl Into<bytes::Bytes>,
    ) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        self.engine
            .propose(Proposal {
                group,
                payload: payload.into(),
                write: None,
                answer,
                claim: Claim::default(),
            })
            .unwrap();
        answered
    }

    /// Makes a replica report from now on that its log ends at `last`.
    pub fn end_log_of(&self, replica: ReplicaId, last: LogId) {
        *self.peers.ends.lock() = Some((replica, last));
    }

    /// Waits until a matching message was sent.
    pub fn wait_sent(&self, wanted: impl Fn(&Envelope) -> bool) {
        wait("it was sent", || self.peers.got.lock().iter().any(&wanted));
    }
}

/// Limits under which a write of 200 KiB is worth a checkpoint.
pub const SMALL: Limits = Limits { log_group: 64 << 10, ..TEST_LIMITS };

/// A node on which a write of 200 KiB is worth a checkpoint.
#[must_use]
pub fn small() -> Node {
    Node::with(SMALL, 256 << 10)
}

/// A command that puts a value of `bytes` bytes.
#[must_use]
pub fn put(group: GroupId, key: &str, bytes: usize) -> bytes::Bytes {
    let operation = CommandOperation {
        key: key.to_owned().into(),
        kind: Some(Kind::Put(vec![7; bytes].into())),
        ..CommandOperation::default()
    };
    command::encode(&mut command::write(vec![operation], None), group.0, 1)
}

/// Writes the row `key` and waits until a checkpoint holds it.
pub fn checkpoint(node: &Node, shard: &Shard) {
    let written = node.propose(shard.group, put(shard.group, "key", 200 << 10));
    let Ok(Answer::Applied { at, .. }) = written.blocking_recv() else { panic!("not applied") };
    wait("a checkpoint holds it", || shard.reader.header().applied() >= at);
}

/// Inserts unrecognised keys between those of a shard's first tree.
pub fn damage(node: &Node, group: GroupId) {
    let tree = node.sled.tree(format!("s{}/1", group.0).as_bytes()).unwrap();
    let keys: Vec<_> = tree.range::<&[u8]>(..).map(|entry| entry.unwrap().0).collect();
    assert!(!keys.is_empty(), "there is nothing to damage");
    for key in keys {
        tree.insert(&[&key[..], b"x"].concat(), b"damage").unwrap();
    }
}

/// Waits until `done`; after 60 s, which is ten times what a busy machine needs, it panics with
/// `what`.
pub fn wait(what: &str, done: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 60 s: {what}");
}
