//! The cluster behind the golden scripts. Nothing happens by itself: time passes with `tick`,
//! messages arrive with `deliver` or `run`, and writes complete immediately unless a node is
//! `manual`.
//!
//! - `cluster voters=1,2,3 …`: new replicas; also `outgoing=`, `learners=`, `next=`, and settings.
//! - `replica 2 term=3 vote=1 commit=1 base=1@1 log=2@1,3@2`: replaces a replica's disk, starts it.
//! - `elect 1`: replica 1 wins an election, and all messages are delivered.
//! - `tick 10 [1 2]`: time passes for all, and `advance` is called at all replicas or at those
//!   named.
//! - `timeout 1`: the election timeout as an input.
//! - `propose 1 a b`, `read 2 7`, `transfer 1 2`, `clock 1 99`: calls at a replica.
//! - `deliver [filter]`, `drop [filter]`, `repeat [filter]`: queued messages that match, such as
//!   `1->2 Append`.
//! - `run`: delivers until no message is queued.
//! - `step 2 1@3 Heartbeat commit=1`: an injected message, from replica 1 in term 3.
//! - `manual 1`, `persist 1 [n]`, `write 1 [n]`, `report 1 sequence`: writes completed by hand.
//! - `lazy 1`, `apply 1 4`: applying by hand.
//! - `compact 1 5`, `snapshot 1`, `snapshot-fails 1`, `delivered 1`, `installed 2`,
//!   `install-fails 2`: logs and snapshots.
//! - `unreachable 1 2`, `crash 1`, `start 1`: faults.
//! - `status 1`, `log 1`, `progress 1`, `deadline 1`, `clocks 1`, `freshness 1`, `queue`: show
//!   state.

mod parse;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use quorate_raft::invariants::{check_delta, check_state};
use quorate_raft::{
    Config, Envelope, Event, GroupId, Index, Install, LogId, Membership, Message, NodeId, Output,
    Persist, PersistToken, Raft, ReadId, ReadOutcome, Replica, ReplicaId, SnapshotMeta,
    SnapshotSend, Ticks,
};

use crate::disk::{Disk, Write};

pub const GROUP: GroupId = GroupId(1);

#[derive(Default)]
pub struct Script {
    now: u64,
    config: Config,
    nodes: BTreeMap<u64, Node>,
    network: Vec<Envelope>,
    effects: String,
}

struct Node {
    raft: Option<Raft>,
    disk: Disk,
    /// Tokens of writes that are durable but not reported.
    unreported: Vec<PersistToken>,
    manual: bool,
    lazy: bool,
    starts: u64,
    snapshot: Option<SnapshotSend>,
    install: Option<Install>,
}

pub fn replica(id: u64) -> Replica {
    Replica::new(ReplicaId(id), NodeId(id))
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is not a number"))
}

impl Script {
    /// Runs one command and returns its effects, a line each.
    pub fn run(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        let (&name, args) = words.split_first().expect("a command has a name");
        match name {
            "cluster" => self.cluster(args),
            "replica" => self.replace(args),
            "elect" => {
                self.input(number(args[0]), |raft, now| raft.election_timeout(now));
                self.settle();
            }
            "tick" => self.tick(args),
            "deliver" | "drop" | "repeat" => self.network(name, args),
            "run" => self.settle(),
            "step" => {
                let envelope = parse::envelope(args);
                self.input(envelope_to(args), |raft, now| raft.step(now, envelope));
            }
            "queue" => {
                for envelope in &self.network {
                    writeln!(self.effects, "{envelope}").expect("a string grows");
                }
            }
            _ => self.node_command(name, number(args[0]), &args[1..]),
        }
        std::mem::take(&mut self.effects)
    }

