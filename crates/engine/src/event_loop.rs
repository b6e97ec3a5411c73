//! The event loop: it drains its inbox, steps every touched or due group, and dispatches the
//! outputs: one list of writes to the log writer, one batch of messages to the transport, committed
//! entries to the apply pool.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate_raft::{
    Envelope, GroupId, Index, Message, NodeId, Output, Replica, Ticks, TransferError,
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Outbox;
use super::apply_pool::{ApplyInput, ApplyPool};
use super::group::Group;
use super::inbox::Inbox;
use super::input::Input;
use super::log_writer::{LogInput, Write};
use super::request::{Answer, Proposal, ReadGrant, ReadRequest, RefusedProposal};
use super::snapshots::SnapshotOrder;
use crate::clock::{Clock, TICK};
use crate::metrics::EngineMetrics;

/// Longest wait for input, so that the liveness check sees recent activity.
const TURN_INTERVAL: Duration = Duration::from_millis(500);

fn carries_entries(envelope: &Envelope) -> bool {
    matches!(&envelope.message, Message::Append { entries, .. } if !entries.is_empty())
}

pub(super) struct EventLoop {
    pub(super) node: NodeId,
    pub(super) inbox: Arc<Inbox<Input>>,
    pub(super) clock: Clock,
    pub(super) log: Arc<Inbox<LogInput>>,
    /// Log size, in bytes, at which a group that does not apply accepts no more entries.
    pub(super) log_max: u64,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) out: Outputs,
    /// When the last iteration began, in ticks; the liveness check reads it.
    pub(super) last_iteration: Arc<AtomicU64>,
    pub(super) state: State,
}

/// An election before the election timeout, because the process of the leader has ended.
#[derive(Clone, Copy, Debug)]
struct EarlyElection {
    ended: NodeId,
    attempts_left: u32,
}

/// Further attempts at an early election. The survivors do not all notice at the same time: one
/// that still hears from the leader refuses the first pre-vote, and one with a shorter log can only
/// wait for the other. A retry comes well before the election timeout.
const RETRIES: u32 = 2;
/// The time between two attempts: the spread and a round trip, so that attempts do not overlap.
const RETRY_TICKS: u64 = 15;

/// The state that only its loop touches.
#[derive(Default)]
pub(super) struct State {
    groups: BTreeMap<GroupId, Group>,
    deadlines: BTreeSet<(Ticks, GroupId)>,
    /// Elections to be started immediately, because the leader's process has ended.
    early_elections: BTreeMap<(Ticks, GroupId), EarlyElection>,
    touched: Vec<GroupId>,
}

/// The receivers of the groups' outputs; messages and writes are collected over an iteration.
pub(super) struct Outputs {
    number: usize,
    apply: Arc<ApplyPool>,
    snapshots: mpsc::Sender<SnapshotOrder>,
    metrics: Arc<EngineMetrics>,
    send: Vec<(NodeId, Envelope)>,
    writes: Vec<Write>,
}

impl Outputs {
    pub(super) fn new(
        number: usize,
        apply: Arc<ApplyPool>,
        snapshots: mpsc::Sender<SnapshotOrder>,
        metrics: Arc<EngineMetrics>,
    ) -> Self {
        Self { number, apply, snapshots, metrics, send: Vec::new(), writes: Vec::new() }
    }
}

impl EventLoop {
    /// Runs until it is stopped.
    pub(super) fn run(mut self) {
        let mut inputs = Vec::new();
        loop {
            self.inbox.drain(&mut inputs, self.patience());
            // Read the clock after the inputs were dequeued: a loop that was suspended must not
            // take old inputs for fresh ones.
            let now = self.clock.now();
            self.last_iteration.store(now.0, Ordering::Relaxed);
            for input in inputs.drain(..) {
                if matches!(input, Input::Stop) {
                    self.inbox.close();
                    return;
                }
                self.handle(now, input);
            }
            self.fire_due(now);
            self.collect(now);
        }
    }

    fn patience(&self) -> Duration {
        let timer = self.state.deadlines.first().map(|(due, _)| *due);
        let election = self.state.early_elections.first_key_value().map(|((due, _), _)| *due);
        let due = [timer, election];
        let Some(due) = due.into_iter().flatten().min() else { return TURN_INTERVAL };
        let ticks = due.0.saturating_sub(self.clock.now().0);
        if ticks == 0 { Duration::ZERO } else { (TICK * ticks.min(100) as u32).min(TURN_INTERVAL) }
    }

