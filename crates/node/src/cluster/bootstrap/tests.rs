use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quorate_proto::ids::Incarnation;
use quorate_proto::secret::ClusterSecret;
use quorate_raft::NodeId;
use quorate_transport::{PeerService, ProofKey};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cluster::identity::DataDir;
use crate::exit::Fatal;

const TIMEOUT: Duration = Duration::from_secs(30);

fn key() -> ProofKey {
    ProofKey::of(&ClusterSecret::from_bytes([7; 32]))
}

fn plan(me: u64, addresses: &[SocketAddr]) -> Plan {
    plan_with(me, addresses, "quorate", 8)
}

fn plan_with(me: u64, addresses: &[SocketAddr], name: &str, shards: u32) -> Plan {
    let listed = (1..).zip(addresses).map(|(node, at)| (NodeId(node), at.to_string())).collect();
    Plan::new(NodeId(me), name, listed, shards, 3).unwrap()
}

fn fake_addresses(count: u16) -> Vec<SocketAddr> {
    (0..count).map(|node| SocketAddr::from(([127, 0, 0, 1], 7401 + node))).collect()
}

mod decision {
    use super::*;

    const ME: Incarnation = Incarnation(1);

    fn unformed(incarnation: u128, plan: &Plan) -> Answer {
        let (plan_hash, plan) = (plan.hash(), plan.describe());
        Answer::Unformed { incarnation: Incarnation(incarnation), plan_hash, plan }
    }

    fn formed_of(members: [u128; 3]) -> Formed {
        let members = (1..).map(NodeId).zip(members.map(Incarnation)).collect();
        Formed::new("quorate", members, 8, 3)
    }

    fn decided(answers: [Option<Answer>; 2]) -> Decision {
        let plan = plan(1, &fake_addresses(3));
        let answers = (2..)
            .map(NodeId)
            .zip(answers)
            .filter_map(|(node, answer)| answer.map(|answer| (node, answer)))
            .collect();
        decide(ME, &plan, &answers)
    }

