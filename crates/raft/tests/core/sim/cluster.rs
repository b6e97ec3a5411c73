//! Simulated cluster in one thread: replicas, disks, a network and a clock, all driven by one seed.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use quorate_raft::{
    Config, Entry, Envelope, Event as Noted, GroupId, Index, Install, Membership, Message, NodeId,
    Output, PersistToken, Raft, ReadId, ReadOutcome, Replica, ReplicaId, SnapshotMeta,
    SnapshotSend, Ticks,
};

use super::oracle::Oracle;
use super::rng::Rng;
use crate::disk::{Disk, Write};

const GROUP: GroupId = GroupId(7);

/// A scheduled event at a node. An event of a process carries its boot number, and is dropped when
/// the process dies.
enum Event {
    Deliver(Envelope),
    /// A disk barrier is done, and with it this many writes.
    Durable {
        boot: u64,
        writes: usize,
    },
    Persisted {
        boot: u64,
        token: PersistToken,
    },
    Apply {
        boot: u64,
        count: usize,
    },
    SnapshotEnd {
        boot: u64,
        send: SnapshotSend,
        ok: bool,
    },
    InstallEnd {
        boot: u64,
        install: Install,
        ok: bool,
    },
}

/// The longest delay of a stray message, in ticks.
const STRAY: u64 = 400;

/// The highest reading of a clock when its machine starts: low enough for the readings of one start
/// to repeat in the next.
const FIRST_READING: u64 = 1_000;

/// The rates and delays of faults.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Messages lost, and messages doubled, of 1,000.
    pub loss: u64,
    pub doubled: u64,
    /// Longest ordinary delay of a message, in ticks.
    pub delay: u64,
    /// Messages delayed by up to `STRAY` ticks, of 1,000: they arrive whole terms and process
    /// starts later.
    pub stray: u64,
    /// Longest time of a write, and of the report of its completion, in ticks.
    pub disk: u64,
    pub report: u64,
    /// Longest time from handing out an entry to applying it, in ticks.
    pub apply: u64,
    /// Power failures right after a snapshot became durable, of 1,000.
    pub install_crash: u64,
}

impl Weather {
    pub const FINE: Weather = Weather {
        loss: 0,
        doubled: 0,
        delay: 1,
        stray: 0,
        disk: 1,
        report: 0,
        apply: 1,
        install_crash: 0,
    };
}

/// A planted bug of the simulated driver, which proves that a check can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// An acknowledgement is handled only when the next heartbeat is due.
    AcknowledgementsWaitForTheNextHeartbeat,
    /// Committed entries are never applied.
    AppliesNothing,
}

/// Counts of the events that a run should exercise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pub elections: u64,
    pub proposals: u64,
    pub applied: u64,
    pub reads: u64,
    pub reads_dropped: u64,
    pub crashes: u64,
    pub lost_writes: u64,
    pub pauses: u64,
    pub partitions: u64,
    pub snapshots: u64,
    pub install_crashes: u64,
    pub compactions: u64,
    pub transfers: u64,
    /// Ticks of followers that knew how old their state is.
    pub ages: u64,
}

/// The state of a node apart from its replica.
struct Node {
    boot: u64,
    /// The offset of the machine's clock from simulated time. No two clocks agree, and a clock
    /// restarts at a low reading with its machine.
    clock: i64,
    /// Whether its pre-vote and check-quorum settings are the opposite of the others': settings are
    /// changed node by node.
    opposite_settings: bool,
    paused_until: u64,
    /// The entries handed out to be applied.
    queue: VecDeque<Entry>,
    /// The state machine's position.
    position: Index,
    touched: bool,
}

pub struct Cluster {
    pub now: u64,
    pub rng: Rng,
    pub weather: Weather,
    pub coverage: Coverage,
    pub oracle: Oracle,
    pub bug: Option<Bug>,
    config: Config,
    seed: u64,
    rafts: Vec<Option<Raft>>,
    disks: Vec<Disk>,
    nodes: Vec<Node>,
    blocked: Vec<Vec<bool>>,
    events: BTreeMap<(u64, u64), (usize, Event)>,
    sequence: u64,
    /// Reads by id: the node, and the highest commit index when the read began.
    reads: BTreeMap<ReadId, (usize, Index)>,
    next_read: u64,
    next_payload: u64,
    /// The time at which each node last answered a read.
    pub last_read: Vec<u64>,
    /// How often a driver's turn ends after one input, of 1,000; otherwise it takes all inputs that
    /// have arrived.
    short_turns: u64,
    trace: DefaultHasher,
}