    fn handle(&mut self, now: Ticks, input: Input) {
        match input {
            Input::Messages(envelopes) => {
                for envelope in envelopes {
                    self.step(now, envelope);
                }
            }
            Input::Propose(proposal) => self.propose(now, proposal),
            Input::Read(ReadRequest { group, grant }) => match self.touch(group) {
                Some(group) => group.read(grant),
                None => {
                    let _ = grant.send(ReadGrant::NoReplica);
                }
            },
            Input::Persisted(done) => {
                for (group, token) in done {
                    self.with(group, |group| group.raft.on_persisted(now, token));
                }
            }
            Input::Applied(group, index) => {
                self.with(group, |group| group.raft.on_applied(now, index));
            }
            Input::Installed(group, meta) => self.with(group, |group| {
                group.forget_waiters(meta.last.index);
                group.raft.on_installed(now, meta);
            }),
            Input::InstallFailed(group) => {
                self.with(group, |group| group.raft.on_install_failed(now));
            }
            Input::SnapshotBegins { group, to, session, last, needed } => {
                let group = self.touch(group);
                let is = group.is_some_and(|g| g.raft.snapshot_begins(now, to, session, last));
                // Its sender may have ended; ignore it.
                let _ = needed.send(is);
            }
            Input::SnapshotSent { group, to, session, ok } => {
                self.with(group, |group| group.raft.snapshot_sent(now, to, session, ok));
            }
            Input::BulkDropped { group, to } => {
                self.with(group, |group| group.raft.unreachable(now, to));
            }
            Input::PeerRefused(node) => self.start_early_elections(now, node),
            Input::Compact(group, through) => self.compact(group, through),
            Input::Transfer { group, to, done } => {
                let result = self.touch(group).map(|group| group.raft.transfer_leader(now, to));
                let _ = done.send(result.unwrap_or(Err(TransferError::NotLeader { hint: None })));
            }
            Input::Campaign(group) => self.with(group, |group| group.raft.election_timeout(now)),
            Input::Add(group) => self.add(*group),
            Input::Status(reply) => {
                let all = &self.state.groups;
                let _ =
                    reply.send(all.iter().map(|(id, group)| (*id, group.raft.status())).collect());
            }
            Input::Stop => unreachable!("the loop ends before it handles a stop"),
        }
    }

    /// The group, listed for the collection of its output; `None` if it is not here.
    fn touch(&mut self, id: GroupId) -> Option<&mut Group> {
        let group = self.state.groups.get_mut(&id)?;
        if !group.touched {
            group.touched = true;
            self.state.touched.push(id);
        }
        Some(group)
    }

    fn with(&mut self, id: GroupId, act: impl FnOnce(&mut Group)) {
        if let Some(group) = self.touch(id) {
            act(group);
        }
    }

    fn step(&mut self, now: Ticks, envelope: Envelope) {
        let clock = self.clock.unix_millis();
        let log_max = self.log_max;
        if let Some(group) = self.touch(envelope.group) {
            if group.is_full(log_max) && carries_entries(&envelope) {
                // As if it were lost: the leader continues with the others, and tries again.
                return;
            }
            if let Message::InstallSnapshot { session, .. } = &envelope.message {
                group.announced = Some(*session);
            }
            group.raft.set_clock(clock);
            if group.step(now, envelope) {
                self.out.metrics.term_jumps.inc();
            }
        } else {
            // The replica is not here yet: its creation follows the map, and the sender tries
            // again. ReplicaGone is only for removed replicas.
            debug!(shard = envelope.group.0, message = %envelope, "message: no such group here");
        }
    }

    fn propose(&mut self, now: Ticks, proposal: Proposal) {
        let clock = self.clock.unix_millis();
        match self.touch(proposal.group) {
            Some(group) => group.propose(now, clock, proposal),
            None => {
                let refused = Answer::Refused(RefusedProposal::NoReplica);
                let _ = proposal.answer.send(refused);
            }
        }
    }

    fn add(&mut self, group: Group) {
        let id = group.shard.group;
        self.state.deadlines.insert((group.deadline, id));
        let before = self.state.groups.insert(id, group);
        assert!(before.is_none(), "group {id} was added twice");
        self.touch(id);
    }

