//! What tests of the engine begin with: a node on a disk of its own, and peers that agree with it.

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::PutRequest;
use quorate_raft::{
    AppendResult, Config, Envelope, GroupId, Index, LogId, Membership, Message, NodeId, Replica,
    ReplicaId, Term, Timing,
};
use quorate_storage::{
    DeltaBudget, Engine as Sled, EngineOptions, HashRange, LogBackend, RecordLog, RecoveredGroup,
    ShardInit, ShardStore,
};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Engine, Outbox, Parts, Proposal, Shard};
use crate::command::{CommandDraft, RequestLimits};
use crate::config::MemoryPlan;
use crate::map::MapCell;
use crate::metrics::Metrics;

/// The group that a test has when it has one.
pub(crate) const GROUP: GroupId = GroupId(1);

/// The replica of a group on a node: both have the same number.
pub(crate) fn replica(number: u64) -> Replica {
    Replica { id: ReplicaId(number), node: NodeId(number) }
}

pub(crate) fn sled(dir: &Path) -> Sled {
    Sled::open(&dir.join("sled"), EngineOptions::default()).unwrap()
}

/// The new state of node 1's replica, one of `voters`.
pub(crate) fn store(
    sled: &Sled,
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

/// What a peer answers that agrees with everything, and whose wall clock shows `clock`.
pub(crate) fn agree(envelope: Envelope, clock: u64) -> Option<Envelope> {
    let Envelope { group, from, to, term, message } = envelope;
    let told = |timing: Timing| Timing { echo_time: timing.probe_time, clock, ..timing };
    let message = match message {
        Message::PreVote { .. } => {
            Message::PreVoteReply { proposed: Term(term.0 + 1), granted: true }
        }
        Message::Vote { .. } => Message::VoteReply { asked: term, granted: true },
        Message::Append { session, prev, entries, timing, .. } => {
            let last = Index(prev.index.0 + entries.len() as u64);
            let result = AppendResult::Accepted { last };
            Message::AppendReply { session, result, timing: told(timing) }
        }
        Message::Heartbeat { session, timing, .. } => {
            Message::HeartbeatReply { session, installing: false, last: None, timing: told(timing) }
        }
        _ => return None,
    };
    Some(Envelope { group, from: to, to: from, term, message })
}

/// Peers that answer at once.
#[derive(Default)]
pub(crate) struct Peers {
    engine: OnceLock<Weak<Engine>>,
    got: Mutex<Vec<Envelope>>,
    /// A replica whose log ends here, as its answers to heartbeats tell.
    ends: Mutex<Option<(ReplicaId, LogId)>>,
}

impl Outbox for Peers {
    fn send_all(&self, batch: &mut Vec<(NodeId, Envelope)>) {
        let envelopes: Vec<_> = batch.drain(..).map(|(_, envelope)| envelope).collect();
        self.got.lock().extend(envelopes.iter().cloned());
        let clock = crate::boottime::Clock.unix_millis();
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
pub(crate) struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) budget: Arc<DeltaBudget>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) sled: Sled,
    /// Last, so that it goes when nothing is open any more.
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start() -> Node {
        Self::with_plan(MemoryPlan::new(128 << 20))
    }

    pub(crate) fn with_plan(plan: MemoryPlan) -> Node {
        Self::with_options(plan, EngineOptions::default())
    }

    pub(crate) fn with_options(plan: MemoryPlan, options: EngineOptions) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let sled = Sled::open(&dir.path().join("sled"), options).unwrap();
        let (log, _) = RecordLog::open(LogBackend::Sled, &sled, dir.path()).unwrap();
        let budget = Arc::new(DeltaBudget::with_cache(plan.delta, plan.value_cache));
        let peers = Arc::<Peers>::default();
        let engine = Engine::start(Parts {
            node: NodeId(1),
            seed: 1,
            raft: Config::default(),
            plan,
            log,
            budget: budget.clone(),
            outbox: peers.clone(),
            map: MapCell::default(),
            snapshots: mpsc::channel(1).0,
            metrics: Arc::new(Metrics::new()),
        });
        let engine = engine.unwrap();
        peers.engine.set(Arc::downgrade(&engine)).unwrap();
        Node { engine, budget, peers, sled, _dir: dir }
    }

    /// Adds a replica, one of `voters`, which waits for a scrub or not.
    pub(crate) fn add(
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
    pub(crate) fn lead(&self, group: GroupId, voters: u64) -> Arc<Shard> {
        let shard = self.add(group, voters, None, false);
        self.engine.campaign(group);
        wait("it leads", || shard.leadership().is_leader);
        shard
    }

    pub(crate) fn propose(
        &self,
        group: GroupId,
        payload: impl Into<bytes::Bytes>,
    ) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        self.engine
            .propose(Proposal { group, payload: payload.into(), write: None, answer })
            .unwrap();
        answered
    }

    /// From now on the answers of a replica tell that its log ends at `last`.
    pub(crate) fn end_log_of(&self, replica: ReplicaId, last: LogId) {
        *self.peers.ends.lock() = Some((replica, last));
    }

    /// Waits until such a message was sent.
    pub(crate) fn wait_sent(&self, wanted: impl Fn(&Envelope) -> bool) {
        wait("it was sent", || self.peers.got.lock().iter().any(&wanted));
    }
}

/// A plan under which a write of 200 KiB is worth a checkpoint.
pub(crate) fn small() -> MemoryPlan {
    MemoryPlan { delta: 256 << 10, log_group: 64 << 10, ..MemoryPlan::new(128 << 20) }
}

/// A command that puts a value of so many bytes.
pub(crate) fn put(group: GroupId, key: &str, bytes: usize) -> bytes::Bytes {
    let value = bytes::Bytes::from(vec![7; bytes]);
    let request = PutRequest { key: key.to_owned().into(), value, ..PutRequest::default() };
    let limits = RequestLimits { value_bytes_max: 1 << 20 };
    CommandDraft::put(&request, &limits).unwrap().encode(group.0, 1)
}

/// Writes the row `key` and waits until a checkpoint holds it.
pub(crate) fn checkpoint(node: &Node, shard: &Shard) {
    let written = node.propose(shard.group, put(shard.group, "key", 200 << 10));
    let Ok(Answer::Applied { at, .. }) = written.blocking_recv() else { panic!("not applied") };
    wait("a checkpoint holds it", || shard.reader.header().applied() >= at);
}

/// Puts keys that are none of ours between those of a shard's first tree.
pub(crate) fn damage(node: &Node, group: GroupId) {
    let tree = node.sled.tree(format!("s{}/1", group.0).as_bytes()).unwrap();
    let keys: Vec<_> = tree.range::<&[u8]>(..).map(|entry| entry.unwrap().0).collect();
    assert!(!keys.is_empty(), "there is nothing to damage");
    for key in keys {
        tree.insert(&[&key[..], b"x"].concat(), b"damage").unwrap();
    }
}

/// Waits until `done`; `what` says what is missing when it takes too long.
pub(crate) fn wait(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 10 s: {what}");
}
