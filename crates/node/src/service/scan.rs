//! Scans: every shard pinned at one index, merged in byte order by the serving node.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::Stream;
use futures::future::try_join_all;
use quorate_proto::limits::{SCAN_BYTES_MAX, SCAN_MESSAGE_BYTES_MAX, SCAN_ROWS_MAX, SCAN_TIME_MAX};
use quorate_proto::v1::{
    Failure, MapShard, Reason, Receipt, ScanRequest, ScanResponse, ScanRow, SessionToken,
};
use quorate_raft::{GroupId, NodeId};
use quorate_storage::{RowKey, RowKind, Scan, ScanRange};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::context::Context;
use super::page_token::PageToken;
use super::read::{Level, Ready, ready, storage_failure};
use super::route;
use crate::apply::Record;
use crate::command::{Invalid, keyspace_id};
use crate::core::{Core, retry_after};
use crate::engine::Shard;

/// Between nodes: the one shard that a passed-on scan is about.
pub const ONLY_SHARD: &str = "quorate-scan-shard";

/// Answers that wait for a slow reader; its stream stalls then, and so does the scan.
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
    let sources = try_join_all(sources).await?;
    let (answers, waiting) = mpsc::channel(ANSWERS_WAITING);
    let call = core.life.call();
    let merge = Merge::new(core.clone(), context.clone(), plan, sources, answers);
    tokio::task::spawn_blocking(move || {
        let _call = call;
        merge.run();
    });
    Ok(ReceiverStream::new(waiting))
}

/// A checked request.
#[derive(Clone, Debug)]
struct Plan {
    range: ScanRange,
    reverse: bool,
    keys_only: bool,
    count_only: bool,
    rows_left: u64,
    token: PageToken,
}

