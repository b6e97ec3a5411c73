//! Where leaders should be: on the preferred nodes, away from slow disks and from replicas that serve
//! nothing, and elsewhere when the node goes down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_engine::{Engine, Shards};
use quorate_proto::v1::NodePhase;
use quorate_raft::{GroupId, NodeId, ProgressKind, ReplicaId, Status, Term};
use quorate_service::shared::Shared;
use tracing::{debug, info, warn};

use crate::peers::Peers;

/// How often a slow disk and replicas that serve nothing are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often preferences are looked at.
const PREFER_INTERVAL: Duration = Duration::from_secs(1);
/// A preferred leader must have been connected for so long before leadership goes to it.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// A leadership that comes back from the preferred node is offered to it again after two looks, four,
/// and so on to so many, until that one connects anew: its replica may serve nothing, and while
/// leadership goes there and back the shard stands still.
const OFFER_BACKOFF_POLLS_MAX: u32 = 64;
/// A replica that serves nothing hands the same leadership on at most so often: nobody might serve.
const RELIEVE_INTERVAL: Duration = Duration::from_secs(5);
/// A drain gives its leaderships away within this time, or goes on without.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// A leadership that came back so often while the node goes down stays: the others go down too, and
/// would pass it round for as long as they all wait.
const DEPARTURES_MAX: usize = 2;
/// A slow disk sends leaderships off at most so often. Where all disks are slow, as under a load that
/// is too much for each of them, nobody is better off, and a hand-over costs more than it brings.
const FLEE_INTERVAL: Duration = Duration::from_secs(10);

/// Hands leaderships to their preferred nodes, and away from this one while its disk is slow.
pub async fn keep(shared: Arc<Shared>, peers: Arc<Peers>) {
    let slow_disk = shared.config.election_max;
    let mut looked = Instant::now();
    let mut fled: Option<Instant> = None;
    let (mut preferred, mut relieved) = (SentOff::default(), SentOff::default());
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if shared.life.phase() == NodePhase::Draining {
            // The drain alone decides now: a preference for another node would undo it there.
            continue;
        }
        if shared.engine.log_busy_for().is_some_and(|busy| busy > slow_disk) {
            if fled.is_none_or(|fled| fled.elapsed() >= FLEE_INTERVAL) {
                fled = Some(Instant::now());
                warn!("disk: slower than an election timeout, giving leaderships away");
                give_all_away(&shared).await;
            }
            continue;
        }
        relieve(&shared.engine, &mut relieved).await;
        if looked.elapsed() >= PREFER_INTERVAL {
            looked = Instant::now();
            prefer(&shared, &peers, &mut preferred).await;
        }
    }
}

/// Hands on what is led by replicas that serve nothing, because they are damaged or not yet scrubbed:
/// what they propose commits, and nobody here could say so. They take the other replicas in turn,
/// for nothing tells which of those serve.
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
            info!(shard = group.0, to = to.0, "leader: this replica serves nothing, handing over");
            sent.note(group);
            drop(engine.transfer(group, *to));
        }
    }
}

async fn prefer(shared: &Shared, peers: &Peers, sent: &mut SentOff) {
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
        let replicas = match group {
            GroupId(0) => Some(&map.proto().meta_replicas),
            group => map.shard(group).map(|shard| &shard.replicas),
        };
        let Some(preferred) = replicas.and_then(|replicas| replicas.first()) else { continue };
        let (replica, node) = (ReplicaId(preferred.replica_id), NodeId(preferred.node_id));
        let serves = shared.engine.shards().get(group).is_some_and(|shard| shard.serves());
        if node == shared.node || !serves || !caught_up(&status, replica) {
            continue;
        }
        if settled(node).is_some_and(|since| sent.may_offer(group, since)) {
            sent.note(group);
            debug!(shard = group.0, to = node.0, "leader: handing over to the preferred node");
            // The answer only says whether it began; the next look sees how it ended.
            drop(shared.engine.transfer(group, replica));
        }
    }
}

fn leads_any(shards: &Shards) -> bool {
    shards.all().values().any(|shard| shard.leadership().is_leader)
}

