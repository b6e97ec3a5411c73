//! Reads at the level that the caller chose, from the replica of this node where it can answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use quorate_engine::{ReadGrant, ReadRequest, Shard};
use quorate_machine::Record;
use quorate_proto::limits::TOKEN_PARTS_MAX;
use quorate_proto::v1::{
    Failure, GetRequest, GetResponse, ReadLevel, ReadOptions, Reason, Receipt, SessionToken,
};
use quorate_raft::{GroupId, Index};
use quorate_storage::{Lookup, RowKey, RowKind, StorageError};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::context::{Context, read_timeout};
use super::route::{self, LEADER_TIMEOUT, LeaderLocation, no_leader, wait_for_change};
use crate::draft::{check_key, keyspace_id};
use crate::metrics::Shed;
use crate::shared::{Shared, retry_after};

/// A read level with what it needs.
#[derive(Clone, Debug)]
pub enum Level {
    /// Everything that was answered before the read began is seen.
    Linearizable,
    /// At least what the token names is seen.
    Session(SessionToken),
    /// What this replica holds.
    Stale,
}

impl Level {
    /// Reads and checks the options of a request.
    ///
    /// # Errors
    /// BAD_LEVEL, BAD_TOKEN or TOKEN_FOREIGN; NOT_OFFERED for the levels that wait for ages.
    pub fn of(shared: &Shared, options: Option<&ReadOptions>) -> Result<Self, Failure> {
        let Some(options) = options else { return Ok(Self::Linearizable) };
        let Ok(level) = ReadLevel::try_from(options.level) else {
            let message = format!("read level {} is not one of this API", options.level);
            let field = "read.level".to_owned();
            return Err(Failure { field, ..Failure::of(Reason::BadLevel, message) });
        };
        match level {
            ReadLevel::Unspecified | ReadLevel::Linearizable => Ok(Self::Linearizable),
            ReadLevel::Stale => Ok(Self::Stale),
            ReadLevel::Session => {
                let token = options.token.clone().unwrap_or_default();
                check_token(shared, &token)?;
                Ok(Self::Session(token))
            }
            ReadLevel::Lease | ReadLevel::Bounded => Err(Failure::of(
                Reason::NotOffered,
                format!("this version does not serve {} reads", level.as_str_name()),
            )),
        }
    }

    fn delivered(&self) -> ReadLevel {
        match self {
            Self::Linearizable => ReadLevel::Linearizable,
            Self::Session(_) => ReadLevel::Session,
            Self::Stale => ReadLevel::Stale,
        }
    }
}

fn check_token(shared: &Shared, token: &SessionToken) -> Result<(), Failure> {
    let bad = |field: String, message: String| {
        Err(Failure { field, ..Failure::of(Reason::BadToken, message) })
    };
    if token.parts.len() > TOKEN_PARTS_MAX {
        let message =
            format!("the token has {} parts; the limit is {TOKEN_PARTS_MAX}", token.parts.len());
        let limit = TOKEN_PARTS_MAX as u64;
        return bad("read.token".to_owned(), message).map_err(|bad| Failure { limit, ..bad });
    }
    let mut named = BTreeSet::new();
    for (at, part) in token.parts.iter().enumerate() {
        let field = || format!("read.token.parts[{at}].shard");
        if part.shard == 0 {
            return bad(field(), format!("{} is 0; shards begin with 1", field()));
        }
        if !named.insert(part.shard) {
            return bad(field(), format!("the token names shard {} twice", part.shard));
        }
    }
    let history = shared.map.get().map_or_else(Bytes::new, |map| map.proto().history.clone());
    let foreign = |ours: &Bytes, theirs: &Bytes| !theirs.is_empty() && theirs != ours;
    if foreign(&shared.cluster_id, &token.cluster_id) || foreign(&history, &token.history) {
        let message = "the token is of another cluster, or of another history of this one";
        return Err(Failure::of(Reason::TokenForeign, message));
    }
    Ok(())
}

/// Whether the replica of this node may answer.
pub enum Ready {
    /// It may: what it has applied now includes what the level asks for.
    Here(Receipt),
    /// It is behind what the level asks for: the leader should answer.
    AskLeader,
}

