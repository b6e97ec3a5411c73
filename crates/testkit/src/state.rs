//! What a test can look at and set.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::hash::even_range;
use quorate_proto::v1::{
    ClusterMap, Failure, MapNode, MapReplica, MapShard, MultiGetResult, OpenSessionRequest,
    ReadOptions, Reason, RouteHint, WriteSession,
};
use tonic::Code;

use crate::store::{LOG_TIME, Store};

/// The id of the cluster.
pub const CLUSTER: Bytes = Bytes::from_static(b"cluster-16-bytes");

/// The id of its history.
pub const HISTORY: Bytes = Bytes::from_static(b"history-16-bytes");

/// The request id that failures carry.
pub const REQUEST_ID: &str = "request-1";

/// The version that the nodes report.
pub const VERSION: &str = "0.1.0";

/// A failure with what the error table says of its reason.
#[must_use]
pub fn failure(reason: Reason) -> Failure {
    Failure::of(reason, "as the test says")
}

/// What a node does with one call.
#[derive(Clone, Debug)]
pub enum Step {
    /// Executes it and answers.
    Answer,
    /// Fails with exactly this, and executes nothing.
    Fail(Failure),
    /// Fails for this reason as a node does, and executes nothing: to a write with a session it
    /// says only that this attempt was not applied.
    Refuse(Reason),
    /// Fails with a status that no node of ours would make.
    Foreign(Code),
    /// Executes it, then closes every connection before the answer leaves.
    Break,
    /// Executes it, and never answers.
    Hang,
}

/// Which calls a rule of the script is about. `OpenSession`, `GetMap` and `GetInfo` are never
/// scripted: a client makes them on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Calls {
    /// All that can be scripted.
    All,
    /// Those that read rows.
    Reads,
    /// Those that write rows.
    Writes,
}

/// A write as a node saw it.
#[derive(Clone, Debug)]
pub struct SeenWrite {
    /// The node that it came to.
    pub node: u64,
    /// Its session and sequence.
    pub session: Option<WriteSession>,
    /// What the client believed of the place of the key.
    pub route: Option<RouteHint>,
    /// The id that the client gave the call; empty if it gave none.
    pub request_id: String,
    /// The deadline, as in the header `grpc-timeout`.
    pub timeout: Option<String>,
}

/// What the nodes have in common.
#[derive(Debug)]
pub struct State {
    /// The map that every node has, if there is one.
    pub map: Option<ClusterMap>,
    /// The node that leads every shard, as receipts, maps and status say; 0 = none is known.
    pub leader: u64,
    /// Rows and sessions.
    pub store: Store,
    /// How long a session lives.
    pub session_ttl: Duration,
    /// The longest value that a node says it takes, where that is not 1 MiB.
    pub value_bytes_max: HashMap<u64, u64>,
    /// Rows in one message of a scan.
    pub message_rows: usize,
    /// Rows in one page of a scan.
    pub page_rows: usize,
    /// The number of messages after which the stream of the next scan breaks off.
    pub scan_breaks_after: Option<usize>,
    /// Whether the streams of the scans after it break off too.
    pub every_scan_breaks: bool,
    /// What each node does with its next calls.
    pub script: HashMap<u64, VecDeque<Step>>,
    /// What each node does with such calls once its script has ended; otherwise it answers.
    pub always: HashMap<(u64, Calls), Step>,
    /// The writes that came, also those that failed.
    pub writes: Vec<SeenWrite>,
    /// The reads that came: the node, and how fresh they were to be.
    pub reads: Vec<(u64, ReadOptions)>,
    /// The failures that the next MultiGets have for a key, one after the other.
    pub key_failures: HashMap<Bytes, VecDeque<Failure>>,
    /// The MultiGets that came: the node, and the number of keys.
    pub multi_gets: Vec<(u64, usize)>,
    /// The number of messages after which the answer to the next MultiGet breaks off.
    pub multi_get_breaks_after: Option<usize>,
    /// Whether the nodes are too old for MultiGet.
    pub serves_no_multi_get: bool,
    /// The streams of operations that were opened, and the nodes of which.
    pub streams: Vec<u64>,
    /// Whether the nodes are too old for streams of operations.
    pub serves_no_streams: bool,
    /// The sessions that were opened, and the nodes that opened them.
    pub opened: Vec<(u64, OpenSessionRequest)>,
}

impl State {
    pub(crate) fn new(addresses: &[String]) -> State {
        State {
            map: Some(map_of(addresses, 1, 1)),
            leader: 0,
            store: Store::default(),
            session_ttl: Duration::from_secs(600),
            value_bytes_max: HashMap::new(),
            message_rows: 100,
            page_rows: usize::MAX,
            scan_breaks_after: None,
            every_scan_breaks: false,
            script: HashMap::new(),
            always: HashMap::new(),
            writes: Vec::new(),
            reads: Vec::new(),
            key_failures: HashMap::new(),
            multi_gets: Vec::new(),
            multi_get_breaks_after: None,
            serves_no_multi_get: false,
            streams: Vec::new(),
            serves_no_streams: false,
            opened: Vec::new(),
        }
    }

    /// What the node does with the call that has come.
    pub(crate) fn step(&mut self, node: u64, calls: Calls) -> Step {
        let scripted = self.script.get_mut(&node).and_then(VecDeque::pop_front);
        let always = || self.always.get(&(node, calls)).or(self.always.get(&(node, Calls::All)));
        scripted.or_else(|| always().cloned()).unwrap_or(Step::Answer)
    }

    /// The result of a MultiGet for one key.
    pub(crate) fn result(&mut self, key: &Bytes) -> MultiGetResult {
        let failure = self.key_failures.get_mut(key).and_then(VecDeque::pop_front);
        match self.store.rows.get(key) {
            Some(row) if failure.is_none() => MultiGetResult {
                found: true,
                value: row.value.clone(),
                revision: row.revision,
                create_revision: row.create_revision,
                log_time: LOG_TIME,
                failure,
            },
            _ => MultiGetResult { failure, ..MultiGetResult::default() },
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.epoch)
    }

    pub(crate) fn cluster_id(&self) -> Bytes {
        self.map.as_ref().map_or(CLUSTER, |map| map.cluster_id.clone())
    }
}

/// A map of nodes numbered from 1 with `shards` shards, all on all nodes, replica lists in node
/// order.
pub(crate) fn map_of(addresses: &[String], epoch: u64, shards: u64) -> ClusterMap {
    let ids = || 1..=addresses.len() as u64;
    let replica = |id: u64, of: u64| MapReplica {
        replica_id: of * ids().end() + id,
        node_id: id,
        ..MapReplica::default()
    };
    let node = |(id, address): (u64, &String)| MapNode {
        id,
        client_address: address.clone(),
        ..MapNode::default()
    };
    let shard = |of: u64| MapShard {
        id: of + 1,
        first: even_range(of, shards).0,
        last: even_range(of, shards).1,
        epoch: 1,
        replicas: ids().map(|id| replica(id, of)).collect(),
        ..MapShard::default()
    };
    ClusterMap {
        cluster_id: CLUSTER,
        history: HISTORY,
        epoch,
        nodes: ids().zip(addresses).map(node).collect(),
        shards: (0..shards).map(shard).collect(),
        meta_replicas: ids().map(|id| replica(id, 0)).collect(),
        replicas_wanted: *ids().end() as u32,
        ..ClusterMap::default()
    }
}