    fn refused(decision: Decision) -> String {
        match decision {
            Decision::Refuse(sentence) => sentence,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn waiting(decision: Decision) -> Vec<String> {
        match decision {
            Decision::Wait(waiting) => waiting.iter().map(ToString::to_string).collect(),
            other => panic!("does not wait: {other:?}"),
        }
    }

    #[test]
    fn all_new_with_one_plan_form() {
        let plan = plan(2, &fake_addresses(3));
        let decision = decided([Some(unformed(2, &plan)), Some(unformed(3, &plan))]);
        assert_eq!(decision, Decision::Form(formed_of([1, 2, 3])));
    }

    #[test]
    fn a_silent_peer_is_waited_for_though_a_majority_is_there() {
        let plan = plan(2, &fake_addresses(3));
        let new = || Some(unformed(2, &plan));
        let silent = Some(Answer::Silent("connection refused".into()));
        assert_eq!(
            waiting(decided([new(), silent])),
            ["node 3: no answer from 127.0.0.1:7403 (connection refused)"]
        );
        assert_eq!(waiting(decided([new(), None])), ["node 3: no answer from 127.0.0.1:7403"]);
        assert_eq!(waiting(decided([None, None])).len(), 2);
    }

    #[test]
    fn another_plan_is_waited_for_by_name() {
        let addresses = fake_addresses(3);
        let mut moved = addresses.clone();
        moved[0].set_port(9);
        let others = [
            (plan_with(3, &addresses, "other", 8), "--cluster-name other"),
            (plan_with(3, &addresses, "quorate", 16), "--shards 16"),
            (plan(3, &moved), "1=127.0.0.1:9"),
            (plan(2, &addresses[..2]), "--initial-cluster 1=127.0.0.1:7401,2=127.0.0.1:7402 "),
        ];
        for (other, part) in others {
            let same = Some(unformed(2, &plan(2, &addresses)));
            let said = waiting(decided([same, Some(unformed(3, &other))]));
            assert_eq!(said.len(), 1);
            assert!(said[0].starts_with("node 3: it was started with other flags"), "{said:?}");
            assert!(said[0].contains(part) && said[0].contains("--shards 8"), "{said:?}");
        }
    }

    #[test]
    fn a_formed_peer_decides_regardless_of_the_others() {
        let plan = plan(3, &fake_addresses(3));
        let formed = || Some(Answer::Formed(formed_of([1, 2, 3])));
        let join = Decision::Join(formed_of([1, 2, 3]));
        for other in [None, formed(), Some(Answer::Silent("x".into())), Some(unformed(3, &plan))] {
            assert_eq!(decided([formed(), other.clone()]), join);
            assert_eq!(decided([other, formed()]), join);
        }
        // A wiped peer looks new; the record of the formed one still counts.
        assert_eq!(decided([formed(), Some(unformed(77, &plan))]), join);
    }

    #[test]
    fn a_wiped_directory_is_refused() {
        let plan = plan(3, &fake_addresses(3));
        let formed = Some(Answer::Formed(formed_of([9, 2, 3])));
        for other in [None, Some(unformed(3, &plan)), formed.clone()] {
            let sentence = refused(decided([formed.clone(), other]));
            assert!(sentence.contains("node 1 is already a member of cluster quorate"));
            assert!(sentence.contains("wiped"), "{sentence}");
        }
    }

    #[test]
    fn a_stranger_and_another_cluster_are_refused() {
        let members = BTreeMap::from([(NodeId(2), Incarnation(2))]);
        let without_me = Formed::new("quorate", members, 8, 3);
        let sentence = refused(decided([Some(Answer::Formed(without_me)), None]));
        assert!(sentence.contains("node 1 is not a member of it"), "{sentence}");

        let mut other = formed_of([1, 2, 3]);
        other.cluster_name = "other".into();
        let sentence = refused(decided([Some(Answer::Formed(other)), None]));
        assert!(sentence.contains("belongs to cluster other"), "{sentence}");
    }

    #[test]
    fn two_clusters_that_both_know_me_are_refused() {
        let formed = |members| Some(Answer::Formed(formed_of(members)));
        let sentence = refused(decided([formed([1, 2, 3]), formed([1, 5, 3])]));
        assert!(sentence.contains("cannot decide which one is right"), "{sentence}");
    }

    #[test]
    fn a_single_node_forms() {
        let plan = plan(1, &fake_addresses(1));
        let members = BTreeMap::from([(NodeId(1), ME)]);
        let formed = Formed::new("quorate", members, 8, 3);
        assert_eq!(decide(ME, &plan, &BTreeMap::new()), Decision::Form(formed));
    }

    #[test]
    fn two_rounds_must_agree() {
        let dir = TempDir::new().unwrap();
        let identity = Identity::open(DataDir::open(dir.path()).unwrap(), NodeId(1)).unwrap();
        let plan = plan(1, &fake_addresses(2));
        let mut formation = Formation::new(Arc::new(identity), plan.clone(), key());
        let answers = |incarnation| BTreeMap::from([(NodeId(2), unformed(incarnation, &plan))]);
        assert!(matches!(formation.settle(&answers(2)), Step::Again));
        // Wiped between the rounds: the count restarts.
        assert!(matches!(formation.settle(&answers(3)), Step::Again));
        assert!(matches!(formation.settle(&BTreeMap::new()), Step::Wait(_)));
        assert!(matches!(formation.settle(&answers(3)), Step::Again));
        assert!(matches!(formation.settle(&answers(3)), Step::Settled(_)));
    }
}

#[test]
fn a_plan_names_this_node_and_every_address_once() {
    let one = BTreeMap::from([(NodeId(1), "a:1".to_owned())]);
    let error = Plan::new(NodeId(2), "q", one, 1, 1).unwrap_err();
    assert!(error.contains("does not name node 2"), "{error}");
    let twice = BTreeMap::from([(NodeId(1), "a:1".to_owned()), (NodeId(2), "a:1".to_owned())]);
    let error = Plan::new(NodeId(1), "q", twice, 1, 1).unwrap_err();
    assert!(error.contains("gives a:1 to node 1 and to node 2"), "{error}");
}

/// Nodes compare this number; every version must compute the same one.
#[test]
fn the_hash_of_a_plan_is_fixed_and_depends_on_all_of_it() {
    let addresses = fake_addresses(3);
    let mine = plan(1, &addresses);
    assert_eq!(mine.hash(), 7_117_318_383_373_542_113);
    assert_eq!(mine.hash(), plan(3, &addresses).hash(), "it does not depend on who computes it");
    let listed = || mine.initial_cluster.clone();
    let replicas = Plan::new(NodeId(1), "quorate", listed(), 8, 5).unwrap();
    let other_name = plan_with(1, &addresses, "other", 8);
    let other_shards = plan_with(1, &addresses, "quorate", 9);
    for other in [replicas, other_name, other_shards, plan(1, &addresses[..2])] {
        assert_ne!(mine.hash(), other.hash(), "{}", other.describe());
    }
}

/// Directory and address of a node, which outlive its processes.
struct Site {
    node: u64,
    dir: TempDir,
    address: SocketAddr,
}

fn sites(count: u64) -> (Vec<Site>, Vec<SocketAddr>) {
    // All ports are held until all are chosen.
    let held: Vec<_> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> = held.iter().map(|l| l.local_addr().unwrap()).collect();
    let site = |(node, &address)| Site { node, dir: TempDir::new().unwrap(), address };
    ((1..).zip(&addresses).map(site).collect(), addresses)
}

/// A process on a site.
struct Process {
    identity: Arc<Identity>,
    said: Arc<Mutex<Vec<String>>>,
    done: mpsc::Receiver<std::result::Result<Formed, BootstrapError>>,
    runtime: Runtime,
}

/// The step before which a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Done,
    IdentityWritten,
    FirstRound,
    SecondRound,
    TemporaryWritten,
    Persisted,
}

const KILL_POINTS: [Until; 5] = [
    Until::IdentityWritten,
    Until::FirstRound,
    Until::SecondRound,
    Until::TemporaryWritten,
    Until::Persisted,
];

impl Site {
    fn start(&self, plan: &Plan) -> Process {
        self.start_until(plan, Until::Done)
    }