/// Answers a Get, here or by another node.
///
/// # Errors
/// The failure, for the caller to send.
pub async fn get(
    shared: &Arc<Shared>,
    context: &Context,
    request: GetRequest,
) -> Result<GetResponse, Failure> {
    let invalid = |invalid: crate::draft::Invalid| invalid.failure();
    check_key("key", &request.key).map_err(invalid)?;
    let keyspace = keyspace_id(&request.keyspace).map_err(invalid)?;
    let level = Level::of(shared, request.read.as_ref())?;
    let map = shared.map()?;
    let owner = map.shard_of(quorate_proto::hash::key_hash(&request.key));
    route::check_hint(shared, request.route.as_ref(), owner)?;
    let give_up = context.deadline.min(context.started + LEADER_TIMEOUT);
    let shard = shared.engine.shards().get(GroupId(owner.id)).filter(|shard| shard.serves());
    let Some(shard) = shard else {
        room_for_value(shared, context).await?;
        return route::pass_to_replicas(shared, context, owner, &request, give_up).await;
    };
    match ready(shared, context, &shard, &level).await? {
        Ready::Here(receipt) => {
            room_for_value(shared, context).await?;
            let key = RowKey::new(RowKind::User, keyspace, &request.key);
            let row = row(shared, context, &shard, key).await?;
            respond(shared, &shard, receipt, row)
        }
        // This replica is behind and the leader is not. If the leader is unknown here, another
        // replica forwards the call.
        Ready::AskLeader => {
            room_for_value(shared, context).await?;
            route::pass_to_replicas(shared, context, owner, &request, context.deadline).await
        }
    }
}

/// Waits, in a Pipeline, until the answers before leave room for a value.
async fn room_for_value(shared: &Shared, context: &Context) -> Result<(), Failure> {
    let Some(stream) = &context.in_stream else { return Ok(()) };
    let room = stream.take_room(shared.rules.value_bytes_max);
    match timeout_at(context.deadline, room).await {
        Ok(()) => Ok(()),
        Err(_) => Err(read_timeout("the answers before it to be read")),
    }
}

fn respond(
    shared: &Shared,
    shard: &Shard,
    receipt: Receipt,
    row: Option<Bytes>,
) -> Result<GetResponse, Failure> {
    let token = Some(shared.token(&receipt));
    let receipt = Some(receipt);
    let Some(row) = row else {
        return Ok(GetResponse { found: false, receipt, token, ..GetResponse::default() });
    };
    let record = Record::decode(row).map_err(|damaged| {
        shard.set_damaged(&damaged.to_string());
        damaged_failure(shard)
    })?;
    Ok(GetResponse {
        found: true,
        value: record.value,
        revision: record.revision,
        create_revision: record.create_revision,
        log_time: record.log_time,
        receipt,
        token,
    })
}

/// Waits until the replica of this node may answer at the level.
///
/// # Errors
/// NO_LEADER, READ_TIMEOUT or TOKEN_AHEAD.
pub async fn ready(
    shared: &Arc<Shared>,
    context: &Context,
    shard: &Shard,
    level: &Level,
) -> Result<Ready, Failure> {
    match level {
        Level::Stale => {}
        Level::Linearizable => {
            let started = Instant::now();
            let index = read_index(shared, context, shard).await?;
            wait_applied(context, shard, index).await?;
            shared.admission.reads.observe(started.elapsed());
        }
        Level::Session(token) => {
            let wanted = Index(token.index_of(shard.group.0));
            if !wait_for_token(shared, context, shard, wanted).await? {
                return Ok(Ready::AskLeader);
            }
        }
    }
    let term = shard.leadership().term;
    // Taken before the row is read: the row may be newer than the receipt says, never older.
    let index = shard.reader.applied();
    Ok(Ready::Here(shared.receipt(shard, level.delivered(), term, index)))
}

/// The index that a linearizable read of this shard has to see (Raft thesis §6.4).
async fn read_index(shared: &Shared, context: &Context, shard: &Shard) -> Result<Index, Failure> {
    let give_up = context.deadline.min(context.started + LEADER_TIMEOUT);
    let mut leadership = shard.watch_leadership();
    loop {
        let place = route::leader_of(shard, *leadership.borrow_and_update());
        if place != LeaderLocation::Unknown {
            let (grant, granted) = oneshot::channel();
            if !shared.engine.read(ReadRequest { group: shard.group, grant }) {
                shared.metrics.shed(Shed::Reads).inc();
                let message = "too many requests wait in this node; try again";
                return Err(retry_after(Failure::of(Reason::Overloaded, message), 100));
            }
            match timeout_at(context.deadline, granted).await {
                Ok(Ok(ReadGrant::Ready(index))) => return Ok(index),
                Ok(Ok(ReadGrant::Dropped | ReadGrant::NoReplica) | Err(_)) => {}
                Err(_) => {
                    let failure = read_timeout("a quorum to confirm the shard's leader");
                    return Err(Failure { shard: shard.group.0, ..failure });
                }
            }
        }
        wait_for_change(&mut leadership, place, give_up).await;
        if Instant::now() >= give_up {
            return Err(no_leader(shard, "it has no leader that this node knows of"));
        }
    }
}