fn replica(node: usize) -> Replica {
    Replica::new(ReplicaId(node as u64 + 1), NodeId(node as u64 + 1))
}

impl Cluster {
    pub fn new(seed: u64, config: Config, membership: &Membership, weather: Weather) -> Self {
        let size = membership.replicas().count();
        let mut cluster = Self {
            now: 1_000,
            rng: Rng::new(seed),
            weather,
            coverage: Coverage::default(),
            oracle: Oracle::default(),
            bug: None,
            config,
            seed,
            rafts: vec![None; size],
            disks: (0..size).map(|_| Disk::new(membership.clone())).collect(),
            nodes: (0..size)
                .map(|_| Node {
                    boot: 0,
                    clock: 0,
                    opposite_settings: false,
                    paused_until: 0,
                    queue: VecDeque::new(),
                    position: Index(0),
                    touched: false,
                })
                .collect(),
            blocked: vec![vec![false; size]; size],
            events: BTreeMap::new(),
            sequence: 0,
            reads: BTreeMap::new(),
            next_read: 0,
            next_payload: 0,
            last_read: vec![0; size],
            short_turns: [0, 900, 500, 500][(seed % 4) as usize],
            trace: DefaultHasher::new(),
        };
        for node in 0..size {
            cluster.reset_clock(node);
            cluster.start(node);
        }
        cluster
    }

    /// The current reading of a node's clock.
    fn reading(&self, node: usize) -> Ticks {
        let reading = self.now.checked_add_signed(self.nodes[node].clock);
        Ticks(reading.expect("a clock shows at least its reading at the start of its machine"))
    }

    /// The simulated time of a reading of a node's clock, even if the clock did not run then.
    fn time_of(&self, node: usize, reading: Ticks) -> u64 {
        reading.0.saturating_add_signed(-self.nodes[node].clock)
    }

    fn settings(&self, node: usize) -> Config {
        let mut config = self.config.clone();
        config.pre_vote ^= self.nodes[node].opposite_settings;
        config.check_quorum ^= self.nodes[node].opposite_settings;
        config
    }

    /// Restarts the clock of a node, as when its machine starts.
    fn reset_clock(&mut self, node: usize) {
        let first = self.rng.below(FIRST_READING);
        self.nodes[node].clock = first.cast_signed() - self.now.cast_signed();
    }

