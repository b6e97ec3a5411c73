//! Placement of leaders: on the preferred nodes, away from slow disks and from replicas that do not
//! serve, and on other nodes when this one shuts down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_engine::{Engine, Shards};
use quorate_proto::v1::NodePhase;
use quorate_raft::{GroupId, NodeId, ProgressKind, Replica, ReplicaId, Status, Term};
use quorate_service::shared::Shared;
use tracing::{debug, info, warn};

use crate::peers::Peers;

/// Interval of the checks for a slow disk and for replicas that do not serve.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of the checks for preferred leaders.
const PREFER_INTERVAL: Duration = Duration::from_secs(1);
/// A preferred leader must have been connected for at least this long before it gets a leadership.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Cap of the back-off, in checks (2, 4, 8, …), before a leadership that came back is offered to
/// the preferred node again; reset when that node reconnects. Its replica may not serve, and the
/// shard is unavailable during each transfer.
const OFFER_BACKOFF_POLLS_MAX: u32 = 64;
/// Shortest interval between two transfers of the same leadership by a replica that does not serve:
/// possibly none of the replicas does.
const RELIEVE_INTERVAL: Duration = Duration::from_secs(5);
/// A drain continues after this time even if it still has leaderships.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// After this many transfers during a drain a leadership that comes back stays here: the other
/// nodes shut down too, and would transfer it among themselves until their time-outs.
const DEPARTURES_MAX: usize = 2;
/// Shortest interval between two transfers of all leaderships because of a slow disk. If all disks
/// are slow, as under overload, a transfer has a cost and no benefit.
const FLEE_INTERVAL: Duration = Duration::from_secs(10);

/// Transfers leaderships to their preferred nodes, and away from this one while its disk is slow.
pub async fn keep(shared: Arc<Shared>, peers: Arc<Peers>) {
    let slow_disk = shared.config.election_max;
    let mut looked = Instant::now();
    let mut fled: Option<Instant> = None;
    let (mut preferred, mut relieved) = (SentOff::default(), SentOff::default());
    let mut held = Held::default();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if shared.life.phase() == NodePhase::Draining {
            // Only the drain decides now: a preference could undo its transfers.
            continue;
        }
        if shared.engine.disk_busy_for() > slow_disk {
            if fled.is_none_or(|fled| fled.elapsed() >= FLEE_INTERVAL) {
                fled = Some(Instant::now());
                warn!("disk: slower than an election timeout; transferring all leaderships");
                give_all_away(&shared).await;
            }
            continue;
        }
        relieve(&shared.engine, &mut relieved).await;
        if looked.elapsed() >= PREFER_INTERVAL {
            looked = Instant::now();
            prefer(&shared, &peers, &mut preferred, &mut held).await;
        }
    }
}

/// Transfers the leaderships of replicas that do not serve, because they are damaged or not yet
/// scrubbed: their proposals commit, but they cannot answer the clients. The targets are the other
/// replicas in turn, because it is unknown here which of those serve.
async fn relieve(engine: &Engine, sent: &mut SentOff) {
    let shards = engine.shards().all();
    let unserved = shards.values().filter(|s| s.leadership().is_leader && !s.serves());
    let due: BTreeSet<GroupId> = unserved
        .map(|shard| shard.group)
        .filter(|group| sent.last(*group).is_none_or(|last| last.elapsed() >= RELIEVE_INTERVAL))
        .collect();
    if due.is_empty() {
        return;
    }
    for (group, status) in engine.status().await {
        if !due.contains(&group) {
            continue;
        }
        let others: Vec<_> = status.progress.iter().map(|other| other.replica).collect();
        let able: Vec<_> = others.into_iter().filter(|other| caught_up(&status, *other)).collect();
        let turn = sent.times(group) % able.len().max(1);
        if let Some(to) = able.get(turn) {
            info!(shard = group.0, to = to.0, "leader: transferring, this replica does not serve");
            sent.note(group);
            drop(engine.transfer(group, *to));
        }
    }
}

