//! What each place that refuses a write says of its outcome.

use quorate_machine::LogTime;
use quorate_machine::SessionId;
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::{
    BatchOperation, BatchRequest, CancelRequest, CompareAndSetRequest, Condition, DeleteAction,
    DeleteRequest, Failure, IncrementRequest, Outcome, RouteHint, WriteSession,
};
use quorate_storage::{DiskLevel, Space};

use super::*;
use crate::metrics::Method;

/// Whether a method writes, or settles a write: each is listed, so that no new one is left out.
fn writes(method: Method) -> bool {
    match method {
        Method::Put
        | Method::Delete
        | Method::CompareAndSet
        | Method::Increment
        | Method::Batch
        | Method::Cancel => true,
        // Not offered yet.
        Method::Pipeline => false,
        Method::Get
        | Method::MultiGet
        | Method::Scan
        | Method::OpenSession
        | Method::GetInfo
        | Method::GetMap
        | Method::GetStatus
        | Method::TransferLeader => false,
    }
}

/// What is asked, by each of the methods.
#[derive(Clone)]
struct Asked {
    key: Bytes,
    value: Bytes,
    route: Option<RouteHint>,
    session: Option<WriteSession>,
    required_features: Vec<u32>,
    timeout: &'static str,
    hops: u32,
}

impl Asked {
    /// A write with nothing wrong in it, without a session.
    fn bare() -> Asked {
        Asked {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"1"),
            route: None,
            session: None,
            required_features: Vec::new(),
            timeout: "300m",
            hops: 0,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("grpc-timeout", self.timeout.parse().expect("ascii"));
        metadata.insert(super::super::context::HOPS, self.hops.into());
        request
    }

    /// The failure of a call; none if it was answered.
    async fn failure(&self, kv: &KvService, method: Method) -> Option<Failure> {
        let Asked { key, value, route, session, required_features, .. } = self.clone();
        let status = match method {
            Method::Put => {
                let put = PutRequest {
                    key,
                    value,
                    route,
                    session,
                    required_features,
                    ..Default::default()
                };
                kv.put(self.request(put)).await.err()
            }
            Method::Delete => {
                let delete =
                    DeleteRequest { key, route, session, required_features, ..Default::default() };
                kv.delete(self.request(delete)).await.err()
            }
            Method::CompareAndSet => {
                let expect = Some(Condition { expect: Some(Expect::Value(value.clone())) });
                let cas = CompareAndSetRequest {
                    key,
                    value,
                    expect,
                    route,
                    session,
                    required_features,
                    ..Default::default()
                };
                kv.compare_and_set(self.request(cas)).await.err()
            }
            Method::Increment => {
                let by = IncrementRequest {
                    key,
                    delta: 1,
                    route,
                    session,
                    required_features,
                    ..Default::default()
                };
                kv.increment(self.request(by)).await.err()
            }
            Method::Batch => {
                let action = Some(Action::Delete(DeleteAction {}));
                let operations = vec![BatchOperation { key, action, ..Default::default() }];
                let batch = BatchRequest {
                    operations,
                    route,
                    session,
                    required_features,
                    ..Default::default()
                };
                kv.batch(self.request(batch)).await.err()
            }
            Method::Cancel => {
                let WriteSession { id: session_id, sequence, .. } = session.unwrap_or_default();
                let cancel = CancelRequest {
                    key,
                    session_id,
                    sequence,
                    route,
                    required_features,
                    ..Default::default()
                };
                kv.cancel(self.request(cancel)).await.err()
            }
            _ => panic!("nothing is written by {method:?}"),
        };
        status.map(|status| {
            let failure = Failure::from_details(status.details());
            failure.unwrap_or_else(|| panic!("not a failure of ours: {status:?}")).0
        })
    }
}

/// A session that is born now, with its first sequence.
fn session() -> WriteSession {
    session_born(Clock.unix_millis())
}