    /// The leader's process has ended: its groups start elections immediately, spread over 100 ms
    /// so that the survivors do not split the vote. Safety still rests on votes.
    fn start_early_elections(&mut self, now: Ticks, node: NodeId) {
        const SPREAD_TICKS: u64 = 10;
        let led = self
            .state
            .groups
            .values()
            .filter(|group| group.raft.leader().is_some_and(|leader| leader.node == node));
        let elections: Vec<_> = led
            .map(|group| {
                let id = group.shard.group;
                let mixed = (id.0 ^ (self.node.0 << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let early = EarlyElection { ended: node, attempts_left: RETRIES };
                ((Ticks(now.0 + (mixed >> 32) % SPREAD_TICKS), id), early)
            })
            .collect();
        if !elections.is_empty() {
            warn!(peer = node.0, groups = elections.len(), "peer: process ended, electing leaders");
        }
        self.state.early_elections.extend(elections);
    }

    fn compact(&mut self, id: GroupId, through: Index) {
        if let Some(group) = self.touch(id) {
            let base = group.raft.compact(through);
            let kept = group.raft.kept_for_receivers(through);
            group.shard.stats.receiver_bytes.store(kept, Ordering::Relaxed);
            let replica = group.shard.replica.id;
            self.log.complete(LogInput::Purge { group: id, replica, through: base.index });
        }
    }

    fn fire_due(&mut self, now: Ticks) {
        while let Some((&(due, id), &early)) = self.state.early_elections.first_key_value() {
            if due > now {
                break;
            }
            self.state.early_elections.remove(&(due, id));
            let Some(group) = self.touch(id) else { continue };
            let leader = group.raft.leader().map(|leader| leader.node);
            // Not if another node leads by now.
            if leader.is_none_or(|node| node == early.ended) {
                group.raft.election_timeout(now);
                if early.attempts_left > 0 {
                    let next = EarlyElection { attempts_left: early.attempts_left - 1, ..early };
                    self.state.early_elections.insert((Ticks(now.0 + RETRY_TICKS), id), next);
                }
            }
        }
        let due = self.state.deadlines.range(..=(now, GroupId(u64::MAX)));
        let due: Vec<GroupId> = due.map(|(_, id)| *id).collect();
        let clock = self.clock.unix_millis();
        for id in due {
            self.with(id, |group| {
                group.raft.set_clock(clock);
                group.raft.advance(now);
            });
        }
    }

    /// Takes and dispatches the outputs of all touched groups.
    fn collect(&mut self, now: Ticks) {
        let touched = std::mem::take(&mut self.state.touched);
        for id in &touched {
            self.collect_group(now, *id);
        }
        self.state.touched = touched;
        self.state.touched.clear();
        if !self.out.writes.is_empty() {
            self.log.complete(LogInput::Write(std::mem::take(&mut self.out.writes)));
        }
        self.outbox.send_all(&mut self.out.send);
        self.out.send.clear();
    }

    fn collect_group(&mut self, now: Ticks, id: GroupId) {
        let Some(group) = self.state.groups.get_mut(&id) else { return };
        group.touched = false;
        group.begin_reads(now);
        while group.raft.has_output() {
            let output = group.raft.take_output();
            self.out.dispatch(now, group, output);
        }
        if let Some(session) = group.announced.take() {
            self.out.apply.push(id, ApplyInput::Decided { group: id, session });
        }
        group.note_commit();
        let deadline = group.raft.next_deadline();
        if deadline != group.deadline {
            self.state.deadlines.remove(&(group.deadline, id));
            self.state.deadlines.insert((deadline, id));
            group.deadline = deadline;
        }
    }
}

impl Outputs {
    fn dispatch(&mut self, now: Ticks, group: &mut Group, output: Output) {
        let Replica { id: replica, .. } = group.shard.replica;
        let id = group.shard.group;
        self.send.extend(output.send.into_iter().map(|envelope| (envelope.to.node, envelope)));
        if let Some(persist) = output.persist {
            self.writes.push(Write { group: id, replica, engine_loop: self.number, persist });
        }
        if !output.committed.is_empty() {
            let entries = group.match_waiters(output.committed, &self.metrics);
            self.apply.push(id, ApplyInput::Entries { group: id, entries });
        }
        for (read, outcome) in output.reads {
            group.finish_read(read, outcome);
        }
        for order in output.snapshots {
            let (to, session) = (order.to.id, order.session);
            let order = SnapshotOrder { group: id, from: group.shard.replica, order };
            if self.snapshots.try_send(order).is_err() {
                // The queue is full: the core orders it again later.
                group.raft.snapshot_sent(now, to, session, false);
            }
        }
        if let Some(install) = output.install {
            self.apply.push(id, ApplyInput::Install { group: id, install });
        }
        group.note_events(&output.events, &self.metrics);
    }
}