/// Transfers leaderships to their preferred nodes, but for those that a client has placed here.
async fn prefer(shared: &Shared, peers: &Peers, sent: &mut SentOff, held: &mut Held) {
    let Some(map) = shared.map.get() else { return };
    let connected = peers.connected();
    let settled = |node: NodeId| {
        let since = connected.get(&node).map(|(_, since)| *since);
        since.filter(|since| since.elapsed() >= SETTLED_AFTER)
    };
    if !leads_any(shared.engine.shards()) {
        return;
    }
    for (group, status) in shared.engine.status().await {
        let Some(Replica { id: replica, node }) = map.preferred_leader(group) else { continue };
        let serves = shared.engine.shards().get(group).is_some_and(|shard| shard.serves());
        if node == shared.node || !serves || !caught_up(&status, replica) {
            continue;
        }
        if !held.as_before(group, status.term) || shared.transfers.keeps(group, status.term) {
            continue;
        }
        if settled(node).is_some_and(|since| sent.may_offer(group, since)) {
            sent.note(group);
            debug!(shard = group.0, to = node.0, "leader: transferring to the preferred node");
            // The answer shows only whether the transfer began; the next check sees its result.
            drop(shared.engine.transfer(group, replica));
        }
    }
}

/// The terms of the leaderships at the last check. A client that has one placed says so to the new
/// leader only when it leads: what has just come is not given away yet.
#[derive(Default)]
struct Held {
    terms: BTreeMap<GroupId, Term>,
}

impl Held {
    /// Whether the leadership was here in this term at the check before.
    fn as_before(&mut self, group: GroupId, term: Term) -> bool {
        self.terms.insert(group, term) == Some(term)
    }
}

fn leads_any(shards: &Shards) -> bool {
    shards.all().values().any(|shard| shard.leadership().is_leader)
}

/// Whether this replica leads, and the other one lacks at most entries in flight.
fn caught_up(status: &Status, replica: ReplicaId) -> bool {
    status.progress.iter().any(|other| {
        other.replica == replica
            && other.active
            && other.state == ProgressKind::Replicate
            && other.matched >= status.commit
    })
}

/// The other replica with the highest match index, for each group led here.
fn best_targets(status: &[(GroupId, Status)]) -> BTreeMap<GroupId, ReplicaId> {
    let of_group = |(group, status): &(GroupId, Status)| {
        let active = status.progress.iter().filter(|other| other.active);
        let best = active.max_by_key(|other| other.matched)?;
        Some((*group, best.replica))
    };
    status.iter().filter_map(of_group).collect()
}

/// Transfers every leadership of this node to the most advanced other replica, if there is one.
pub async fn give_all_away(shared: &Shared) {
    for (group, replica) in best_targets(&shared.engine.status().await) {
        drop(shared.engine.transfer(group, replica));
    }
}