impl Plan {
    fn of(core: &Core, request: &ScanRequest) -> Result<Self, Failure> {
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

/// One shard's rows, in the order of the scan.
enum Source {
    Here {
        shard: Arc<Shard>,
        rows: Box<Scan>,
        receipt: Receipt,
    },
    There {
        rows: mpsc::Receiver<Result<ScanResponse, Status>>,
        buffer: Vec<ScanRow>,
        receipts: Vec<Receipt>,
    },
}

async fn open(
    core: &Arc<Core>,
    context: &Context,
    level: &Level,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
) -> Result<Source, Failure> {
    let shard = core.engine.shards().get(GroupId(owner.id)).filter(|shard| shard.serves());
    let Some(shard) = shard else {
        let nodes = route::other_replicas(core, owner);
        return open_there(core, context, request, plan, owner, nodes.into_iter()).await;
    };
    let receipt = match ready(core, context, &shard, level).await? {
        Ready::Here(receipt) => receipt,
        Ready::AskLeader => {
            let nodes = route::other_replicas(core, owner);
            return open_there(core, context, request, plan, owner, nodes.into_iter()).await;
        }
    };
    let pin = shard.reader.pin().map_err(|error| match error {
        quorate_storage::StorageError::TooManyPins { .. } => {
            core.metrics.shed("scan pins").inc();
            let message = format!("too many scans of shard {} are under way; try again", owner.id);
            retry_after(core.failure(Reason::Overloaded, message), 1_000)
        }
        error => storage_failure(core, &shard, &error),
    })?;
    let receipt = Receipt { index: pin.index().0, ..receipt };
    let rows = Box::new(pin.scan(&plan.range, plan.reverse));
    Ok(Source::Here { shard, rows, receipt })
}

/// A scan of one shard on another node, at the same level and over what is left of the range.
async fn open_there(
    core: &Arc<Core>,
    context: &Context,
    request: &ScanRequest,
    plan: &Plan,
    owner: &MapShard,
    nodes: impl Iterator<Item = NodeId>,
) -> Result<Source, Failure> {
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
                let (rows, waiting) = mpsc::channel(ANSWERS_WAITING);
                let mut stream = response.into_inner();
                tokio::spawn(async move {
                    while let Some(answer) = stream.message().await.transpose() {
                        let ended = answer.is_err();
                        if rows.send(answer).await.is_err() || ended {
                            return;
                        }
                    }
                });
                let (buffer, receipts) = (Vec::new(), Vec::new());
                return Ok(Source::There { rows: waiting, buffer, receipts });
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

impl Source {
    /// The next row; `None` at the end.
    fn next(&mut self, core: &Core, keys_only: bool) -> Result<Option<ScanRow>, Failure> {
        match self {
            Self::Here { shard, rows, .. } => match rows.next() {
                None => Ok(None),
                Some(Ok((key, record))) => row(core, shard, &key, record, keys_only).map(Some),
                Some(Err(error)) => Err(storage_failure(core, shard, &error)),
            },
            Self::There { rows, buffer, receipts } => loop {
                if let Some(row) = buffer.pop() {
                    return Ok(Some(row));
                }
                match rows.blocking_recv() {
                    None => return Ok(None),
                    Some(Ok(answer)) => {
                        buffer.extend(answer.rows.into_iter().rev());
                        receipts.extend(answer.receipts);
                    }
                    Some(Err(status)) => {
                        let failure = Failure::from_details(status.details());
                        let failure = failure.map(|(failure, _)| failure).unwrap_or_else(|| {
                            let message = format!("a node that was asked failed: {status}");
                            Failure::of(Reason::NoLeader, message)
                        });
                        return Err(core.complete(failure));
                    }
                }
            },
        }
    }
}

fn row(
    core: &Core,
    shard: &Shard,
    key: &RowKey,
    record: Bytes,
    keys_only: bool,
) -> Result<ScanRow, Failure> {
    let record = Record::decode(record).map_err(|damaged| {
        shard.set_damaged(&damaged.to_string());
        core.failure(Reason::ReplicaDamaged, damaged.to_string())
    })?;
    Ok(ScanRow {
        key: key.key_bytes(),
        value: if keys_only { Bytes::new() } else { record.value },
        revision: record.revision,
        create_revision: record.create_revision,
        log_time: record.log_time,
    })
}

/// The head of a source in the merge.
struct Head {
    row: ScanRow,
    source: usize,
    reverse: bool,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the next row is the least key, or the greatest in reverse.
        let by_key = self.row.key.cmp(&other.row.key);
        if self.reverse { by_key } else { by_key.reverse() }
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

/// A scan under way, on a thread that may wait for the disk.
struct Merge {
    core: Arc<Core>,
    context: Context,
    plan: Plan,
    sources: Vec<Source>,
    answers: mpsc::Sender<Result<ScanResponse, Status>>,
    started: Instant,
    count: u64,
    bytes: u64,
}

impl Merge {
    fn new(
        core: Arc<Core>,
        context: Context,
        plan: Plan,
        sources: Vec<Source>,
        answers: mpsc::Sender<Result<ScanResponse, Status>>,
    ) -> Self {
        let started = Instant::now();
        Self { core, context, plan, sources, answers, started, count: 0, bytes: 0 }
    }

    fn run(mut self) {
        match self.rows() {
            Ok(Some(last)) => {
                let _ = self.answers.blocking_send(Ok(last));
            }
            // The caller is gone.
            Ok(None) => {}
            Err(failure) => {
                let _ = self.answers.blocking_send(Err(self.context.status(&failure)));
            }
        }
    }

    /// Sends all messages but the last, which it returns; `None` = nobody listens any more.
    fn rows(&mut self) -> Result<Option<ScanResponse>, Failure> {
        let keys_only = self.plan.keys_only;
        let mut heap = BinaryHeap::with_capacity(self.sources.len());
        for (source, rows) in self.sources.iter_mut().enumerate() {
            if let Some(row) = rows.next(&self.core, keys_only)? {
                heap.push(Head { row, source, reverse: self.plan.reverse });
            }
        }
        let mut answer = ScanResponse::default();
        let mut answer_bytes = 0;
        while let Some(Head { row, source, reverse }) = heap.pop() {
            if self.plan.rows_left == 0 {
                break;
            }
            self.plan.rows_left -= 1;
            self.count += 1;
            self.plan.token.last_key = row.key.clone();
            let row_bytes = row.key.len() + row.value.len() + ROW_OVERHEAD;
            if !self.plan.count_only {
                if answer_bytes > 0 && answer_bytes + row_bytes > SCAN_MESSAGE_BYTES_MAX {
                    let full = std::mem::take(&mut answer);
                    answer_bytes = 0;
                    if self.answers.blocking_send(Ok(full)).is_err() {
                        return Ok(None);
                    }
                }
                answer_bytes += row_bytes;
                answer.rows.push(row);
            }
            self.bytes += row_bytes as u64;
            if let Some(row) = self.sources[source].next(&self.core, keys_only)? {
                heap.push(Head { row, source, reverse });
            }
            if self.over_a_cap() {
                break;
            }
        }
        let at_end = heap.is_empty() || self.plan.rows_left == 0;
        self.finish(answer, at_end).map(Some)
    }

    fn over_a_cap(&self) -> bool {
        // Counting sends nothing, so only time bounds it.
        let sent =
            !self.plan.count_only && (self.count >= SCAN_ROWS_MAX || self.bytes >= SCAN_BYTES_MAX);
        sent || self.started.elapsed() >= SCAN_TIME_MAX
            || self.context.left() < std::time::Duration::from_millis(50)
    }

    fn finish(&mut self, mut answer: ScanResponse, at_end: bool) -> Result<ScanResponse, Failure> {
        answer.count = self.count;
        if !at_end {
            self.plan.token.rows_left = self.plan.rows_left;
            answer.next_page_token = self.plan.token.encode();
        }
        answer.receipts = self.receipts();
        let mut token = SessionToken::default();
        for receipt in &answer.receipts {
            let part = self.core.token(receipt);
            if token.cluster_id.is_empty() {
                token = part;
            } else if token.merge(&part).is_err() {
                let message = "the nodes that answered are in different histories";
                return Err(self.core.failure(Reason::Internal, message));
            }
        }
        answer.token = Some(token);
        Ok(answer)
    }

    /// One receipt per shard. A source on another node that was not read to its end has not sent
    /// its receipt: the rest of its rows is read for it, within the call's time.
    fn receipts(&mut self) -> Vec<Receipt> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::with_capacity(self.sources.len());
        for source in &mut self.sources {
            match source {
                Source::Here { receipt, .. } => all.push(receipt.clone()),
                Source::There { rows, receipts, .. } => {
                    while let Some(Ok(answer)) = rows.blocking_recv() {
                        receipts.extend(answer.receipts);
                    }
                    all.append(receipts);
                }
            }
        }
        all.retain(|receipt| seen.insert(receipt.shard));
        all
    }
}

/// About what a row takes in a message beside its key and value.
const ROW_OVERHEAD: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(after_prefix(b"\xff\xff"), None);
    }

    #[test]
    fn heads_come_in_the_order_of_the_scan() {
        let keys = |reverse| {
            let mut heap: BinaryHeap<Head> = [b"b", b"a", b"c"]
                .into_iter()
                .map(|key| Head {
                    row: ScanRow { key: Bytes::from_static(key), ..ScanRow::default() },
                    source: 0,
                    reverse,
                })
                .collect();
            std::iter::from_fn(move || heap.pop().map(|head| head.row.key)).collect::<Vec<_>>()
        };
        assert_eq!(keys(false), ["a", "b", "c"]);
        assert_eq!(keys(true), ["c", "b", "a"]);
    }
}