    fn start_until(&self, plan: &Plan, until: Until) -> Process {
        let dir = DataDir::open(self.dir.path()).unwrap();
        let identity = Arc::new(Identity::open(dir, NodeId(self.node)).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service =
            PeerService::new(Arc::new(AskAnswers::new(Arc::clone(&identity), plan)), key());
        let address = self.address;
        let (listening, ready) = mpsc::channel();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            listening.send(()).unwrap();
            service.serve(listener, CancellationToken::new()).await.unwrap();
        });
        ready.recv_timeout(TIMEOUT).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (done_sender, done) = mpsc::channel();
        let (heard, mine, plan) = (Arc::clone(&said), Arc::clone(&identity), plan.clone());
        runtime.spawn(async move {
            let result = if until == Until::Done {
                run(&mine, &plan, &key(), |sentence| heard.lock().push(sentence.to_owned())).await
            } else {
                run_until(&mine, &plan, until).await
            };
            // The test may have ended without waiting.
            let _ = done_sender.send(result);
        });
        Process { identity, said, done, runtime }
    }

    fn wipe(&mut self) {
        self.dir = TempDir::new().unwrap();
    }
}

/// The steps of [`run`], up to a point. The process then waits, and the test kills it.
async fn run_until(
    identity: &Arc<Identity>,
    plan: &Plan,
    until: Until,
) -> std::result::Result<Formed, BootstrapError> {
    let placeholder = || Formed::new("killed", BTreeMap::new(), 0, 0);
    if until == Until::IdentityWritten {
        return Ok(placeholder());
    }
    let mut formation = Formation::new(Arc::clone(identity), plan.clone(), key());
    loop {
        match formation.round().await {
            Step::Again if until == Until::FirstRound => return Ok(placeholder()),
            // A peer had already formed, so this node dies before it writes.
            Step::Settled(_) if matches!(until, Until::FirstRound | Until::SecondRound) => {
                return Ok(placeholder());
            }
            Step::Settled(_) if until == Until::TemporaryWritten => {
                let temporary = identity.dir().path().join("IDENTITY.tmp");
                std::fs::write(temporary, "format=1\nnode_id=").unwrap();
                return Ok(placeholder());
            }
            Step::Settled(agreed) => {
                identity.set_formed(agreed)?;
                return Ok(placeholder());
            }
            Step::Again => {}
            Step::Wait(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Step::Refused(sentence) => return Err(BootstrapError::Refused(sentence)),
        }
    }
}

impl Process {
    fn formed(&self) -> Formed {
        self.done.recv_timeout(TIMEOUT).expect("an end in time").expect("formed")
    }

    fn refused(&self) -> String {
        let error = self.done.recv_timeout(TIMEOUT).expect("an end in time").unwrap_err();
        assert_eq!(self.identity.formed(), None);
        let fatal = Fatal::from(error);
        assert_eq!(fatal.code(), 10);
        fatal.to_string()
    }

    fn wait_said(&self, part: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let said = self.said.lock().clone();
            if let Some(sentence) = said.iter().find(|sentence| sentence.contains(part)) {
                return sentence.clone();
            }
            assert!(Instant::now() < deadline, "waited in vain for {part:?}: {said:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the process like SIGKILL: its lock and its port are free when this returns.
    fn kill(self) {
        let Self { identity, runtime, .. } = self;
        runtime.shutdown_timeout(TIMEOUT);
        assert_eq!(Arc::strong_count(&identity), 1, "a task has outlived its process");
    }
}

#[test]
fn nodes_that_start_together_form_one_cluster_and_keep_it() {
    let (sites, addresses) = sites(3);
    let start = || -> Vec<Process> {
        sites.iter().map(|site| site.start(&plan(site.node, &addresses))).collect()
    };
    let first = start();
    let formed: Vec<Formed> = first.iter().map(Process::formed).collect();
    assert!(formed.iter().all(|other| *other == formed[0]), "{formed:?}");
    assert_eq!(formed[0].members.len(), 3);
    for process in &first {
        let me = formed[0].members[&process.identity.node_id()];
        assert_eq!(me, process.identity.incarnation());
        assert_eq!(*process.said.lock(), Vec::<String>::new(), "no node had to wait");
    }
    first.into_iter().for_each(Process::kill);
    // After a restart each node knows its cluster without the others.
    for site in &sites {
        let again = site.start(&plan(site.node, &addresses));
        assert_eq!(again.formed(), formed[0]);
        assert_eq!(again.identity.boot_counter(), 2);
        again.kill();
    }
}

#[test]
fn a_late_node_is_waited_for_by_name() {
    let (sites, addresses) = sites(3);
    let early: Vec<Process> =
        sites[..2].iter().map(|site| site.start(&plan(site.node, &addresses))).collect();
    for process in &early {
        let said = process.wait_said("waiting to form the cluster: node 3: no answer from");
        assert!(said.contains(&addresses[2].to_string()), "{said}");
        assert!(!said.contains("node 1") && !said.contains("node 2"), "{said}");
        assert_eq!(process.identity.formed(), None);
    }
    let late = sites[2].start(&plan(3, &addresses));
    let formed = late.formed();
    assert!(early.iter().all(|process| process.formed() == formed));
}

#[test]
fn a_node_with_other_flags_is_named_and_corrected() {
    let (sites, addresses) = sites(2);
    let right = sites[0].start(&plan(1, &addresses));
    let wrong = sites[1].start(&plan_with(2, &addresses, "quorate", 16));
    right.wait_said("node 2: it was started with other flags: it has --cluster-name quorate");
    wrong.wait_said("node 1: it was started with other flags");
    assert!(right.identity.formed().is_none() && wrong.identity.formed().is_none());
    let incarnation = wrong.identity.incarnation();
    wrong.kill();
    let corrected = sites[1].start(&plan(2, &addresses));
    assert_eq!(corrected.identity.incarnation(), incarnation);
    assert_eq!(corrected.formed(), right.formed());
}

#[test]
fn two_nodes_at_each_others_addresses_never_form() {
    let (sites, addresses) = sites(2);
    let swapped = [addresses[1], addresses[0]];
    let process = sites[0].start(&plan(1, &swapped));
    let said = process.wait_said("node 2: no answer from");
    assert!(said.contains("is node 1"), "{said}");
}

#[test]
fn after_formation_flags_are_checked_and_peers_are_not_asked() {
    let (sites, addresses) = sites(1);
    let first = sites[0].start(&plan(1, &addresses));
    let formed = first.formed();
    first.kill();
    // Another list has no effect; another number of shards is a warning with both values.
    let more = [addresses[0], SocketAddr::from(([127, 0, 0, 1], 1))];
    let second = sites[0].start(&plan_with(1, &more, "quorate", 64));
    assert_eq!(second.formed(), formed);
    assert_eq!(
        *second.said.lock(),
        ["--shards 64 is ignored: the cluster was formed with 8".to_owned()]
    );
    second.kill();
    let silent = plan_with(1, &addresses, "quorate", 64).with_given(false, false);
    let defaulted = sites[0].start(&silent);
    assert_eq!(defaulted.formed(), formed);
    assert_eq!(
        *defaulted.said.lock(),
        Vec::<String>::new(),
        "a default that differs is not reported"
    );
    defaulted.kill();
    let third = sites[0].start(&plan_with(1, &addresses, "other", 8));
    let error = third.done.recv_timeout(TIMEOUT).unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "this directory belongs to cluster quorate, but this node was started with \
         --cluster-name other"
    );
    assert_eq!(Fatal::from(error).code(), 10);
}

#[test]
fn a_wiped_node_is_refused() {
    let (mut sites, addresses) = sites(3);
    let mut running: Vec<Process> =
        sites.iter().map(|site| site.start(&plan(site.node, &addresses))).collect();
    let formed = running[0].formed();
    running.remove(1).kill();
    sites[1].wipe();
    let wiped = sites[1].start(&plan(2, &addresses));
    let sentence = wiped.refused();
    assert!(sentence.contains("node 2 is already a member of cluster quorate"), "{sentence}");
    assert_eq!(running[0].identity.formed(), Some(formed));
}

#[test]
fn two_of_three_wiped_never_form_a_second_cluster() {
    let (mut sites, addresses) = sites(3);
    let running: Vec<Process> =
        sites.iter().map(|site| site.start(&plan(site.node, &addresses))).collect();
    let formed: Vec<Formed> = running.iter().map(Process::formed).collect();
    running.into_iter().for_each(Process::kill);
    sites[0].wipe();
    sites[1].wipe();
    let wiped: Vec<Process> =
        sites[..2].iter().map(|site| site.start(&plan(site.node, &addresses))).collect();
    for process in &wiped {
        // They reach each other, and still wait for the third, which may have formed.
        process.wait_said("waiting to form the cluster: node 3: no answer");
        assert_eq!(process.identity.formed(), None);
    }
    let survivor = sites[2].start(&plan(3, &addresses));
    assert_eq!(survivor.formed(), formed[2]);
    for process in &wiped {
        assert!(process.refused().contains("already a member"));
    }
}

/// Two of three nodes die, each at every step, and restart: all three end in one cluster.
#[test]
fn a_crash_between_any_two_steps_converges_to_one_cluster() {
    for first in KILL_POINTS {
        for second in [first, Until::Done] {
            let (sites, addresses) = sites(3);
            let plans: Vec<Plan> = sites.iter().map(|s| plan(s.node, &addresses)).collect();
            let processes = [
                sites[0].start_until(&plans[0], first),
                sites[1].start_until(&plans[1], second),
                sites[2].start(&plans[2]),
            ];
            let incarnations: Vec<Incarnation> =
                processes.iter().map(|process| process.identity.incarnation()).collect();
            let [one, two, three] = processes;
            one.done.recv_timeout(TIMEOUT).expect("the first kill point").unwrap();
            if second != Until::Done {
                two.done.recv_timeout(TIMEOUT).expect("the second kill point").unwrap();
            }
            one.kill();
            two.kill();
            let one = sites[0].start(&plans[0]);
            let two = sites[1].start(&plans[1]);
            let formed = one.formed();
            assert_eq!(two.formed(), formed, "{first:?} {second:?}");
            assert_eq!(three.formed(), formed, "{first:?} {second:?}");
            let members: Vec<Incarnation> = formed.members.values().copied().collect();
            assert_eq!(members, incarnations, "{first:?} {second:?}");
        }
    }
}
