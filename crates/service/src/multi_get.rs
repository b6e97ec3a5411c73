//! MultiGet: keys of any shards, read in the order of the request, each shard at one index.
//!
//! The shards are made ready together and once; then the rows are read as the messages are put
//! together, and these as their reader takes them. While it takes none, the call holds what it has
//! read and nothing that another call waits for: no place among the reads under way, no thread, no
//! stream to another node. What is elsewhere comes in pieces, each an answer of its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use quorate_engine::Shard;
use quorate_machine::Record;
use quorate_proto::hash::key_hash;
use quorate_proto::limits::REQUEST_BYTES_MAX;
use quorate_proto::v1::{
    Failure, MapShard, MultiGetRequest, MultiGetResponse, MultiGetResult, ReadOptions, Reason,
    Receipt, SessionToken,
};
use quorate_raft::GroupId;
use quorate_storage::{Lookup, RowKey, RowKind};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;

use super::context::{Context, read_timeout};
use super::forward::PIECE;
use super::read::{Level, Ready, damaged_failure, from_disk, ready, storage_failure};
use super::route::{self, LEADER_TIMEOUT};
use crate::admission::Admitted;
use crate::draft::{Invalid, check_key, keyspace_id};
use crate::outcome::Subject;
use crate::shared::Shared;

/// The bytes of a message, unless a single result has more.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The least that a result counts in a message: about what it takes in memory, so that many absent
/// keys are several messages too.
const RESULT_BYTES_MIN: usize = 256;
/// The most that the number and the length of a result take in a message.
const FIELD_BYTES: usize = 8;
/// Shards elsewhere that are asked at the same time, and of which a call holds answers.
const SHARDS_AT_ONCE: usize = 8;
/// The keys that a shard elsewhere is asked for at once: an answer has no more results.
const KEYS_AT_ONCE: usize = 1_024;
/// Rows that are read from the disk with one thread before others may have it.
const ROWS_AT_ONCE: usize = 32;

/// The bytes that another node wants the one message of its answer to have; `None` = the answer is
/// for a client, which gets all of it.
pub fn piece_bytes(metadata: &MetadataMap) -> Option<usize> {
    metadata.get(PIECE)?.to_str().ok()?.parse().ok()
}

/// Begins a MultiGet. It keeps its place among the reads under way until its first message is put
/// together: what comes after waits for the reader.
///
/// # Errors
/// What is wrong with the request. A key that cannot be read has a failure in its result.
pub fn multi_get(
    shared: &Arc<Shared>,
    context: &Context,
    place: Option<Admitted>,
    request: MultiGetRequest,
    piece: Option<usize>,
) -> Result<impl Stream<Item = Result<MultiGetResponse, Failure>> + Send + use<>, Failure> {
    let mut reading = Reading::of(shared, context, request, piece)?;
    let (made, first) = oneshot::channel();
    let guard = shared.life.call();
    tokio::spawn(async move {
        let _held = (place, guard);
        let mut made = made;
        let message = tokio::select! {
            message = reading.first() => message,
            // Its reader has left.
            () = made.closed() => return,
        };
        let _ = made.send(message.map(|message| (message, reading)));
    });
    let first = first.map(|made| {
        made.unwrap_or_else(|_| Err(Failure::of(Reason::Internal, "the read was stopped")))
    });
    Ok(stream::once(first).flat_map(|made| match made {
        Ok((message, reading)) => {
            let rest = stream::try_unfold(reading, |mut reading| async {
                Ok(reading.next().await?.map(|message| (message, reading)))
            });
            stream::once(async { Ok(message) }).chain(rest).left_stream()
        }
        Err(failure) => stream::once(async { Err(failure) }).right_stream(),
    }))
}

/// A shard with keys of the request.
struct Part {
    owner: MapShard,
    /// The places of its keys in the request, in order.
    keys: Vec<u32>,
    /// How many of them another node was asked for and has answered.
    asked: usize,
    place: Place,
}

/// Where the keys of a shard are read.
enum Place {
    /// Not known yet.
    Open,
    /// At the replica of this node, which includes what the level asks for.
    Here(Arc<Shard>),
    /// At another node, with the results that came and are not in a message yet.
    There(VecDeque<MultiGetResult>),
    /// Nowhere.
    Failed(Failure),
}