    fn node_command(&mut self, name: &str, id: u64, args: &[&str]) {
        match name {
            "timeout" => self.input(id, |raft, now| raft.election_timeout(now)),
            "propose" => self.propose(id, args),
            "read" => {
                let mut result = Ok(());
                let read = ReadId(number(args[0]));
                self.input(id, |raft, now| result = raft.read_index(now, read));
                self.refusal(id, result.err());
            }
            "transfer" => {
                let mut result = Ok(());
                let to = ReplicaId(number(args[0]));
                self.input(id, |raft, now| result = raft.transfer_leader(now, to));
                self.refusal(id, result.err());
            }
            "clock" => self.raft(id).set_clock(number(args[0])),
            "unreachable" => {
                let peer = ReplicaId(number(args[0]));
                self.input(id, |raft, now| raft.unreachable(now, peer));
            }
            "compact" => {
                let mut base = LogId::ZERO;
                let through = Index(number(args[0]));
                self.node(id).disk.checkpoint.last = self.raft(id).entry_id(through).expect("kept");
                self.input(id, |raft, _| base = raft.compact(through));
                self.node(id).disk.purge(base);
                self.line(id, &format!("keeps the log after {base}"));
            }
            "manual" => self.node(id).manual = true,
            "lazy" => self.node(id).lazy = true,
            "apply" => {
                let index = Index(number(args[0]));
                self.input(id, |raft, now| raft.on_applied(now, index));
            }
            "persist" | "write" => {
                let all = self.node(id).disk.writes.len() as u64;
                let count = args.first().map_or(all, |word| number(word));
                for _ in 0..count {
                    self.complete_write(id, name == "persist");
                }
            }
            "report" => self.report(id, number(args[0])),
            "crash" => {
                self.node(id).disk.crash();
                self.node(id).unreported.clear();
                self.node(id).raft = None;
            }
            "start" => self.start(id),
            "snapshot" | "snapshot-fails" | "delivered" => self.snapshot(name, id),
            "installed" | "install-fails" => self.install(name, id),
            _ => self.show(name, id),
        }
    }

    fn show(&mut self, what: &str, id: u64) {
        let status = self.raft(id).status();
        let text = match what {
            "status" => {
                let leader = status.leader.map_or("none".to_owned(), |leader| leader.to_string());
                let vote = self.raft(id).vote().map_or("none".to_owned(), |vote| vote.to_string());
                let (commit, durable) = (status.commit, status.persisted);
                format!(
                    "{} term={} vote={vote} leader={leader} commit={commit} durable={durable} \
                     applied={} last={}",
                    status.role, status.term, status.applied, status.last
                )
            }
            "log" => {
                let ids = (status.base.index.0..=status.last.index.0)
                    .filter_map(|index| self.raft(id).entry_id(Index(index)));
                let ids: Vec<_> = ids.map(|id| id.to_string()).collect();
                format!("log {} members {}", ids.join(" "), self.raft(id).membership())
            }
            "deadline" => format!("deadline in {}", self.raft(id).next_deadline().0 - self.now),
            "clocks" => {
                let clocks = self.raft(id).clocks();
                let clocks: Vec<_> =
                    clocks.iter().map(|(id, clock, _)| format!("{id}={clock}")).collect();
                format!("clocks {}", clocks.join(" "))
            }
            "freshness" => match self.raft(id).freshness() {
                Some((at, index)) => {
                    format!("with {index} applied is at most {} ticks old", self.now - at.0)
                }
                None => "does not know its age".to_owned(),
            },
            "progress" => {
                let members = status.progress.iter().map(|progress| {
                    format!(
                        "{}={:?}/{}/{}/{}",
                        progress.replica,
                        progress.state,
                        progress.matched,
                        progress.next,
                        progress.inflight
                    )
                });
                format!("progress {}", members.collect::<Vec<_>>().join(" "))
            }
            other => panic!("unknown command {other:?}"),
        };
        self.line(id, &text);
    }

    // --- Commands ----------------------------------------------------------------------------

    fn cluster(&mut self, args: &[&str]) {
        // A fixed timeout: the script chooses which replica is first.
        self.config = Config { election_max: Ticks(61), ..Config::default() };
        let (membership, settings) = parse::membership(args);
        for (name, value) in settings {
            parse::setting(&mut self.config, &name, &value);
        }
        self.now = 1_000;
        for member in membership.replicas() {
            let disk = Disk::new(membership.clone());
            self.nodes.insert(member.id.0, Node::new(disk));
            self.start(member.id.0);
        }
    }

    fn replace(&mut self, args: &[&str]) {
        let id = number(args[0]);
        let known = self.nodes.values().next().map(|node| node.disk.checkpoint.membership.clone());
        let disk = parse::disk(&args[1..], known.unwrap_or_default());
        self.nodes.insert(id, Node::new(disk));
        self.start(id);
    }

    fn start(&mut self, id: u64) {
        let (config, now) = (self.config.clone(), Ticks(self.now));
        let node = self.node(id);
        node.starts += 1;
        let (seed, restored) = (id * 100 + node.starts, node.disk.restore());
        match Raft::new(config, GROUP, replica(id), seed, restored, now) {
            Ok(raft) => node.raft = Some(raft),
            Err(error) => self.line(id, &format!("refuses to start: {error}")),
        }
        if self.node(id).raft.is_some() {
            self.drain(id);
        }
    }