fn session_born(millis: u64) -> WriteSession {
    let id = SessionId::from_parts(LogTime::from_millis(millis), 1, 1, rand::random());
    let id = Bytes::copy_from_slice(&SESSION_KEY.seal(&id, &SESSION_KEY.client(None)));
    WriteSession { id, sequence: 1, answered_below: 1, last: false }
}

/// What the places that refuse said, and which of it is untrue.
#[derive(Default)]
struct Said {
    places: usize,
    untrue: Vec<String>,
}

impl Said {
    /// Asks with each method, with and without a session, and expects to be refused for this
    /// reason.
    async fn at(&mut self, place: &str, kv: &KvService, asked: &Asked, reason: Reason) {
        self.at_but(&[], place, kv, asked, reason).await;
    }

    /// The same without the methods that this place lets in.
    async fn at_but(
        &mut self,
        but: &[Method],
        place: &str,
        kv: &KvService,
        asked: &Asked,
        reason: Reason,
    ) {
        self.places += 1;
        let asked_with = Method::ALL.iter().copied().filter(|method| writes(*method));
        for method in asked_with.filter(|method| !but.contains(method)) {
            for session in [None, Some(session())] {
                // A Cancel names the write it asks about, and so always has a session.
                if method == Method::Cancel && session.is_none() {
                    continue;
                }
                let expected = match session {
                    None => Outcome::NotApplied,
                    Some(_) => Outcome::AttemptNotApplied,
                };
                let asked = Asked { session, ..asked.clone() };
                let failure = asked.failure(kv, method).await;
                let failure = failure.unwrap_or_else(|| panic!("{place}: {method:?} is let in"));
                assert_eq!(failure.reason(), reason, "{place}: {method:?}: {failure:?}");
                if failure.outcome() != expected {
                    let outcome = failure.outcome().name();
                    let with = if asked.session.is_some() { "with" } else { "without" };
                    self.untrue.push(format!("{place}: {method:?} {with} a session: {outcome}"));
                }
            }
        }
    }

    fn end(self, places: usize) {
        assert_eq!(self.places, places, "a place was not asked");
        assert!(self.untrue.is_empty(), "{}", self.untrue.join("\n"));
    }
}

/// The service over a node's engine with another core.
pub(super) fn changed(node: &Node, change: impl FnOnce(&mut Shared)) -> KvService {
    let shared = &node.shared;
    let cell = SharedCell::default();
    let mut changed = Shared {
        config: shared.config.clone(),
        node: shared.node,
        cluster_id: shared.cluster_id.clone(),
        engine: shared.engine.clone(),
        map: shared.map.clone(),
        forward: Forwarder::new(Box::new(|_, _| true)),
        read_threads: shared.read_threads.clone(),
        scan_threads: shared.scan_threads.clone(),
        sessions: SessionMint::new(shared.node.0),
        budget: shared.budget.clone(),
        rules: shared.rules,
        metrics: shared.metrics.clone(),
        admission: Admissions::new(u64::MAX),
        life: cell.life.clone(),
        transfers: Transfers::default(),
        disk: Arc::default(),
        damaged: Mutex::default(),
        clock: Clock,
        clocks: shared.clocks.clone(),
    };
    change(&mut changed);
    changed.life.enter(NodePhase::Ready, "");
    cell.set(Arc::new(changed));
    KvService::new(Calls::new(cell, shared.metrics.clone()))
}