/// Whether this replica leads, and the other one has all but what is on its way.
fn caught_up(status: &Status, replica: ReplicaId) -> bool {
    status.progress.iter().any(|other| {
        other.replica == replica
            && other.active
            && other.state == ProgressKind::Replicate
            && other.matched >= status.commit
    })
}

/// The other replica that is furthest, for each group led here.
fn best_targets(status: &[(GroupId, Status)]) -> BTreeMap<GroupId, ReplicaId> {
    let of_group = |(group, status): &(GroupId, Status)| {
        let active = status.progress.iter().filter(|other| other.active);
        let best = active.max_by_key(|other| other.matched)?;
        Some((*group, best.replica))
    };
    status.iter().filter_map(of_group).collect()
}

/// Hands every leadership of this node to the replica that is furthest, where there is one.
pub async fn give_all_away(shared: &Shared) {
    for (group, replica) in best_targets(&shared.engine.status().await) {
        drop(shared.engine.transfer(group, replica));
    }
}

/// Gives all leaderships away before the node goes down. With all nodes going at once there is
/// nobody to keep them: a leadership that comes back too often stays here, and ends with the process.
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
            // Nothing is led here, or there is nobody who could take it.
            break;
        }
        for (group, replica) in targets {
            drop(shared.engine.transfer(group, replica));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    info!(took = ?started.elapsed(), "drain: leaderships given away");
}

/// In which terms each leadership was sent off while the node goes down. One that is led again in
/// another term had left and came back, however fast.
#[derive(Default)]
struct Departures {
    terms: BTreeMap<GroupId, BTreeSet<Term>>,
}

impl Departures {
    /// Whether the leadership of this group in this term is to be sent off; it is noted as such.
    fn may_leave(&mut self, group: GroupId, term: Term) -> bool {
        let terms = self.terms.entry(group).or_default();
        // Sent off already and still here: it is tried again.
        terms.contains(&term) || (terms.len() < DEPARTURES_MAX && terms.insert(term))
    }
}

/// When, and how often, the leadership of each group was sent off from here.
#[derive(Default)]
struct SentOff {
    by_group: BTreeMap<GroupId, (Instant, usize)>,
}

impl SentOff {
    fn note(&mut self, group: GroupId) {
        let times = self.times(group) + 1;
        self.by_group.insert(group, (Instant::now(), times));
    }

    /// Whether a node may be offered the group that has been connected since `since`.
    fn may_offer(&mut self, group: GroupId, since: Instant) -> bool {
        match self.last(group) {
            None => true,
            Some(last) if last < since => {
                self.by_group.remove(&group);
                true
            }
            Some(last) => {
                let looks =
                    2u32.saturating_pow(self.times(group) as u32).min(OFFER_BACKOFF_POLLS_MAX);
                last.elapsed() >= PREFER_INTERVAL * looks
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
    async fn a_replica_that_serves_nothing_takes_no_writes_and_hands_leadership_on() {
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
        // The peer that was not asked in the first turn is asked in the next.
        for turn in 0..2 {
            sent.by_group.insert(GROUP, (Instant::now() - RELIEVE_INTERVAL, turn));
            while sent.times(GROUP) == turn {
                relieve(&node.engine, &mut sent).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let to = turn as u64 + 2;
            node.wait_sent(|e| e.to.id.0 == to && matches!(e.message, Message::TimeoutNow { .. }));
            relieve(&node.engine, &mut sent).await;
            assert_eq!(sent.times(GROUP), turn + 1, "not again at once");
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
        assert!(after(100, 1_001), "it has connected anew since");
        assert_eq!(sent.times(GROUP), 0);
        assert!(sent.may_offer(GROUP, connected));
    }

    #[test]
    fn a_leadership_that_comes_back_while_all_go_down_stays() {
        let mut departures = Departures::default();
        let group = GroupId(1);
        assert!(departures.may_leave(group, Term(3)));
        assert!(departures.may_leave(group, Term(3)), "it has not left yet");
        assert!(departures.may_leave(group, Term(6)), "it came back once");
        assert!(!departures.may_leave(group, Term(9)));
        assert!(departures.may_leave(GroupId(2), Term(9)));
    }
}
