use super::*;
use crate::wire::{
    DigestMark, DiskStatus, MapNode, MapReplica, MapShard, PeerStatus, ReplicaProgress,
};

fn replica_ids(nodes: &[u64]) -> Vec<MapReplica> {
    let replica = |node: &u64| MapReplica { replica_id: *node, node_id: *node, role: 0 };
    nodes.iter().map(replica).collect()
}

pub fn map(shards: u64) -> ClusterMap {
    let nodes = (1..=3).map(|id| MapNode {
        id,
        client_address: format!("127.0.0.1:740{id}"),
        ..Default::default()
    });
    let shards = (1..=shards).map(|id| MapShard {
        id,
        replicas: replica_ids(&[1, 2, 3]),
        ..Default::default()
    });
    ClusterMap {
        epoch: 1,
        nodes: nodes.collect(),
        shards: shards.collect(),
        meta_replicas: replica_ids(&[1, 2, 3]),
        replicas_wanted: 3,
        ..Default::default()
    }
}

fn follower(shard: u64, leader: u64) -> ReplicaStatus {
    ReplicaStatus {
        shard,
        role: ReplicaRole::Follower.into(),
        term: 4,
        leader_node_id: leader,
        commit: 100,
        applied: 90,
        voters: replica_ids(&[1, 2, 3]),
        ..Default::default()
    }
}

fn leader(shard: u64, node: u64, hears: &[u64]) -> ReplicaStatus {
    let others = (1..=3).filter(|other| *other != node);
    let progress = others.map(|other| ReplicaProgress {
        replica_id: other,
        node_id: other,
        matched: 95,
        active: hears.contains(&other),
        snapshot: false,
    });
    ReplicaStatus {
        role: ReplicaRole::Leader.into(),
        applied: 100,
        keys: 7,
        bytes: 700,
        progress: progress.collect(),
        ..follower(shard, node)
    }
}

fn answer(node: u64, replicas: Vec<ReplicaStatus>) -> Answer {
    let status = GetStatusResponse {
        node_id: node,
        phase: NodePhase::Ready.into(),
        ready: true,
        live: true,
        replicas,
        ..Default::default()
    };
    let address = format!("127.0.0.1:740{node}");
    Answer { id: Some(node), address, status: Ok(status), refused: false }
}

pub fn silent(node: u64) -> Answer {
    Answer {
        id: Some(node),
        address: format!("127.0.0.1:740{node}"),
        status: Err("connection refused".into()),
        refused: false,
    }
}

pub fn healthy_three() -> Vec<Answer> {
    vec![
        answer(1, vec![leader(0, 1, &[2, 3]), leader(1, 1, &[2, 3]), follower(2, 2)]),
        answer(2, vec![follower(0, 1), follower(1, 1), leader(2, 2, &[1, 3])]),
        answer(3, vec![follower(0, 1), follower(1, 1), follower(2, 2)]),
    ]
}

#[test]
fn a_healthy_cluster_has_no_problems() {
    let view = View::of(healthy_three(), Some(map(2)));
    assert_eq!(view.sentence(), "2 of 2 shards serve; 3 of 3 nodes answer");
    assert!(view.problems().is_empty(), "{:?}", view.problems());
    assert!(view.healthy());
    let shard = &view.shards[1];
    assert_eq!((shard.id, shard.leader, shard.term), (1, Some(1), 4));
    assert_eq!((shard.commit, shard.applied, shard.keys, shard.bytes), (100, 100, 7, 700));
    assert_eq!(shard.lag.unwrap().0, 10);
}

#[test]
fn a_shard_without_a_leader_is_in_the_sentence() {
    let lonely =
        ReplicaStatus { leaderless_for: Duration::from_secs(4).try_into().ok(), ..follower(3, 0) };
    let view = View::of(
        vec![
            silent(1),
            answer(2, vec![leader(0, 2, &[3]), leader(1, 2, &[3]), leader(2, 2, &[3]), lonely]),
            silent(3),
        ],
        Some(map(3)),
    );
    assert_eq!(
        view.sentence(),
        "2 of 3 shards serve; shard 3 has no leader for 4 s (needs 2 of n1 n2 n3; has n2); \
         1 of 3 nodes answers"
    );
    assert_eq!(
        view.problems()[1..],
        [
            "n1 (127.0.0.1:7401) does not answer: connection refused",
            "n3 (127.0.0.1:7403) does not answer: connection refused"
        ]
    );
    assert!(!view.healthy());
    // Problems first.
    assert_eq!(
        view.nodes.iter().map(|node| node.id).collect::<Vec<_>>(),
        [Some(1), Some(3), Some(2)]
    );
    // n1 does not answer; the leader of shard 1 knows its progress.
    assert_eq!(view.shards[1].lag.unwrap().0, 5);
}