/// Transfers all leaderships before the node shuts down. If all nodes shut down together, no node
/// can keep them: a leadership that comes back too often stays here, and ends with the process.
pub async fn drain(shared: &Shared) {
    let started = Instant::now();
    let mut departures = Departures::default();
    while started.elapsed() < DRAIN_TIMEOUT {
        let status = shared.engine.status().await;
        let terms: BTreeMap<GroupId, Term> =
            status.iter().map(|(group, status)| (*group, status.term)).collect();
        let mut targets = best_targets(&status);
        targets.retain(|group, _| departures.may_leave(*group, terms[group]));
        if targets.is_empty() {
            // No group is led here, or no other replica is active.
            break;
        }
        for (group, replica) in targets {
            drop(shared.engine.transfer(group, replica));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    info!(took = ?started.elapsed(), "drain: leaderships transferred");
}

/// The terms in which each leadership was transferred during the drain. A leadership in another
/// term had left and came back, however fast.
#[derive(Default)]
struct Departures {
    terms: BTreeMap<GroupId, BTreeSet<Term>>,
}

impl Departures {
    /// Whether to transfer the leadership of this group in this term; records that it is.
    fn may_leave(&mut self, group: GroupId, term: Term) -> bool {
        let terms = self.terms.entry(group).or_default();
        // Transferred already and still here: try again.
        terms.contains(&term) || (terms.len() < DEPARTURES_MAX && terms.insert(term))
    }
}

/// Time of the last transfer, and number of transfers, of each leadership from here.
#[derive(Default)]
struct SentOff {
    by_group: BTreeMap<GroupId, (Instant, usize)>,
}

impl SentOff {
    fn note(&mut self, group: GroupId) {
        let times = self.times(group) + 1;
        self.by_group.insert(group, (Instant::now(), times));
    }

    /// Whether to offer the group to a node that has been connected since `since`.
    fn may_offer(&mut self, group: GroupId, since: Instant) -> bool {
        match self.last(group) {
            None => true,
            Some(last) if last < since => {
                self.by_group.remove(&group);
                true
            }
            Some(last) => {
                let checks =
                    2u32.saturating_pow(self.times(group) as u32).min(OFFER_BACKOFF_POLLS_MAX);
                last.elapsed() >= PREFER_INTERVAL * checks
            }
        }
    }

    fn last(&self, group: GroupId) -> Option<Instant> {
        self.by_group.get(&group).map(|(last, _)| *last)
    }

    fn times(&self, group: GroupId) -> usize {
        self.by_group.get(&group).map_or(0, |(_, times)| *times)
    }
}

#[cfg(test)]
mod tests {
    use quorate_engine::testing::{GROUP, Node};
    use quorate_engine::{Answer, RefusedProposal};
    use quorate_raft::Message;
    use quorate_service::route::{LeaderLocation, leader_of};

    use super::*;

    #[tokio::test]
    async fn a_replica_that_does_not_serve_rejects_writes_and_transfers_its_leadership() {
        let node = Node::start();
        let shard = node.lead(GROUP, 3);
        assert_eq!(leader_of(&shard, shard.leadership()), LeaderLocation::Here);
        shard.set_damaged("a test");
        assert_eq!(leader_of(&shard, shard.leadership()), LeaderLocation::LocalNotReady);
        let answer = node.propose(GROUP, vec![]).await;
        assert!(
            matches!(answer, Ok(Answer::Refused(RefusedProposal::LocalNotReady))),
            "{answer:?}"
        );

        let mut sent = SentOff::default();
        // The second transfer goes to the peer that was not the target of the first.
        for turn in 0..2 {
            sent.by_group.insert(GROUP, (Instant::now() - RELIEVE_INTERVAL, turn));
            while sent.times(GROUP) == turn {
                relieve(&node.engine, &mut sent).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let to = turn as u64 + 2;
            node.wait_sent(|e| e.to.id.0 == to && matches!(e.message, Message::TimeoutNow { .. }));
            relieve(&node.engine, &mut sent).await;
            assert_eq!(sent.times(GROUP), turn + 1, "not again immediately");
        }
        node.engine.stop();
    }

    #[test]
    fn a_leadership_that_comes_back_is_offered_less_and_less_often() {
        let mut sent = SentOff::default();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let connected = now - 1_000 * second;
        let mut after = |times: usize, seconds: u32| {
            sent.by_group.insert(GROUP, (now - seconds * second, times));
            sent.may_offer(GROUP, connected)
        };
        assert!(!after(1, 1) && after(1, 2));
        assert!(!after(3, 7) && after(3, 8));
        assert!(!after(100, 63) && after(100, 64));
        assert!(after(100, 1_001), "it has reconnected since");
        assert_eq!(sent.times(GROUP), 0);
        assert!(sent.may_offer(GROUP, connected));
    }

    #[test]
    fn a_leadership_that_has_just_come_is_kept_until_the_next_check() {
        let mut held = Held::default();
        assert!(!held.as_before(GROUP, Term(3)));
        assert!(held.as_before(GROUP, Term(3)));
        assert!(!held.as_before(GROUP, Term(5)), "it left and came back");
        assert!(held.as_before(GROUP, Term(5)));
    }

    #[test]
    fn a_leadership_that_comes_back_while_all_nodes_shut_down_stays() {
        let mut departures = Departures::default();
        let group = GroupId(1);
        assert!(departures.may_leave(group, Term(3)));
        assert!(departures.may_leave(group, Term(3)), "it has not left yet");
        assert!(departures.may_leave(group, Term(6)), "it came back once");
        assert!(!departures.may_leave(group, Term(9)));
        assert!(departures.may_leave(GroupId(2), Term(9)));
    }
}