async fn wait_applied(context: &Context, shard: &Shard, index: Index) -> Result<(), Failure> {
    timeout_at(context.deadline, shard.gate.wait(index)).await.map_err(|_| {
        let failure = read_timeout("this replica to apply what is committed");
        Failure { shard: shard.group.0, ..failure }
    })
}

/// Waits up to half of the time for the token's index; false = this replica is behind, and the
/// leader should be asked.
async fn wait_for_token(
    shared: &Shared,
    context: &Context,
    shard: &Shard,
    wanted: Index,
) -> Result<bool, Failure> {
    if shard.gate.applied() >= wanted {
        return Ok(true);
    }
    if shard.leadership().leader == Some(shard.replica.node) {
        let committed = read_index(shared, context, shard).await?;
        if committed < wanted {
            let message = format!(
                "the token names index {wanted} of shard {}, whose leader has committed only \
                 {committed}",
                shard.group.0
            );
            let failure =
                Failure { shard: shard.group.0, ..Failure::of(Reason::TokenAhead, message) };
            return Err(failure);
        }
        wait_applied(context, shard, wanted).await?;
        return Ok(true);
    }
    let half = Instant::now() + context.left() / 2;
    Ok(timeout_at(half, shard.gate.wait(wanted)).await.is_ok())
}

/// The newest row: from memory at once, else from the tree on the reader pool.
///
/// # Errors
/// READ_TIMEOUT when the disk takes too long, REPLICA_DAMAGED for a row that does not decode; a
/// failed disk ends the process.
pub async fn row(
    shared: &Shared,
    context: &Context,
    shard: &Arc<Shard>,
    key: RowKey,
) -> Result<Option<Bytes>, Failure> {
    match shard.reader.try_get(&key) {
        Lookup::Found(row) => return Ok(Some(row)),
        Lookup::Absent => return Ok(None),
        Lookup::Tree => {}
    }
    let reader = shard.reader.clone();
    match from_disk(context, &shared.read_threads, move || reader.get(&key)).await {
        Ok(Ok(row)) => Ok(row),
        Ok(Err(error)) => Err(storage_failure(shared, shard, &error)),
        Err(failure) => Err(Failure { shard: shard.group.0, ..failure }),
    }
}

/// Reads on a thread that may wait for the disk, for as long as the call has time.
///
/// # Errors
/// READ_TIMEOUT when no thread is free or the disk does not answer until then.
pub async fn from_disk<T: Send + 'static>(
    context: &Context,
    threads: &Arc<Semaphore>,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let on_a_thread = async {
        let permit = threads.clone().acquire_owned().await.ok()?;
        // The permit ends with the read, which may outlast its call.
        let work = tokio::task::spawn_blocking(move || (read(), permit));
        work.await.ok().map(|(read, _)| read)
    };
    match timeout_at(context.deadline, on_a_thread).await {
        Ok(Some(read)) => Ok(read),
        Ok(None) => Err(Failure::of(Reason::Internal, "the reader was stopped")),
        Err(_) => Err(read_timeout("the disk")),
    }
}

/// What a failed read of the storage means for its call.
pub fn storage_failure(shared: &Shared, shard: &Shard, error: &StorageError) -> Failure {
    if error.is_fatal() {
        shared.engine.fail(error);
    }
    shard.set_damaged(&error.to_string());
    damaged_failure(shard)
}

/// The failure of a read of a damaged replica.
pub fn damaged_failure(shard: &Shard) -> Failure {
    let message = format!("this node's replica of shard {} is damaged", shard.group.0);
    Failure { shard: shard.group.0, ..Failure::of(Reason::ReplicaDamaged, message) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::metadata::MetadataMap;

    use super::*;

    #[tokio::test]
    async fn a_read_that_gets_no_thread_in_time_ends_with_its_call() {
        let threads = Arc::new(Semaphore::new(1));
        let (release, busy) = std::sync::mpsc::channel::<()>();
        let hangs = {
            let (threads, context) = (threads.clone(), context("50m"));
            tokio::spawn(async move { from_disk(&context, &threads, move || busy.recv()).await })
        };
        let outlasted = hangs.await.expect("it ends").expect_err("the disk hangs");
        assert_eq!(outlasted.reason(), Reason::ReadTimeout);
        // The first call has ended, and its thread still waits for the disk.
        let context = context("50m");
        let read = from_disk(&context, &threads, || ());
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        let refused = read.expect("it ends in time").expect_err("no thread was free");
        assert_eq!(refused.reason(), Reason::ReadTimeout);
        drop(release);
    }

    fn context(timeout: &str) -> Context {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", timeout.parse().expect("ascii"));
        Context::of(&metadata)
    }
}