#[test]
fn a_node_without_a_place_for_a_client_is_not_called_silent() {
    let full = |node| Answer { status: Err("it serves 5".into()), refused: true, ..silent(node) };
    let mut answers = healthy_three();
    // The others are connected to it, and that is not the point.
    let peers = vec![PeerStatus { node_id: 3, connected: true, ..Default::default() }];
    answers[0].status.as_mut().unwrap().peers = peers;
    answers[2] = full(3);
    let view = View::of(answers, Some(map(2)));
    let sentence = "2 of 2 shards serve; 2 of 3 nodes answer; n3 refuses this client";
    assert_eq!(view.sentence(), sentence);
    let problem = "n3 (127.0.0.1:7403) is up and refuses this client: it serves 5";
    assert_eq!(view.problems(), [problem]);

    let view = View::of(vec![full(1), full(2), silent(3)], Some(map(2)));
    assert_eq!(view.sentence(), "no node answers: n1 n2 refuse this client");
    let view = View::of(vec![Answer { id: None, ..full(1) }], None);
    assert_eq!(view.sentence(), "no node answers: its node refuses this client");
}

#[test]
fn shards_in_the_same_trouble_are_named_together() {
    let replicas = (0..=5).map(|shard| follower(shard, 0)).collect();
    let view = View::of(vec![answer(1, replicas), silent(2), silent(3)], Some(map(5)));
    assert_eq!(
        view.sentence(),
        "0 of 5 shards serve; the meta group has no leader (needs 2 of n1 n2 n3; has n1); shards \
         1–5 have no leader (needs 2 of n1 n2 n3; has n1); 1 of 3 nodes answers"
    );
}

#[test]
fn a_leader_that_hears_no_quorum_does_not_serve() {
    let mut answers = healthy_three();
    let Ok(status) = &mut answers[0].status else { unreachable!() };
    status.replicas[1] = leader(1, 1, &[]);
    let view = View::of(answers, Some(map(2)));
    assert_eq!(view.shards[1].trouble, Some(Trouble::NoQuorum { leader: 1 }));
    assert!(view.sentence().contains("shard 1 is led by n1, which hears from no quorum"));
}

#[test]
fn a_deposed_leader_is_ignored() {
    let mut answers = healthy_three();
    let Ok(status) = &mut answers[2].status else { unreachable!() };
    let mut deposed = leader(1, 3, &[1, 2]);
    deposed.term = 3;
    status.replicas[1] = deposed;
    assert_eq!(View::of(answers, Some(map(2))).shards[1].leader, Some(1));
}

#[test]
fn a_leader_that_does_not_answer_is_named() {
    let mut answers = healthy_three();
    answers[1] = silent(2);
    let view = View::of(answers, Some(map(2)));
    assert_eq!(view.shards[2].trouble, Some(Trouble::LeaderSilent { leader: 2 }));
    assert!(view.sentence().contains("shard 2 is led by n2, which does not answer"));
}

#[test]
fn a_leader_that_only_this_client_cannot_reach_serves() {
    let mut answers = healthy_three();
    answers[1] = silent(2);
    answers[2] = silent(3);
    let Ok(status) = &mut answers[0].status else { unreachable!() };
    let peer = |node_id| PeerStatus { node_id, connected: true, ..Default::default() };
    status.peers = vec![peer(2), peer(3)];
    let view = View::of(answers.clone(), Some(map(2)));
    assert_eq!(
        view.sentence(),
        "2 of 2 shards serve; 1 of 3 nodes answers; n2 n3 cannot be reached from here"
    );
    assert!(view.healthy());
    assert_eq!(view.shards[2].leader, Some(2));
    assert_eq!(
        view.problems(),
        ["n2", "n3"].map(|node| {
            let place = node.replace('n', "127.0.0.1:740");
            format!("{node} ({place}) cannot be reached from here: connection refused")
        })
    );

    // An open connection without traffic does not show that the peer is alive.
    let Ok(status) = &mut answers[0].status else { unreachable!() };
    status.peers[0].silent_for = Duration::from_secs(3).try_into().ok();
    let view = View::of(answers, Some(map(2)));
    assert_eq!(view.shards[2].trouble, Some(Trouble::LeaderSilent { leader: 2 }));
    assert!(view.sentence().ends_with("1 of 3 nodes answers; n3 cannot be reached from here"));
}