    /// The time that a follower's state is known to be no older than; `None` where that is unknown,
    /// and at a leader.
    pub fn fresh_since(&self, node: usize) -> Option<u64> {
        let (reading, _) = self.rafts[node].as_ref()?.freshness()?;
        Some(self.time_of(node, reading))
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// A hash of the run: equal for equal runs.
    pub fn fingerprint(&self) -> u64 {
        self.trace.finish()
    }

    /// All nodes that believe to lead.
    pub fn leaders(&self) -> Vec<usize> {
        let leads = |node: &usize| self.rafts[*node].as_ref().is_some_and(Raft::is_leader);
        (0..self.size()).filter(leads).collect()
    }

    /// The leader with the highest term.
    pub fn leader(&self) -> Option<usize> {
        let term = |node: &usize| self.rafts[*node].as_ref().map(Raft::term);
        self.leaders().into_iter().max_by_key(term)
    }

    pub fn position(&self, node: usize) -> Index {
        self.nodes[node].position
    }

    /// The entries between the state machine that is furthest behind and the end of the longest
    /// log.
    pub fn backlog(&self) -> u64 {
        let last =
            self.rafts.iter().flatten().map(|raft| raft.status().last.index.0).max().unwrap_or(0);
        let position = self.nodes.iter().map(|node| node.position.0).min().unwrap_or(0);
        last.saturating_sub(position)
    }

    /// The state of every replica, for failure messages.
    pub fn describe(&self) -> String {
        let lines = self.rafts.iter().zip(&self.nodes).map(|(raft, node)| match raft {
            Some(raft) => format!("\n{}: at {} {:?}", raft.me(), node.position, raft.status()),
            None => "\ndown".to_owned(),
        });
        lines.collect()
    }

    // --- Faults ------------------------------------------------------------------------------

    pub fn start(&mut self, node: usize) {
        if self.rafts[node].is_some() {
            return;
        }
        let state = &mut self.nodes[node];
        state.boot += 1;
        state.queue.clear();
        state.position = self.disks[node].checkpoint.last.index;
        state.touched = true;
        let seed = self.seed.wrapping_mul(1_000) + (node as u64) * 100 + state.boot;
        let restored = self.disks[node].restore();
        let now = self.reading(node);
        let raft = Raft::new(self.settings(node), GROUP, replica(node), seed, restored, now);
        self.rafts[node] = Some(raft.expect("the durable state is consistent"));
    }

    pub fn crash(&mut self, node: usize) {
        if self.rafts[node].take().is_some() {
            self.coverage.crashes += 1;
            self.coverage.lost_writes += self.disks[node].writes.len() as u64;
            self.disks[node].crash();
            // Sometimes the whole machine restarts.
            if self.rng.chance(500) {
                self.reset_clock(node);
            }
            // Sometimes it comes back with other settings.
            self.nodes[node].opposite_settings ^= self.rng.chance(200);
            // The pending events of the process are dropped with it.
            self.nodes[node].boot += 1;
            self.reads.retain(|_, read| read.0 != node);
        }
    }

    pub fn pause(&mut self, node: usize, ticks: u64) {
        self.coverage.pauses += 1;
        self.nodes[node].paused_until = self.now + ticks;
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.coverage.partitions += 1;
        self.blocked[from][to] = true;
    }

    pub fn split(&mut self, side: impl Fn(usize) -> bool) {
        for from in 0..self.size() {
            for to in 0..self.size() {
                if side(from) != side(to) {
                    self.cut(from, to);
                }
            }
        }
    }

    pub fn reconnect(&mut self) {
        self.blocked.iter_mut().flatten().for_each(|blocked| *blocked = false);
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.weather = Weather::FINE;
        self.reconnect();
        for node in 0..self.size() {
            self.nodes[node].paused_until = 0;
            self.start(node);
        }
        // Delayed events happen now, in the order in which they were due.
        let (due, next) = (self.now, self.now + 1);
        let events = std::mem::take(&mut self.events).into_iter();
        self.events =
            events.map(|((at, order), event)| ((at.clamp(due, next), order), event)).collect();
    }

    /// Asserts that the node could start from its disk: the power may fail at any time.
    fn could_start(&self, node: usize) {
        let restored = self.disks[node].restore();
        let raft = Raft::new(self.config.clone(), GROUP, replica(node), 0, restored, Ticks(0));
        if let Err(error) = raft {
            panic!("{} could not start from its disk: {error}", replica(node));
        }
    }

    // --- Clients -----------------------------------------------------------------------------

    /// Proposes at a node; returns the index of the entry.
    pub fn propose(&mut self, node: usize, size: usize) -> Option<Index> {
        self.next_payload += 1;
        let mut payload = self.next_payload.to_be_bytes().to_vec();
        payload.resize(8 + size, 0);
        let stamp = self.now * 10 + self.rng.below(200);
        let mut at = None;
        self.input(node, |raft, now| {
            at = raft.propose(now, Bytes::from(payload), stamp).ok().map(|id| id.index);
        });
        self.coverage.proposals += u64::from(at.is_some());
        at
    }

    pub fn read(&mut self, node: usize) {
        self.next_read += 1;
        let (id, floor) = (ReadId(self.next_read), self.oracle.highest_commit);
        let mut taken = false;
        self.reads.insert(id, (node, floor));
        self.input(node, |raft, now| taken = raft.read_index(now, id).is_ok());
        if !taken {
            self.reads.remove(&id);
        }
    }

    pub fn transfer(&mut self, node: usize, to: usize) {
        let mut taken = false;
        self.input(node, |raft, now| taken = raft.transfer_leader(now, replica(to).id).is_ok());
        self.coverage.transfers += u64::from(taken);
    }

    pub fn election_timeout(&mut self, node: usize) {
        self.input(node, |raft, now| raft.election_timeout(now));
    }

    /// Makes the state machine's position durable, and drops the log before it.
    pub fn checkpoint(&mut self, node: usize) {
        let position = self.nodes[node].position;
        let Some(raft) = &self.rafts[node] else { return };
        let busy = raft.status().installing;
        let Some(last) = raft.entry_id(position).filter(|_| !busy) else { return };
        let membership = self.disks[node].checkpoint.membership.clone();
        let stamp = self.oracle.stamp_of(position);
        self.disks[node].checkpoint = SnapshotMeta { last, stamp, membership };
        self.could_start(node);
        let mut base = None;
        self.input(node, |raft, _| base = Some(raft.compact(position)));
        if let Some(base) = base {
            self.disks[node].purge(base);
            self.could_start(node);
            self.coverage.compactions += 1;
        }
    }

    // --- Scheduling -----------------------------------------------------------------------

    fn later(&mut self, node: usize, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), (node, event));
    }

    /// Gives an input to a replica and checks the resulting state.
    fn input(&mut self, node: usize, input: impl FnOnce(&mut Raft, Ticks)) {
        let now = self.reading(node);
        let Some(raft) = &mut self.rafts[node] else { return };
        let before = raft.clone();
        input(raft, now);
        let disks: Vec<_> = self.disks.iter().collect();
        self.oracle.after_step(&before, raft, &disks);
        self.coverage.elections = self.oracle.elections;
        self.nodes[node].touched = true;
        if self.rng.chance(self.short_turns) {
            self.drain(node);
        }
    }

    fn drain(&mut self, node: usize) {
        self.nodes[node].touched = false;
        for turn in 0.. {
            let Some(raft) = &mut self.rafts[node] else { return };
            if !raft.has_output() {
                return;
            }
            assert!(turn < 100, "{} never runs out of output", raft.me());
            let before = raft.clone();
            let output = raft.take_output();
            let disks: Vec<_> = self.disks.iter().collect();
            if let Some(persist) = &output.persist {
                self.oracle.written(raft, &persist.entries);
            }
            self.oracle.after_step(&before, raft, &disks);
            (self.now, node).hash(&mut self.trace);
            output.hash(&mut self.trace);
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        let Output { send, persist, committed, reads, snapshots, install, events } = output;
        // These disks keep all acknowledged entries, however late and often messages arrive.
        let regress = |event: &&Noted| matches!(event, Noted::Regress { .. });
        assert_eq!(events.iter().find(regress), None, "no disk went back");
        let stopped =
            |event: &&Noted| matches!(event, Noted::Stopped { .. } | Noted::Malformed { .. });
        assert_eq!(
            events.iter().find(stopped),
            None,
            "no replica stops, and no append is malformed"
        );
        let boot = self.nodes[node].boot;
        for envelope in send {
            self.send(node, &envelope);
        }
        if let Some(persist) = persist {
            self.disks[node].writes.push_back(Write { persist, void: false });
            if self.disks[node].writes.len() == 1 {
                self.begin_write(node);
            }
        }
        if !committed.is_empty() {
            let count = committed.len();
            self.nodes[node].queue.extend(committed);
            let at = self.now + self.rng.below(self.weather.apply + 1);
            self.later(node, at, Event::Apply { boot, count });
        }
        for (id, outcome) in reads {
            let (reader, floor) = self.reads.remove(&id).expect("a read is answered once");
            assert_eq!(reader, node);
            match outcome {
                ReadOutcome::Ready(index) => {
                    self.oracle.read(index, floor);
                    self.coverage.reads += 1;
                    self.last_read[node] = self.now;
                }
                ReadOutcome::Dropped => self.coverage.reads_dropped += 1,
            }
        }
        for send in snapshots {
            let (at, ok) = (self.now + self.rng.between(1, 30), !self.rng.chance(100));
            self.later(node, at, Event::SnapshotEnd { boot, send, ok });
        }
        if let Some(install) = install {
            let (at, ok) = (self.now + self.rng.between(0, 60), !self.rng.chance(100));
            self.later(node, at, Event::InstallEnd { boot, install, ok });
        }
    }

    /// Starts one barrier for all issued writes; later ones wait for the next.
    fn begin_write(&mut self, node: usize) {
        let (boot, writes) = (self.nodes[node].boot, self.disks[node].writes.len());
        let at = self.now + self.rng.below(self.weather.disk + 1);
        self.later(node, at, Event::Durable { boot, writes });
    }

    fn send(&mut self, node: usize, envelope: &Envelope) {
        self.oracle.sent(&self.disks[node], envelope);
        let to = envelope.to.id.0 as usize - 1;
        if self.blocked[node][to] || self.rng.chance(self.weather.loss) {
            // The transport detects some losses.
            if envelope.message.is_bulk() && self.rng.chance(300) {
                let (peer, now) = (envelope.to.id, self.reading(node));
                if let Some(raft) = &mut self.rafts[node] {
                    raft.unreachable(now, peer);
                }
            }
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.weather.doubled));
        for _ in 0..copies {
            let mut at = self.now + self.rng.below(self.weather.delay + 1);
            if self.rng.chance(self.weather.stray) {
                at += self.rng.below(STRAY);
            }
            if self.bug == Some(Bug::AcknowledgementsWaitForTheNextHeartbeat)
                && matches!(envelope.message, Message::AppendReply { .. })
            {
                at = at.next_multiple_of(self.config.heartbeat.0);
            }
            self.later(to, at, Event::Deliver(envelope.clone()));
        }
    }

    fn happen(&mut self, node: usize, event: Event) {
        let boot = self.nodes[node].boot;
        match event {
            Event::Deliver(envelope) => self.input(node, |raft, now| raft.step(now, envelope)),
            Event::Durable { boot: of, writes } if of == boot => {
                for _ in 0..writes {
                    let persist = self.disks[node].complete_one().expect("writes are issued once");
                    self.could_start(node);
                    for envelope in persist.send_after {
                        self.send(node, &envelope);
                    }
                    let at = self.now + self.rng.below(self.weather.report + 1);
                    self.later(node, at, Event::Persisted { boot, token: persist.token });
                }
                if !self.disks[node].writes.is_empty() {
                    self.begin_write(node);
                }
            }
            Event::Persisted { boot: of, token } if of == boot => {
                self.input(node, |raft, now| raft.on_persisted(now, token));
            }
            Event::Apply { boot: of, count } if of == boot => self.apply(node, count),
            Event::SnapshotEnd { boot: of, send, ok } if of == boot => {
                self.end_snapshot(node, send, ok);
            }
            Event::InstallEnd { boot: of, install, ok } if of == boot => {
                self.end_install(node, install, ok);
            }
            // The process that waited for it has ended.
            _ => {}
        }
    }

    fn apply(&mut self, node: usize, count: usize) {
        if self.bug == Some(Bug::AppliesNothing) {
            return;
        }
        for _ in 0..count {
            let Some(entry) = self.nodes[node].queue.pop_front() else { break };
            self.oracle.applied(&self.disks[node], &entry, self.nodes[node].position);
            self.nodes[node].position = entry.index;
            self.coverage.applied += 1;
        }
        let position = self.nodes[node].position;
        self.input(node, |raft, now| raft.on_applied(now, position));
    }

    fn end_snapshot(&mut self, node: usize, send: SnapshotSend, ok: bool) {
        let SnapshotSend { to, term, session, at_least } = send;
        let mut sent = false;
        if ok {
            let meta = self.disks[node].checkpoint.clone();
            assert!(meta.last.index >= at_least, "the log was purged beyond its checkpoint");
            let last = meta.last.index;
            self.input(node, |raft, now| {
                sent = raft.snapshot_begins(now, to.id, session, last);
            });
            if sent {
                let message = Message::InstallSnapshot { session, meta };
                let from = replica(node);
                self.send(node, &Envelope { group: GROUP, from, to, term, message });
            }
        }
        self.input(node, |raft, now| raft.snapshot_sent(now, to.id, session, sent));
    }

    fn end_install(&mut self, node: usize, install: Install, ok: bool) {
        if !ok {
            return self.input(node, |raft, now| raft.on_install_failed(now));
        }
        let handed_out = self.nodes[node].queue.len();
        self.apply(node, handed_out);
        let meta = install.meta;
        assert!(meta.last.index > self.nodes[node].position, "a snapshot went back");
        self.disks[node].install(&meta);
        self.could_start(node);
        self.nodes[node].position = meta.last.index;
        self.coverage.snapshots += 1;
        if self.rng.chance(self.weather.install_crash) {
            // The snapshot is durable; pending log writes are lost.
            self.coverage.install_crashes += 1;
            return self.crash(node);
        }
        self.input(node, |raft, now| raft.on_installed(now, meta));
    }

    /// Runs all events of this tick.
    fn settle(&mut self) {
        let mut rounds = 0;
        loop {
            while let Some(entry) = self.events.first_entry() {
                let (at, _) = *entry.key();
                if at > self.now {
                    break;
                }
                let (node, event) = entry.remove();
                let until = self.nodes[node].paused_until;
                if until > self.now && self.rafts[node].is_some() {
                    self.later(node, until, event);
                } else {
                    self.happen(node, event);
                }
            }
            for node in 0..self.size() {
                let stopped = self.nodes[node].paused_until > self.now;
                let now = self.reading(node);
                let due = |raft: &Raft| raft.next_deadline() <= now;
                if !stopped && self.rafts[node].as_ref().is_some_and(due) {
                    self.input(node, |raft, now| raft.advance(now));
                }
                if !stopped && self.nodes[node].touched {
                    self.drain(node);
                }
            }
            let more = self.events.first_key_value().is_some_and(|(key, _)| key.0 <= self.now);
            if !more {
                return;
            }
            rounds += 1;
            assert!(rounds < 10_000, "the tick {} does not end", self.now);
        }
    }

    /// One tick of time.
    pub fn tick(&mut self) {
        self.settle();
        self.oracle.end_of_tick(self.now);
        for node in 0..self.size() {
            if let Some(raft) = &self.rafts[node]
                && let Some((reading, index)) = raft.freshness()
            {
                self.oracle.age(raft, self.time_of(node, reading), index);
                self.coverage.ages += 1;
            }
        }
        self.now += 1;
    }
}
