//! Scans: every shard pinned at one index, merged in byte order by the serving node.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use quorate_proto::v1::{Failure, MapShard, Reason, Receipt, ScanRequest, ScanResponse};
use quorate_raft::{GroupId, NodeId};
use quorate_storage::{RowKind, ScanRange};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::context::Context;
use super::merge::{Merge, Source, There};
use super::page_token::PageToken;
use super::read::{Level, Ready, ready, storage_failure};
use super::route;
use crate::command::{Invalid, keyspace_id};
use crate::core::{Core, retry_after};
use crate::engine::Shard;

/// Between nodes: the one shard that a passed-on scan is about. Each of its messages has the receipt.
pub const ONLY_SHARD: &str = "quorate-scan-shard";

/// Answers that wait for a slow reader; the scan waits then, until the time of its pins is up.
const ANSWERS_WAITING: usize = 2;

/// The shard that a scan between nodes is about.
#[must_use]
pub fn only_shard(metadata: &MetadataMap) -> Option<GroupId> {
    metadata.get(ONLY_SHARD)?.to_str().ok()?.parse().ok().map(GroupId)
}

/// Begins a scan. When this returns, every shard it reads here is pinned; the rows follow.
///
/// # Errors
///
/// What is wrong with the request, or the failure of a shard that cannot be read at the level.
pub async fn scan(
    core: &Arc<Core>,
    context: &Context,
    request: ScanRequest,
    only: Option<GroupId>,
) -> Result<impl Stream<Item = Result<ScanResponse, Status>> + Send + use<>, Failure> {
    let plan = Plan::of(core, &request)?;
    let level = Level::of(core, request.read.as_ref())?;
    let map = core.map()?;
    if let Some(route) = &request.route {
        let route = quorate_proto::v1::RouteHint { shard: 0, ..route.clone() };
        // Only the cluster is checked: a scan is of all shards.
        if let Some(first) = map.shards().first() {
            route::check_hint(core, Some(&route), first)?;
        }
    }
    let owners = map.shards().iter().filter(|shard| only.is_none_or(|only| only.0 == shard.id));
    let sources = owners.map(|owner| open(core, context, &level, &request, &plan, owner));
    let opened = try_join_all(sources).await?;
    if let Some(only) = only.filter(|_| opened.is_empty()) {
        let message = format!("this node's map has no shard {}", only.0);
        return Err(core.failure(Reason::WrongShard, message));
    }
    // Only when all can be read: a pin does not wait for another shard.
    let sources = opened.into_iter().map(|opened| opened.pin(core, &plan));
    let sources = sources.collect::<Result<_, _>>()?;
    Ok(answers(core, context, plan, sources, only.is_some()))
}

/// Begins the merge; its messages follow. The last one has a place of its own, so that the merge can
/// end when it must, however slowly it is read.
pub(super) fn answers(
    core: &Arc<Core>,
    context: &Context,
    plan: Plan,
    sources: Vec<Source>,
    between_nodes: bool,
) -> impl Stream<Item = Result<ScanResponse, Status>> + Send + use<> {
    let (sender, waiting) = mpsc::channel(ANSWERS_WAITING);
    let (end, ended) = oneshot::channel();
    let merge = Merge::new(core.clone(), context.clone(), plan, sources, sender, between_nodes);
    let (call, context) = (core.life.call(), context.clone());
    tokio::spawn(async move {
        let _call = call;
        // A reader that is gone wants no end.
        if let Some(last) = merge.run().await.transpose() {
            let _ = end.send(last.map_err(|failure| context.status(&failure)));
        }
    });
    let last = async { ended.await.unwrap_or_else(|_| Err(Status::cancelled("the node ends"))) };
    ReceiverStream::new(waiting).map(Ok).chain(stream::once(last))
}

/// A checked request, and how far the scan has come.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) range: ScanRange,
    pub(super) reverse: bool,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
    /// How many rows may still come; `u64::MAX` = no limit.
    pub(super) rows_left: u64,
    pub(super) token: PageToken,
}