/// A MultiGet under way.
struct Reading {
    shared: Arc<Shared>,
    context: Context,
    level: Level,
    keyspace: u32,
    /// The request without its keys, for other nodes.
    asks: MultiGetRequest,
    keys: Vec<Bytes>,
    /// The part of each key.
    part_of: Vec<u32>,
    parts: Vec<Part>,
    /// The first key that has no result yet.
    at: usize,
    /// The results before it that are not in a message yet.
    pending: VecDeque<MultiGetResult>,
    /// The first receipt of each shard: all of its rows are at least as new.
    receipts: BTreeMap<u64, Receipt>,
    /// What was seen.
    token: SessionToken,
    /// Bytes of a message, unless a single result has more.
    bytes_max: usize,
    /// Whether the first message is the last one.
    is_piece: bool,
    ended: bool,
}

impl Reading {
    fn of(
        shared: &Arc<Shared>,
        context: &Context,
        mut request: MultiGetRequest,
        piece: Option<usize>,
    ) -> Result<Self, Failure> {
        let invalid = |invalid: Invalid| invalid.failure();
        let keyspace = keyspace_id(&request.keyspace).map_err(invalid)?;
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES_MAX {
            return Err(too_large(bytes));
        }
        for (at, key) in request.keys.iter().enumerate() {
            check_key(&format!("keys[{at}]"), key).map_err(invalid)?;
        }
        let level = Level::of(shared, request.read.as_ref())?;
        let map = shared.map()?;
        let keys = std::mem::take(&mut request.keys);
        let (mut parts, mut part_of) = (Vec::<Part>::new(), Vec::with_capacity(keys.len()));
        let mut known = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            let owner = map.shard_of(key_hash(key));
            let part = *known.entry(owner.id).or_insert(parts.len());
            if part == parts.len() {
                // A hint that names a shard is wrong unless all keys are in it.
                route::check_hint(shared, request.route.as_ref(), owner)?;
                let owner = owner.clone();
                parts.push(Part { owner, keys: Vec::new(), asked: 0, place: Place::Open });
            }
            parts[part].keys.push(at as u32);
            part_of.push(part as u32);
        }
        let token = SessionToken {
            cluster_id: shared.cluster_id.clone(),
            history: map.proto().history.clone(),
            map_epoch: map.epoch(),
            parts: Vec::new(),
        };
        Ok(Self {
            shared: shared.clone(),
            context: context.clone(),
            level,
            keyspace,
            asks: MultiGetRequest { route: None, ..request },
            keys,
            part_of,
            parts,
            at: 0,
            pending: VecDeque::new(),
            receipts: BTreeMap::new(),
            token,
            bytes_max: piece.map_or(MESSAGE_BYTES_MAX, |bytes| bytes.min(MESSAGE_BYTES_MAX)),
            is_piece: piece.is_some(),
            ended: false,
        })
    }

    /// Makes the shards ready and puts the first message together.
    async fn first(&mut self) -> Result<MultiGetResponse, Failure> {
        let deadline = self.context.deadline;
        let message = async {
            self.open().await;
            self.message().await
        };
        match timeout_at(deadline, message).await {
            Ok(message) => message,
            Err(_) => Err(read_timeout("its first keys")),
        }
    }

    /// The next message; `None` after the last one.
    async fn next(&mut self) -> Result<Option<MultiGetResponse>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let deadline = self.context.deadline;
        match timeout_at(deadline, self.message()).await {
            Ok(message) => message.map(Some),
            Err(_) => Err(read_timeout("its answers to be taken, and the keys after them")),
        }
    }

    /// The call with most of what is left of its time: what waits for one shard must leave some to
    /// the keys of the others.
    fn share(&self) -> Context {
        let deadline = Instant::now() + self.context.left() / 4 * 3;
        Context { deadline, ..self.context.clone() }
    }

    /// Waits for each shard of this node, once for all of its keys.
    async fn open(&mut self) {
        let (shared, context, level) = (&self.shared, self.share(), &self.level);
        let opened = join_all(self.parts.iter().map(|part| {
            let shard = shared.engine.shards().get(GroupId(part.owner.id));
            let context = &context;
            async move {
                let shard = shard.filter(|shard| shard.serves())?;
                let ready = ready(shared, context, &shard, level).await;
                Some((shard, ready))
            }
        }))
        .await;
        for (at, opened) in opened.into_iter().enumerate() {
            let place = match opened {
                Some((shard, Ok(Ready::Here(receipt)))) => {
                    self.note(receipt);
                    Place::Here(shard)
                }
                None | Some((_, Ok(Ready::AskLeader))) => Place::There(VecDeque::new()),
                Some((_, Err(failure))) => Place::Failed(self.of_shard(at, failure)),
            };
            self.parts[at].place = place;
        }
    }

    /// The failure of all keys of a shard.
    fn of_shard(&self, part: usize, failure: Failure) -> Failure {
        let failure = match failure.shard {
            0 => Failure { shard: self.parts[part].owner.id, ..failure },
            _ => failure,
        };
        Subject::Read.report(self.shared.complete(failure))
    }

    fn note(&mut self, receipt: Receipt) {
        // One of another history adds nothing to the token; the receipt shows it.
        let _ = self.token.merge(&self.shared.token(&receipt));
        self.receipts.entry(receipt.shard).or_insert(receipt);
    }

    /// Puts a message together.
    async fn message(&mut self) -> Result<MultiGetResponse, Failure> {
        let (mut message, mut bytes) = (MultiGetResponse::default(), 0);
        loop {
            while let Some(result) = self.pending.front() {
                let length = counted(result);
                let fits = bytes == 0 || bytes + length <= self.bytes_max;
                let Some(result) = self.pending.pop_front_if(|_| fits) else { break };
                bytes += length;
                message.results.push(result);
            }
            let is_full = !self.pending.is_empty();
            self.ended = (self.at == self.keys.len() && !is_full) || (is_full && self.is_piece);
            if self.ended {
                message.receipts = std::mem::take(&mut self.receipts).into_values().collect();
                message.token = Some(std::mem::take(&mut self.token));
            }
            if self.ended || is_full {
                return Ok(message);
            }
            self.advance().await?;
        }
    }

    /// Finds the result of the next key, or comes nearer to it.
    async fn advance(&mut self) -> Result<(), Failure> {
        let part = &mut self.parts[self.part_of[self.at] as usize];
        let result = match &mut part.place {
            Place::Here(_) => return self.read_here().await,
            Place::There(came) => came.pop_front(),
            Place::Failed(failure) => Some(failed(failure.clone())),
            Place::Open => None,
        };
        match result {
            Some(result) => {
                self.pending.push_back(result);
                self.at += 1;
            }
            None => self.ask().await,
        }
        Ok(())
    }

    /// The shard of a key, if it is read here.
    fn here(&self, key: usize) -> Option<&Arc<Shard>> {
        match &self.parts[*self.part_of.get(key)? as usize].place {
            Place::Here(shard) => Some(shard),
            Place::Open | Place::There(_) | Place::Failed(_) => None,
        }
    }

    /// Reads the next keys as long as they are of this node: from memory as far as that goes, and
    /// else several with one thread.
    async fn read_here(&mut self) -> Result<(), Failure> {
        let (mut bytes, mut on_disk) = (0, Vec::new());
        while bytes <= self.bytes_max && on_disk.len() < ROWS_AT_ONCE {
            let at = self.at + on_disk.len();
            let Some(shard) = self.here(at) else { break };
            let key = RowKey::new(RowKind::User, self.keyspace, &self.keys[at]);
            let row = match shard.reader.try_get(&key) {
                Lookup::Found(row) if on_disk.is_empty() => Some(row),
                Lookup::Absent if on_disk.is_empty() => None,
                Lookup::Found(_) | Lookup::Absent | Lookup::Tree => {
                    on_disk.push((shard.clone(), key));
                    continue;
                }
            };
            let result = self.result(&shard.clone(), row);
            bytes += counted(&result);
            self.pending.push_back(result);
            self.at += 1;
        }
        if on_disk.is_empty() || bytes > self.bytes_max {
            return Ok(());
        }
        let bytes_max = self.bytes_max - bytes;
        let read = move || {
            let (mut bytes, mut rows) = (0, Vec::new());
            for (shard, key) in on_disk {
                let row = shard.reader.get(&key);
                bytes += row.iter().flatten().map(Bytes::len).sum::<usize>();
                rows.push((shard, row));
                if bytes > bytes_max {
                    break;
                }
            }
            rows
        };
        let rows = from_disk(&self.context, &self.shared.read_threads, read).await?;
        for (shard, row) in rows {
            let result = match row {
                Ok(row) => self.result(&shard, row),
                Err(error) => {
                    let failure = storage_failure(&self.shared, &shard, &error);
                    failed(Subject::Read.report(self.shared.complete(failure)))
                }
            };
            self.pending.push_back(result);
            self.at += 1;
        }
        Ok(())
    }

    fn result(&self, shard: &Shard, row: Option<Bytes>) -> MultiGetResult {
        let Some(row) = row else { return MultiGetResult::default() };
        match Record::decode(row) {
            Ok(record) => MultiGetResult {
                found: true,
                value: record.value,
                revision: record.revision,
                create_revision: record.create_revision,
                log_time: record.log_time,
                failure: None,
            },
            Err(damaged) => {
                shard.set_damaged(&damaged.to_string());
                failed(Subject::Read.report(self.shared.complete(damaged_failure(shard))))
            }
        }
    }

    /// Asks other nodes for the shard of the next key, and for those that are needed next, up to
    /// [`SHARDS_AT_ONCE`] with those whose results wait here.
    async fn ask(&mut self) {
        let (mut wanted, mut waiting) = (Vec::new(), 0);
        for (at, part) in self.parts.iter().enumerate() {
            match &part.place {
                Place::There(came) if !came.is_empty() => waiting += 1,
                Place::There(_) => wanted.extend(part.keys.get(part.asked).map(|key| (*key, at))),
                Place::Open | Place::Here(_) | Place::Failed(_) => {}
            }
        }
        wanted.sort_unstable();
        // The first one is that of the next key.
        wanted.truncate(SHARDS_AT_ONCE.saturating_sub(waiting).max(1));
        let context = self.share();
        let answers = join_all(wanted.iter().map(|(_, at)| self.piece(&context, *at))).await;
        for ((_, at), answer) in wanted.into_iter().zip(answers) {
            let part = &mut self.parts[at];
            let left = part.keys.len() - part.asked;
            let answer = answer.and_then(|answer| match answer.results.len() {
                results if (1..=left).contains(&results) => Ok(answer),
                results => {
                    let message = format!("a node answered {left} keys with {results} results");
                    Err(Failure::of(Reason::Internal, message))
                }
            });
            match answer {
                Ok(answer) => {
                    part.asked += answer.results.len();
                    part.place = Place::There(answer.results.into());
                    for receipt in answer.receipts {
                        self.note(receipt);
                    }
                }
                Err(failure) => self.parts[at].place = Place::Failed(self.of_shard(at, failure)),
            }
        }
    }

    /// The next results of a shard, by another node.
    async fn piece(&self, context: &Context, part: usize) -> Result<MultiGetResponse, Failure> {
        let part = &self.parts[part];
        let keys = part.keys[part.asked..].iter().take(KEYS_AT_ONCE);
        let request = MultiGetRequest {
            keys: keys.map(|key| self.keys[*key as usize].clone()).collect(),
            read: self.asks.read.as_ref().map(|read| of_one(read, part.owner.id)),
            ..self.asks.clone()
        };
        let give_up = context.deadline.min(Instant::now() + LEADER_TIMEOUT);
        route::pass_to_replicas(&self.shared, context, &part.owner, &request, give_up).await
    }
}

/// The options of a read of one shard.
fn of_one(read: &ReadOptions, shard: u64) -> ReadOptions {
    let mut read = read.clone();
    if let Some(token) = &mut read.token {
        token.parts.retain(|part| part.shard == shard);
    }
    read
}

/// What a result counts in a message.
fn counted(result: &MultiGetResult) -> usize {
    (result.encoded_len() + FIELD_BYTES).max(RESULT_BYTES_MIN)
}

fn failed(failure: Failure) -> MultiGetResult {
    MultiGetResult { failure: Some(failure), ..MultiGetResult::default() }
}

fn too_large(bytes: usize) -> Failure {
    let message =
        format!("the request is {bytes} bytes long; the limit is {REQUEST_BYTES_MAX} bytes");
    Failure {
        field: "keys".to_owned(),
        limit: REQUEST_BYTES_MAX as u64,
        ..Failure::of(Reason::TooLarge, message)
    }
}