#[test]
fn a_refusal_before_the_proposal_speaks_of_an_attempt_where_there_is_a_session() {
    run(|node| async move {
        let mut said = Said::default();
        let asked = Asked::bare();
        let young = KvService::new(Calls::new(SharedCell::default(), node.shared.metrics.clone()));
        said.at("before the storage is open", &young, &asked, Reason::Starting).await;
        let broken = SharedCell::default();
        broken.life.enter(NodePhase::StorageFailed, "sled/db is damaged");
        let broken = KvService::new(Calls::new(broken, node.shared.metrics.clone()));
        said.at("without its storage", &broken, &asked, Reason::StorageFailed).await;
        let asks_more = Asked { required_features: vec![4_000], ..asked.clone() };
        said.at("without a required feature", &node.kv, &asks_more, Reason::NotOffered).await;
        let life = node.shared.life.clone();
        life.enter(NodePhase::Forming, "");
        said.at("while the cluster forms", &node.kv, &asked, Reason::Starting).await;
        life.enter(NodePhase::Draining, "");
        life.refuse();
        said.at("while it goes down", &node.kv, &asked, Reason::Draining).await;
        life.enter(NodePhase::Ready, "");

        let mapless = changed(&node, |shared| shared.map = MapCell::default());
        said.at("without a map", &mapless, &asked, Reason::Starting).await;
        let full = changed(&node, |shared| shared.budget = Arc::new(DeltaBudget::new(0)));
        said.at("behind the checkpoints", &full, &asked, Reason::Overloaded).await;
        set_disk(&node.shared, DiskLevel::Low);
        let freeing = [Method::Delete, Method::Cancel];
        said.at_but(&freeing, "on a low disk", &node.kv, &asked, Reason::DiskFull).await;
        set_disk(&node.shared, DiskLevel::Critical);
        said.at("on a full disk", &node.kv, &asked, Reason::DiskFull).await;
        set_disk(&node.shared, DiskLevel::Ok);

        let route = Some(RouteHint { shard: 99, ..RouteHint::default() });
        let elsewhere = Asked { route, ..asked.clone() };
        said.at("for another shard", &node.kv, &elsewhere, Reason::WrongShard).await;
        let nameless = Asked { key: Bytes::new(), ..asked.clone() };
        said.at("without a key", &node.kv, &nameless, Reason::BadKey).await;
        said.end(11);
        node.stop();
    });
}

#[test]
fn a_leader_with_too_much_under_way_refuses_an_attempt() {
    block_on(async {
        let holder = MapNode { id: 1, ..MapNode::default() };
        let node = Node::with(1, vec![holder], |parts| parts.raft.max_uncommitted_bytes = 1);
        let with_session = |has: bool| has.then(session);
        for has_session in [false, true] {
            let mut refused = None;
            // Only what comes while another write is being committed is refused.
            while refused.is_none() {
                let puts = (0..64).map(|_| {
                    let asked = Asked {
                        session: with_session(has_session),
                        timeout: "5S",
                        ..Asked::bare()
                    };
                    let kv = node.kv.clone();
                    async move { asked.failure(&kv, Method::Put).await }
                });
                refused = futures::future::join_all(puts).await.into_iter().flatten().next();
            }
            let refused = refused.expect("one was refused");
            let expected = match has_session {
                true => Outcome::AttemptNotApplied,
                false => Outcome::NotApplied,
            };
            assert_eq!((refused.reason(), refused.outcome()), (Reason::Overloaded, expected));
        }
        let large = vec![b'v'; 3 << 20].into();
        let kv = changed(&node, |shared| shared.rules.value_bytes_max = 4 << 20);
        for (session, expected) in
            [(None, Outcome::NotApplied), (Some(session()), Outcome::AttemptNotApplied)]
        {
            let asked =
                Asked { value: Bytes::clone(&large), session, timeout: "5S", ..Asked::bare() };
            let failure = asked.failure(&kv, Method::Put).await.expect("no entry holds it");
            assert_eq!((failure.reason(), failure.outcome()), (Reason::TooLarge, expected));
        }
        node.stop();
    });
}

#[test]
fn a_node_with_too_much_waiting_refuses_an_attempt() {
    block_on(async {
        let holder = MapNode { id: 1, ..MapNode::default() };
        let node = Node::with(1, vec![holder], |parts| parts.limits.request_queue = 0);
        let mut said = Said::default();
        let asked = Asked { timeout: "5S", ..Asked::bare() };
        said.at("before a full queue", &node.kv, &asked, Reason::Overloaded).await;
        said.end(1);
        node.stop();
    });
}