#[test]
fn unhealthy_nodes_and_replicas_are_problems_though_all_shards_serve() {
    let mut answers = healthy_three();
    let Ok(status) = &mut answers[2].status else { unreachable!() };
    status.phase = NodePhase::StorageFailed.into();
    status.detail = "sled panicked".into();
    status.replicas[2].health = ReplicaHealth::Damaged.into();
    let view = View::of(answers, Some(ClusterMap { replicas_wanted: 5, ..map(2) }));
    assert_eq!(
        view.sentence(),
        "2 of 2 shards serve; 3 of 3 nodes answer; n3 could not open its storage"
    );
    assert!(view.healthy());
    assert_eq!(
        view.problems(),
        [
            "n3 (127.0.0.1:7403) could not open its storage: sled panicked",
            "the replica of shard 2 on n3 is damaged",
            "UNDER_REPLICATED: shards 1 2 have fewer than 5 replicas",
        ]
    );
}

#[test]
fn without_a_report_the_voters_are_those_of_the_map() {
    let mut map = map(1);
    map.shards[0].replicas[2].role = 1;
    assert_eq!(voters(1, None, Some(&map)), [1, 2]);
    assert_eq!(voters(META, None, Some(&map)), [1, 2, 3]);
}

#[test]
fn replicas_that_differ_at_the_same_index_are_the_first_problem() {
    let of_shard_1 = |answers: &mut [Answer], node: usize, digests: &[(u64, u8)]| {
        let Ok(status) = &mut answers[node].status else { unreachable!() };
        let replica = &mut status.replicas[1];
        let digests = digests.iter().map(|&(at, digest)| (at, vec![digest; 16].into()));
        let mut marks = digests.map(|(applied, digest)| DigestMark { applied, digest });
        let newest = marks.next_back().unwrap();
        (replica.digest, replica.digest_applied) = (newest.digest, newest.applied);
        replica.marks = marks.collect();
    };
    // The reports are from different times and differ at their newest indexes, but not at index
    // 1,024.
    let mut answers = healthy_three();
    of_shard_1(&mut answers, 0, &[(1_024, 7), (2_048, 8), (2_050, 1)]);
    of_shard_1(&mut answers, 1, &[(1_024, 7), (2_047, 2)]);
    of_shard_1(&mut answers, 2, &[(1_024, 7), (2_048, 8), (2_049, 3)]);
    let view = View::of(answers.clone(), Some(map(2)));
    assert!(view.healthy() && view.problems().is_empty(), "{:?}", view.problems());

    // Two replicas at the same index, which is not a mark.
    let mut at_rest = answers.clone();
    of_shard_1(&mut at_rest, 1, &[(1_024, 7), (2_050, 9)]);
    let view = View::of(at_rest, Some(map(2)));
    let first = "DIVERGED: the replicas of shard 1 differ at index 2050 (n1 | n2)";
    assert_eq!(view.problems(), [first]);

    // At a mark that all have passed, whatever they have applied since.
    of_shard_1(&mut answers, 2, &[(1_024, 4), (2_048, 5), (2_049, 3)]);
    answers[1] = silent(2);
    of_shard_1(&mut answers, 0, &[(1_024, 7), (2_048, 8), (2_050, 1)]);
    let two = View::of(answers.clone(), Some(map(2)));
    let first = "DIVERGED: the replicas of shard 1 differ at index 1024 (n1 | n3)";
    assert_eq!(two.problems()[0], first);
    assert!(!two.healthy() && two.sentence().contains(first), "{}", two.sentence());

    // A replica that is known to be damaged is reported as damaged.
    let Ok(status) = &mut answers[2].status else { unreachable!() };
    status.replicas[1].health = ReplicaHealth::Damaged.into();
    let known = View::of(answers, Some(map(2)));
    assert!(!known.problems().concat().contains("DIVERGED"), "{:?}", known.problems());
}

#[test]
fn a_cluster_that_does_not_answer_is_one_sentence() {
    let view = View::of(vec![silent(1), silent(2)], None);
    assert_eq!(view.sentence(), "no node answers");
    assert_eq!(view.problems().len(), 2);
    assert!(!view.healthy());
}

#[test]
fn the_problem_of_a_full_disk_names_the_accepted_writes() {
    let problems = |level: DiskLevel| {
        let mut answers = healthy_three();
        let disk = DiskStatus {
            level: level.into(),
            writes_refused: level != DiskLevel::Ok,
            ..Default::default()
        };
        answers[1].status.as_mut().unwrap().disk = Some(disk);
        View::of(answers, Some(map(2))).problems()
    };
    assert!(problems(DiskLevel::Ok).is_empty());
    let node = "n2 (127.0.0.1:7402)";
    let low = format!("{node} accepts only deletes: its disk is full up to the reserve");
    assert_eq!(problems(DiskLevel::Low), std::slice::from_ref(&low));
    // An older node, which only reports `writes_refused`.
    assert_eq!(problems(DiskLevel::Unspecified), [low]);
    let critical = format!("{node} rejects all writes, even deletes: its disk is full");
    assert_eq!(problems(DiskLevel::Critical), [critical]);
}