    fn tick(&mut self, args: &[&str]) {
        self.now += number(args[0]);
        let named: Vec<_> = args[1..].iter().map(|word| number(word)).collect();
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        for id in ids {
            if (named.is_empty() || named.contains(&id)) && self.node(id).raft.is_some() {
                self.input(id, |raft, now| raft.advance(now));
            }
        }
    }

    fn propose(&mut self, id: u64, payloads: &[&str]) {
        let mut refused = None;
        self.input(id, |raft, now| {
            for payload in payloads {
                // `*100` means a payload of that many bytes.
                let payload = match payload.strip_prefix('*') {
                    Some(size) => Bytes::from(vec![b'.'; number(size) as usize]),
                    None => Bytes::copy_from_slice(payload.as_bytes()),
                };
                if let Err(error) = raft.propose(now, payload, 0) {
                    refused = Some(error);
                    break;
                }
            }
        });
        self.refusal(id, refused);
    }

    fn network(&mut self, action: &str, filter: &[&str]) {
        let queued = std::mem::take(&mut self.network);
        let (chosen, rest): (Vec<_>, Vec<_>) =
            queued.into_iter().partition(|envelope| parse::matches(envelope, filter));
        assert!(!chosen.is_empty(), "nothing to {action} for {filter:?}");
        self.network = rest;
        match action {
            "deliver" => chosen.into_iter().for_each(|envelope| self.arrive(envelope)),
            "repeat" => self.network.extend(chosen.iter().chain(&chosen).cloned()),
            _ => {}
        }
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            if self.network.is_empty() {
                return;
            }
            for envelope in std::mem::take(&mut self.network) {
                self.arrive(envelope);
            }
        }
        panic!("the cluster never stops sending messages");
    }

    fn arrive(&mut self, envelope: Envelope) {
        let to = envelope.to.node.0;
        if self.nodes.get(&to).is_some_and(|node| node.raft.is_some()) {
            self.input(to, |raft, now| raft.step(now, envelope));
        }
    }

    fn snapshot(&mut self, how: &str, id: u64) {
        let send = self.node(id).snapshot.expect("a snapshot was asked for");
        let SnapshotSend { to, term, session, .. } = send;
        if how == "snapshot" {
            let meta = self.node(id).disk.checkpoint.clone();
            let message = Message::InstallSnapshot { session, meta };
            self.network.push(Envelope { group: GROUP, from: replica(id), to, term, message });
        }
        let ok = how != "snapshot-fails";
        self.input(id, |raft, now| raft.snapshot_sent(now, to.id, session, ok));
    }

    fn install(&mut self, how: &str, id: u64) {
        let meta: SnapshotMeta = self.node(id).install.take().expect("a snapshot arrived").meta;
        if how == "installed" {
            self.node(id).disk.install(&meta);
            self.input(id, |raft, now| raft.on_installed(now, meta));
        } else {
            self.input(id, |raft, now| raft.on_install_failed(now));
        }
    }

    fn complete_write(&mut self, id: u64, report: bool) {
        let persist = self.node(id).disk.complete_one().expect("a write is under way");
        for envelope in persist.send_after {
            self.line(id, &format!("sends, now durable: {envelope}"));
            self.network.push(envelope);
        }
        self.node(id).unreported.push(persist.token);
        if report {
            self.report(id, persist.token.sequence());
        }
    }

    fn report(&mut self, id: u64, sequence: u64) {
        let tokens = &mut self.node(id).unreported;
        let position = tokens.iter().position(|token| token.sequence() == sequence);
        let token = tokens.remove(position.expect("the write is durable"));
        self.input(id, |raft, now| raft.on_persisted(now, token));
    }

    // --- Effects -----------------------------------------------------------------------------

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("unknown replica {id}"))
    }

    fn raft(&mut self, id: u64) -> &mut Raft {
        self.node(id).raft.as_mut().unwrap_or_else(|| panic!("replica {id} is down"))
    }

    fn line(&mut self, id: u64, text: &str) {
        writeln!(self.effects, "r{id} {text}").expect("a string grows");
    }

    fn refusal(&mut self, id: u64, error: Option<impl std::fmt::Display>) {
        if let Some(error) = error {
            self.line(id, &format!("refuses: {error}"));
        }
    }

    fn input(&mut self, id: u64, input: impl FnOnce(&mut Raft, Ticks)) {
        let now = Ticks(self.now);
        let raft = self.raft(id);
        let before = raft.clone();
        input(raft, now);
        check_state(raft);
        check_delta(&before, raft);
        self.drain(id);
    }

    fn drain(&mut self, id: u64) {
        for _ in 0..100 {
            if !self.raft(id).has_output() {
                return;
            }
            let output = self.raft(id).take_output();
            check_state(self.raft(id));
            self.carry_out(id, output);
        }
        panic!("replica {id} never runs out of output");
    }

    fn carry_out(&mut self, id: u64, output: Output) {
        let Output { send, persist, committed, reads, snapshots, install, events } = output;
        for event in events {
            self.event(id, event);
        }
        for envelope in send {
            self.line(id, &format!("sends {envelope}"));
            self.network.push(envelope);
        }
        for (read, outcome) in reads {
            match outcome {
                ReadOutcome::Ready(index) => self.line(id, &format!("read {} at {index}", read.0)),
                ReadOutcome::Dropped => self.line(id, &format!("read {} dropped", read.0)),
            }
        }
        for send in snapshots {
            self.line(id, &format!("needs a snapshot for {} from {}", send.to, send.at_least));
            self.node(id).snapshot = Some(send);
        }
        if let Some(install) = install {
            self.line(id, &format!("has a snapshot to install: {}", install.meta.last));
            self.node(id).install = Some(install);
        }
        if !committed.is_empty() {
            let entries: Vec<_> = committed.iter().map(|entry| format!("[{entry}]")).collect();
            self.line(id, &format!("applies {}", entries.join(" ")));
        }
        if let Some(persist) = persist {
            self.persist(id, persist);
        }
        if let Some(last) = committed.last()
            && !self.node(id).lazy
        {
            let now = Ticks(self.now);
            self.raft(id).on_applied(now, last.index);
        }
    }

    fn persist(&mut self, id: u64, persist: Persist) {
        let mut text = format!("writes #{}", persist.token.sequence());
        if let Some(hard_state) = persist.hard_state {
            write!(text, " {hard_state}").expect("a string grows");
        }
        if let Some(reset) = persist.reset {
            write!(text, " reset={reset}").expect("a string grows");
        }
        for entry in &persist.entries {
            write!(text, " [{entry}]").expect("a string grows");
        }
        self.line(id, &text);
        self.node(id).disk.writes.push_back(Write { persist, void: false });
        if !self.node(id).manual {
            self.complete_write(id, true);
        }
    }

    fn event(&mut self, id: u64, event: Event) {
        let text = match event {
            Event::Role { term, role, leader: Some(leader) } if leader.id.0 != id => {
                format!("is {role} of {leader} in term {term}")
            }
            Event::Role { term, role, .. } => format!("is {role} in term {term}"),
            Event::NoTermLeft => "has no term left to stand for election in".to_owned(),
            Event::QuorumLost { term } => format!("lost its quorum in term {term}"),
            Event::Transfer { to, end } => format!("ends the transfer to {to}: {end:?}"),
            Event::ReplicaGone { replica } => format!("learns that {replica} is gone"),
            Event::Regress { replica, acknowledged, agreement } => {
                format!("finds {replica} regressed from {acknowledged} to {agreement}")
            }
            Event::Stopped { fault } => format!("stops: {fault}"),
            Event::Malformed { leader, before, found } => {
                format!("drops what {leader} sends: {found} after {before}")
            }
            Event::Membership { .. } => format!("has members {}", self.raft(id).membership()),
        };
        self.line(id, &text);
    }
}

impl Node {
    fn new(disk: Disk) -> Self {
        Self {
            raft: None,
            disk,
            unreported: Vec::new(),
            manual: false,
            lazy: false,
            starts: 0,
            snapshot: None,
            install: None,
        }
    }
}

fn envelope_to(args: &[&str]) -> u64 {
    // `step 2:9 …` gives replica 2 a message addressed to replica 9.
    number(args[0].split(':').next().expect("a first part"))
}

/// The ids in a comma-separated list; used by the parser too.
pub fn members(ids: &str) -> impl Iterator<Item = u64> {
    ids.split(',').filter(|id| !id.is_empty()).map(number)
}

pub fn of_voters(ids: &str) -> Membership {
    Membership::of_voters(members(ids).map(replica))
}