#[test]
fn a_shard_without_a_leader_or_out_of_reach_refuses_an_attempt() {
    block_on(async {
        let mut said = Said::default();
        // Two of three voters are never there.
        let holders = (1..=3).map(|id| MapNode { id, ..MapNode::default() }).collect();
        let lonely = Node::with(1, holders, |_| {});
        said.at("without a leader", &lonely.kv, &Asked::bare(), Reason::NoLeader).await;
        lonely.stop();

        // Nothing listens there: a connection is refused.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        drop(listener);
        let asked = Node::start(2, &address);
        said.at("out of reach", &asked.kv, &Asked::bare(), Reason::NoLeader).await;
        let too_far = Asked { hops: HOPS_MAX, ..Asked::bare() };
        said.at("after too many hops", &asked.kv, &too_far, Reason::NoLeader).await;
        asked.stop();
        said.end(3);
    });
}

#[test]
fn a_refusal_of_the_leader_keeps_its_outcome_on_its_way_through_another_node() {
    block_on(async {
        let (holder, asked, server) = served_and_asked().await;
        let mut said = Said::default();
        let write = Asked { timeout: "5S", ..Asked::bare() };
        set_disk(&holder.shared, DiskLevel::Critical);
        said.at("the leader's disk", &asked.kv, &write, Reason::DiskFull).await;
        set_disk(&holder.shared, DiskLevel::Ok);
        holder.shared.life.enter(NodePhase::Forming, "");
        said.at("the leader starts", &asked.kv, &write, Reason::Starting).await;
        holder.shared.life.enter(NodePhase::Ready, "");
        said.end(2);

        // What the session remembers stands for all attempts, wherever it is asked.
        for kv in [&holder.kv, &asked.kv] {
            what_a_session_remembers_is_final(kv).await;
        }
        server.abort();
        asked.stop();
        holder.stop();
    });
}

/// A barred sequence and a refused increment are answers, and not of one attempt.
async fn what_a_session_remembers_is_final(kv: &KvService) {
    let ask = |method: Method, session: WriteSession, value: &'static [u8]| {
        let asked = Asked {
            session: Some(session),
            value: Bytes::from_static(value),
            timeout: "5S",
            ..Asked::bare()
        };
        async move { asked.failure(kv, method).await }
    };
    let barred = session();
    assert_eq!(ask(Method::Cancel, barred.clone(), b"").await, None);
    let failure = ask(Method::Put, barred.clone(), b"1").await.expect("it is barred");
    assert_eq!((failure.reason(), failure.outcome()), (Reason::SequencePast, Outcome::NotApplied));
    assert_eq!(ask(Method::Put, session(), b"no number").await, None);
    let refused = session();
    for _ in 0..2 {
        let failure = ask(Method::Increment, refused.clone(), b"").await.expect("not a number");
        assert_eq!(
            (failure.reason(), failure.outcome()),
            (Reason::NotANumber, Outcome::NotApplied)
        );
    }
    // What it does not remember does not.
    let now = Clock.unix_millis();
    let rows = [
        (session_born(now + 3_600_000), Reason::SessionFromFuture),
        (session_born(now - 3_600_000), Reason::SessionExpired),
        (WriteSession { sequence: 1, ..refused }, Reason::SequenceReused),
    ];
    for (session, reason) in rows {
        let failure = ask(Method::Put, session, b"1").await.expect("it is refused");
        let outcome = (failure.reason(), failure.outcome());
        assert_eq!(outcome, (reason, Outcome::AttemptNotApplied));
    }
}

/// Makes the node see so much free space, of a disk of 1 GiB, that its level is `level`.
fn set_disk(shared: &Shared, level: DiskLevel) {
    let free = match level {
        DiskLevel::Ok => 1 << 30,
        DiskLevel::Low => 200 << 20,
        DiskLevel::Critical => 1 << 20,
    };
    assert_eq!(shared.disk.look(Space { total: 1 << 30, free }, 0), level);
}
