//! Scans: every shard pinned at one index, merged in byte order by the serving node.

mod merge;
mod page_token;
mod plan;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use quorate_engine::Shard;
use quorate_proto::v1::{Failure, MapShard, Reason, Receipt, ScanRequest, ScanResponse};
use quorate_raft::{GroupId, NodeId};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::MetadataMap;

use super::context::Context;
use super::read::{Level, Ready, ready, storage_failure};
use super::route;
use crate::forward::{Purpose, SCANS_PER_CONNECTION};
use crate::metrics::Shed;
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
    // A page token is checked against it.
    let map = shared.map()?;
    let plan = Plan::of(shared, &request)?;
    let level = Level::of(shared, request.read.as_ref())?;
    if let Some(route) = &request.route {
        let route = quorate_proto::v1::RouteHint { shard: 0, ..route.clone() };
        // Only the cluster is checked: a scan is of all shards.
        if let Some(first) = map.shards().first() {
            route::check_hint(shared, Some(&route), first)?;
        }
    }
    let owners = map.shards().iter().filter(|shard| only.is_none_or(|only| only.0 == shard.id));
    let elsewhere = Elsewhere::default();
    let between_nodes = only.is_some();
    let scan =
        Scan { shared, context, level: &level, request: &request, plan: &plan, between_nodes };
    let sources = owners.map(|owner| scan.open(&elsewhere, owner));
    let opened = try_join_all(sources).await?;
    if let Some(only) = only.filter(|_| opened.is_empty()) {
        let message = format!("this node's map has no shard {}", only.0);
        return Err(Failure::of(Reason::WrongShard, message));
    }
    // Only when all can be read: a pin does not wait for another shard.
    let sources = opened.into_iter().map(|opened| opened.pin(shared, &plan));
    let sources = sources.collect::<Result<_, _>>()?;
    Ok(answers(shared, context, plan, sources, between_nodes))
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
                shared.metrics.shed(Shed::ScanPins).inc();
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

/// What the streams of one scan on other nodes share.
#[derive(Default)]
struct Elsewhere {
    /// The scan's place among those that have such streams; taken once, for all of its streams, so
    /// that no two scans each hold what the other waits for.
    place: OnceCell<Arc<OwnedSemaphorePermit>>,
    /// Streams that were begun, by node.
    begun: Mutex<BTreeMap<NodeId, usize>>,
}

impl Elsewhere {
    /// The connection to a node for one more stream.
    fn connection(&self, node: NodeId) -> Purpose {
        let mut begun = self.begun.lock();
        let begun = begun.entry(node).or_default();
        *begun += 1;
        Purpose::Scans(((*begun - 1) / SCANS_PER_CONNECTION) as u32)
    }
}

/// A scan whose shards are being opened.
struct Scan<'a> {
    shared: &'a Arc<Shared>,
    context: &'a Context,
    level: &'a Level,
    request: &'a ScanRequest,
    plan: &'a Plan,
    /// Another node's scan has its place there. One here too would wait for it in a circle.
    between_nodes: bool,
}

impl Scan<'_> {
    async fn open(&self, elsewhere: &Elsewhere, owner: &MapShard) -> Result<Opened, Failure> {
        let shards = self.shared.engine.shards();
        if let Some(shard) = shards.get(GroupId(owner.id)).filter(|shard| shard.serves())
            && let Ready::Here(receipt) =
                ready(self.shared, self.context, &shard, self.level).await?
        {
            return Ok(Opened::Here(shard, receipt));
        }
        self.open_there(elsewhere, owner).await
    }

    async fn place(&self, elsewhere: &Elsewhere) -> Result<Arc<OwnedSemaphorePermit>, Failure> {
        let take = async {
            let places = self.shared.forward.scans.clone();
            // It is never closed.
            places.acquire_owned().await.map(Arc::new).map_err(|_| ())
        };
        let place = elsewhere.place.get_or_try_init(|| take);
        match timeout_at(self.context.deadline, place).await {
            Ok(Ok(place)) => Ok(place.clone()),
            Ok(Err(())) | Err(_) => {
                self.shared.metrics.shed(Shed::ScansElsewhere).inc();
                let message = "too many scans over other nodes are under way; try again";
                Err(retry_after(Failure::of(Reason::Overloaded, message), 1_000))
            }
        }
    }

    /// A scan of one shard on another node, at the same level and over what is left of the range.
    /// The size of the page goes with it: that many rows of one shard are a whole page here.
    async fn open_there(&self, elsewhere: &Elsewhere, owner: &MapShard) -> Result<Opened, Failure> {
        let Scan { shared, context, request, plan, .. } = *self;
        let place = match self.between_nodes {
            true => None,
            false => Some(self.place(elsewhere).await?),
        };
        let mut last = format!("no node with a replica of shard {} can be reached", owner.id);
        for node in route::other_replicas(shared, owner) {
            let map = shared.map()?;
            let Some(address) = map.node(node).map(|node| node.peer_address.clone()) else {
                continue;
            };
            let mut client = shared.forward.client(node, elsewhere.connection(node), &address)?;
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
            if let Err(failure) = shared.forward.prove(node, call.metadata_mut()) {
                last = failure.message;
                continue;
            }
            if let Ok(shard) = owner.id.to_string().parse() {
                call.metadata_mut().insert(ONLY_SHARD, shard);
            }
            call.set_timeout(context.left());
            match client.scan(call).await {
                Ok(response) => {
                    let answers = Box::pin(response.into_inner());
                    return Ok(Opened::There(There::new(answers, place)));
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
}