impl Plan {
    pub(super) fn of(core: &Core, request: &ScanRequest) -> Result<Self, Failure> {
        let invalid = |invalid: Invalid| core.complete(invalid.failure());
        let keyspace = keyspace_id(&request.keyspace).map_err(invalid)?;
        let bad = |message: &str| Err(core.failure(Reason::BadRequest, message));
        let bounded = !request.start.is_empty() || !request.end.is_empty();
        if !request.prefix.is_empty() && bounded {
            return bad("a scan takes a prefix, or start and end, not both");
        }
        let mut range = ScanRange {
            kind: RowKind::User,
            keyspace,
            start: request.start.clone(),
            end: (!request.end.is_empty()).then(|| request.end.clone()),
        };
        if !request.prefix.is_empty() {
            range.start = request.prefix.clone();
            range.end = after_prefix(&request.prefix);
        }
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return bad(
                "the scan's end is not after its start; start is the lesser also in reverse",
            );
        }
        let mut token = PageToken::first(request);
        let mut rows_left = if request.limit == 0 { u64::MAX } else { request.limit };
        if !request.page_token.is_empty() {
            let bad = |message| core.failure(Reason::BadPageToken, message);
            token = token.resume(&request.page_token).map_err(bad)?;
            rows_left = token.rows_left;
            if request.reverse {
                range.end = Some(token.last_key.clone());
            } else {
                range.start = after_key(&token.last_key);
            }
        }
        token.map_epoch = core.map.epoch();
        Ok(Plan {
            range,
            reverse: request.reverse,
            keys_only: request.keys_only || request.count_only,
            count_only: request.count_only,
            rows_left,
            token,
        })
    }
}

/// The first key behind all keys with this prefix; none for a prefix of 0xff bytes alone.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The first key after this one.
fn after_key(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

/// A shard that can be read at the level of the scan.
enum Opened {
    /// Here, with what a receipt says of it but for the index.
    Here(Arc<Shard>, Receipt),
    There(There),
}

impl Opened {
    /// Pins the shard, if it is of this node: another node has pinned its own.
    fn pin(self, core: &Core, plan: &Plan) -> Result<Source, Failure> {
        let (shard, receipt) = match self {
            Self::Here(shard, receipt) => (shard, receipt),
            Self::There(there) => return Ok(Source::There(there)),
        };
        let group = shard.group.0;
        let pin = shard.reader.pin().map_err(|error| match error {
            quorate_storage::StorageError::TooManyPins { .. } => {
                core.metrics.shed("scan pins").inc();
                let message = format!("too many scans of shard {group} are under way; try again");
                retry_after(core.failure(Reason::Overloaded, message), 1_000)
            }
            error => storage_failure(core, &shard, &error),
        })?;
        let receipt = Receipt { index: pin.index().0, ..receipt };
        let rows = Box::new(pin.scan(&plan.range, plan.reverse));
        Ok(Source::Here { shard, rows, receipt })
    }
}

async fn open(
    core: &Arc<Core>,
    context: &Context,
    level: &Level,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
) -> Result<Opened, Failure> {
    let shard = core.engine.shards().get(GroupId(owner.id)).filter(|shard| shard.serves());
    let Some(shard) = shard else {
        let nodes = route::other_replicas(core, owner);
        return open_there(core, context, request, plan, owner, nodes.into_iter()).await;
    };
    match ready(core, context, &shard, level).await? {
        Ready::Here(receipt) => Ok(Opened::Here(shard, receipt)),
        Ready::AskLeader => {
            let nodes = route::other_replicas(core, owner);
            open_there(core, context, request, plan, owner, nodes.into_iter()).await
        }
    }
}

/// A scan of one shard on another node, at the same level and over what is left of the range.
async fn open_there(
    core: &Arc<Core>,
    context: &Context,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
    nodes: impl Iterator<Item = NodeId>,
) -> Result<Opened, Failure> {
    let mut last = format!("no node with a replica of shard {} can be reached", owner.id);
    for node in nodes {
        let map = core.map()?;
        let Some(address) = map.node(node).map(|node| node.peer_address.clone()) else { continue };
        let mut client = core.forward.client(node, &address)?;
        let message = ScanRequest {
            prefix: Bytes::new(),
            start: plan.range.start.clone(),
            end: plan.range.end.clone().unwrap_or_default(),
            // Counting needs the rows' number alone, but the merged pages need their order.
            keys_only: plan.keys_only,
            count_only: false,
            limit: if plan.rows_left == u64::MAX { 0 } else { plan.rows_left },
            page_token: Bytes::new(),
            route: None,
            ..request.clone()
        };
        let mut call = Request::new(message);
        if let Err(failure) = context.forward_into(call.metadata_mut()) {
            return Err(core.complete(Failure { shard: owner.id, ..failure }));
        }
        if let Ok(shard) = owner.id.to_string().parse() {
            call.metadata_mut().insert(ONLY_SHARD, shard);
        }
        call.set_timeout(context.left());
        match client.scan(call).await {
            Ok(response) => {
                let answers = Box::pin(response.into_inner());
                return Ok(Opened::There(There::new(answers)));
            }
            Err(status) => match Failure::from_details(status.details()) {
                Some((failure, _)) => return Err(core.complete(failure)),
                None => last = format!("node {node} cannot be asked: {}", status.message()),
            },
        }
    }
    let failure = Failure { shard: owner.id, ..Failure::of(Reason::NoLeader, last) };
    Err(core.complete(retry_after(failure, 100)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff\xff"), None);
    }
}
