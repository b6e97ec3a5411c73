//! Scans: every shard pinned at one index, merged in byte order by the serving node.

mod merge;
mod page_token;
mod plan;
mod source;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use quorate_engine::Shard;
use quorate_proto::v1::{Failure, MapShard, Reason, Receipt, ScanRequest, ScanResponse};
use quorate_raft::{GroupId, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::context::Context;
use super::read::{Level, Ready, ready, storage_failure};
use super::route;
use crate::shared::{Shared, retry_after};

use merge::Merge;
pub(crate) use plan::Plan;
pub(crate) use source::{Source, There};

/// Between nodes: the one shard that a passed-on scan is about. Each of its messages has the
/// receipt.
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
/// What is wrong with the request, or the failure of a shard that cannot be read at the level.
pub async fn scan(
    shared: &Arc<Shared>,
    context: &Context,
    request: ScanRequest,
    only: Option<GroupId>,
) -> Result<impl Stream<Item = Result<ScanResponse, Failure>> + Send + use<>, Failure> {
    let plan = Plan::of(shared, &request)?;
    let level = Level::of(shared, request.read.as_ref())?;
    let map = shared.map()?;
    if let Some(route) = &request.route {
        let route = quorate_proto::v1::RouteHint { shard: 0, ..route.clone() };
        // Only the cluster is checked: a scan is of all shards.
        if let Some(first) = map.shards().first() {
            route::check_hint(shared, Some(&route), first)?;
        }
    }
    let owners = map.shards().iter().filter(|shard| only.is_none_or(|only| only.0 == shard.id));
    let sources = owners.map(|owner| open(shared, context, &level, &request, &plan, owner));
    let opened = try_join_all(sources).await?;
    if let Some(only) = only.filter(|_| opened.is_empty()) {
        let message = format!("this node's map has no shard {}", only.0);
        return Err(Failure::of(Reason::WrongShard, message));
    }
    // Only when all can be read: a pin does not wait for another shard.
    let sources = opened.into_iter().map(|opened| opened.pin(shared, &plan));
    let sources = sources.collect::<Result<_, _>>()?;
    Ok(answers(shared, context, plan, sources, only.is_some()))
}

/// Begins the merge; its messages follow. The last one has a place of its own, so that the merge
/// can end when it must, however slowly it is read.
pub(super) fn answers(
    shared: &Arc<Shared>,
    context: &Context,
    plan: Plan,
    sources: Vec<Source>,
    between_nodes: bool,
) -> impl Stream<Item = Result<ScanResponse, Failure>> + Send + use<> {
    let (sender, waiting) = mpsc::channel(ANSWERS_WAITING);
    let (end, ended) = oneshot::channel();
    let merge = Merge::new(shared.clone(), context.clone(), plan, sources, sender, between_nodes);
    let call = shared.life.call();
    tokio::spawn(async move {
        let _call = call;
        // A reader that is gone wants no end.
        if let Some(last) = merge.run().await.transpose() {
            let _ = end.send(last);
        }
    });
    let last = async {
        ended.await.unwrap_or_else(|_| Err(Failure::of(Reason::Draining, "the node ends")))
    };
    ReceiverStream::new(waiting).map(Ok).chain(stream::once(last))
}

/// A shard that can be read at the level of the scan.
enum Opened {
    /// Here, with what a receipt says of it but for the index.
    Here(Arc<Shard>, Receipt),
    There(There),
}

impl Opened {
    /// Pins the shard, if it is of this node: another node has pinned its own.
    fn pin(self, shared: &Shared, plan: &Plan) -> Result<Source, Failure> {
        let (shard, receipt) = match self {
            Self::Here(shard, receipt) => (shard, receipt),
            Self::There(there) => return Ok(Source::There(there)),
        };
        let group = shard.group.0;
        let pin = shard.reader.pin().map_err(|error| match error {
            quorate_storage::StorageError::TooManyPins { .. } => {
                shared.metrics.shed("scan pins").inc();
                let message = format!("too many scans of shard {group} are under way; try again");
                retry_after(Failure::of(Reason::Overloaded, message), 1_000)
            }
            error => storage_failure(shared, &shard, &error),
        })?;
        let receipt = Receipt { index: pin.index().0, ..receipt };
        let rows = Box::new(pin.scan(&plan.range, plan.reverse));
        Ok(Source::Here { shard, rows, receipt })
    }
}

async fn open(
    shared: &Arc<Shared>,
    context: &Context,
    level: &Level,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
) -> Result<Opened, Failure> {
    let shard = shared.engine.shards().get(GroupId(owner.id)).filter(|shard| shard.serves());
    let Some(shard) = shard else {
        let nodes = route::other_replicas(shared, owner);
        return open_there(shared, context, request, plan, owner, nodes.into_iter()).await;
    };
    match ready(shared, context, &shard, level).await? {
        Ready::Here(receipt) => Ok(Opened::Here(shard, receipt)),
        Ready::AskLeader => {
            let nodes = route::other_replicas(shared, owner);
            open_there(shared, context, request, plan, owner, nodes.into_iter()).await
        }
    }
}

/// A scan of one shard on another node, at the same level and over what is left of the range.
async fn open_there(
    shared: &Arc<Shared>,
    context: &Context,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
    nodes: impl Iterator<Item = NodeId>,
) -> Result<Opened, Failure> {
    let mut last = format!("no node with a replica of shard {} can be reached", owner.id);
    for node in nodes {
        let map = shared.map()?;
        let Some(address) = map.node(node).map(|node| node.peer_address.clone()) else { continue };
        let mut client = shared.forward.client(node, &address)?;
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
            return Err(Failure { shard: owner.id, ..failure });
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
                Some((failure, _)) => return Err(failure),
                None => last = format!("node {node} cannot be asked: {}", status.message()),
            },
        }
    }
    let failure = Failure { shard: owner.id, ..Failure::of(Reason::NoLeader, last) };
    Err(retry_after(failure, 100))
}
