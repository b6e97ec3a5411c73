//! MultiGet: many keys with one call. Keys that failed for the moment are asked for again, and so
//! is an answer that broke off: without its receipts it guarantees nothing.

use std::future::IntoFuture;
use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use quorate_proto::v1::{
    GetResponse, MultiGetRequest, MultiGetResponse, MultiGetResult, ReadLevel, Reason, Receipt,
    SessionToken,
};
use tonic::{Code, Streaming};

use crate::attempt::AttemptError;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::request::{Freshness, Get, every_call, every_read, read};
use crate::retry::{self, Backoff, Next, RetryClass};
use crate::router::Route;
use crate::rpc::Rpc;

/// Maximum size of the keys of one call, in bytes. The rest of a request is the session token.
const KEYS_BYTES_MAX: usize = 1 << 20;

/// What a key takes in a request beside its bytes.
const KEY_OVERHEAD: usize = 4;

/// Maximum number of single reads in flight for nodes without MultiGet.
const GETS_AT_ONCE: usize = 64;

/// Minimum wait for a message before another node is asked.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// Reads many keys; see [`Client::multi_get`](crate::Client::multi_get). The result has an entry
/// for each key, in their order: an absent key is an answer, and a key that cannot be read is an
/// error of its own. Each answer has the receipt and token of its shard.
#[derive(Debug)]
#[must_use = "a call is sent by awaiting it"]
pub struct MultiGet<'a> {
    client: &'a Inner,
    keys: Vec<Bytes>,
    /// The request without its keys.
    request: MultiGetRequest,
    freshness: Freshness,
    timeout: Option<Duration>,
}

/// The results of the keys; none = it has none yet.
type Results = Vec<Option<Result<GetResponse>>>;

impl<'a> MultiGet<'a> {
    pub(crate) fn new(client: &'a Inner, keys: Vec<Bytes>) -> Self {
        let keyspace = client.config.keyspace.clone();
        MultiGet {
            client,
            keys,
            request: MultiGetRequest { keyspace, ..MultiGetRequest::default() },
            freshness: Freshness::new(client),
            timeout: None,
        }
    }

    every_call!();
    every_read!();

    /// Reads all keys; a request has a part of them where they are too large for one.
    async fn run(self) -> Vec<Result<GetResponse>> {
        let deadline = self.client.deadline(self.timeout);
        let mut results: Results = vec![None; self.keys.len()];
        for part in parts(&self.keys) {
            self.read(part.collect(), deadline, &mut results).await;
        }
        let missing = || {
            let message = "the node left a key out of its answer";
            Err(AttemptError::local(Reason::Internal, message).into_error(""))
        };
        results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    /// Reads the keys at these places until each has a result.
    async fn read(&self, mut left: Vec<usize>, deadline: Instant, results: &mut Results) {
        let inner = self.client;
        let mut backoff = Backoff::default();
        loop {
            let request = MultiGetRequest {
                keys: left.iter().map(|at| self.keys[*at].clone()).collect(),
                ..self.request.clone()
            };
            let one = request.key();
            // Any node reads from all shards; only one shard has a best one.
            let route = if one.is_some() { self.freshness.route() } else { Route::Any };
            let options = self.freshness.clone().wire(inner, one);
            let request = MultiGetRequest { read: options, ..request };
            let failed = match inner.execute(request, read(route, deadline)).await {
                Ok(answers) => match receive(answers, deadline, left.len()).await {
                    Ok(answer) => self.take(answer, &left, results),
                    Err(error) => left.iter().map(|at| (*at, error.clone())).collect(),
                },
                Err(error) if is_of_the_call(&error) => {
                    return self.read_singly(&left, deadline, results).await;
                }
                Err(error) => {
                    for at in left {
                        results[at] = Some(Err(error.clone()));
                    }
                    return;
                }
            };
            let Some(again) = self.after(failed, deadline, &mut backoff, results).await else {
                return;
            };
            left = again;
        }
    }

    /// Takes the results of an answer, and returns the keys without a final one.
    fn take(
        &self,
        answer: Answered,
        left: &[usize],
        results: &mut Results,
    ) -> Vec<(usize, AttemptError)> {
        let inner = self.client;
        inner.tokens.note(&answer.token);
        for receipt in &answer.receipts {
            inner.router.learn_leader(receipt.shard, receipt.leader_node_id);
            inner.heard_epoch(receipt.map_epoch);
        }
        let mut failed = Vec::new();
        for (at, result) in left.iter().zip(answer.results) {
            match result.failure {
                Some(failure) => {
                    inner.router.learn_leader(failure.shard, failure.leader_node_id);
                    failed.push((*at, AttemptError::of_failure(failure, "")));
                }
                None => {
                    let receipt = self.receipt(&self.keys[*at], &answer.receipts);
                    results[*at] = Some(Ok(response(result, receipt, &answer.token)));
                }
            }
        }
        failed
    }

    /// The receipt of the shard of a key.
    fn receipt(&self, key: &[u8], receipts: &[Receipt]) -> Option<Receipt> {
        let table = self.client.router.table();
        let of_shard = match table.shard_of(key) {
            Some(position) => {
                let shard = table.shard(position).id;
                receipts.iter().find(|receipt| receipt.shard == shard)
            }
            None => None,
        };
        of_shard.or(receipts.first().filter(|_| receipts.len() == 1)).cloned()
    }

    /// Settles what failed permanently, and waits before the others are asked for again; none = all
    /// keys have a result.
    async fn after(
        &self,
        failed: Vec<(usize, AttemptError)>,
        deadline: Instant,
        backoff: &mut Backoff,
        results: &mut Results,
    ) -> Option<Vec<usize>> {
        let inner = self.client;
        let (mut again, mut asked, mut refresh, mut costs) = (Vec::new(), None, false, false);
        for (at, error) in failed {
            let next = retry::next(RetryClass::Read, &error);
            let may = matches!(next, Next::Elsewhere | Next::Wait | Next::RefreshMap);
            if may && inner.config.retries {
                refresh |= next == Next::RefreshMap;
                costs |= retry::costs(&error);
                asked = asked.max(error.retry_after());
                again.push(at);
            }
            // It stays if there is no time for another attempt.
            results[at] = Some(Err(error.into_error("")));
        }
        if again.is_empty() {
            return None;
        }
        if refresh {
            inner.refresh_map(deadline).await;
        }
        loop {
            let wait = backoff.wait(asked);
            if wait >= deadline.saturating_duration_since(Instant::now()) {
                return None;
            }
            tokio::time::sleep(wait).await;
            if !costs || inner.retries.take() {
                return Some(again);
            }
        }
    }

    /// Reads each key by itself, for nodes that do not serve MultiGet, and where one key makes the
    /// whole call invalid.
    async fn read_singly(&self, left: &[usize], deadline: Instant, results: &mut Results) {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let get = |at: &usize| {
            let get = Get::new(self.client, self.keys[*at].clone());
            let get = get.with(self.freshness.clone(), self.request.keyspace.clone());
            get.timeout(remaining).into_future()
        };
        let gets: Vec<_> = left.iter().map(get).collect();
        let mut answers = futures::stream::iter(gets).buffered(GETS_AT_ONCE);
        let mut left = left.iter();
        while let (Some(answer), Some(at)) = (answers.next().await, left.next()) {
            results[*at] = Some(answer);
        }
    }
}

impl<'a> IntoFuture for MultiGet<'a> {
    type Output = Vec<Result<GetResponse>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Whether the call was refused for what it is as a whole, so that a read of each key says more.
fn is_of_the_call(error: &Error) -> bool {
    matches!(error, Error::Invalid(_)) || error.detail().code == Code::Unimplemented
}

/// The keys in parts that fit a request each.
fn parts(keys: &[Bytes]) -> Vec<Range<usize>> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, key) in keys.iter().enumerate() {
        let length = key.len() + KEY_OVERHEAD;
        if bytes > 0 && bytes + length > KEYS_BYTES_MAX {
            parts.push(begin..at);
            (begin, bytes) = (at, 0);
        }
        bytes += length;
    }
    if begin < keys.len() {
        parts.push(begin..keys.len());
    }
    parts
}

/// A whole answer.
struct Answered {
    results: Vec<MultiGetResult>,
    receipts: Vec<Receipt>,
    token: SessionToken,
}

/// Receives all messages of an answer about this number of keys.
async fn receive(
    mut answers: Streaming<MultiGetResponse>,
    deadline: Instant,
    keys: usize,
) -> Result<Answered, AttemptError> {
    let mut results = Vec::with_capacity(keys);
    loop {
        // Half of what is left remains for another node.
        let remaining = deadline.saturating_duration_since(Instant::now());
        let patience = (remaining / 2).max(PATIENCE_MIN).min(remaining);
        let message = match tokio::time::timeout(patience, answers.message()).await {
            Ok(Ok(message)) => message,
            Ok(Err(status)) => return Err(AttemptError::of_status(&status)),
            Err(_) => return Err(AttemptError::silent("the node that reads the keys", patience)),
        };
        let Some(mut message) = message else {
            let why = "the answer ended before its last message";
            return Err(AttemptError::unreachable(why.to_owned()));
        };
        results.append(&mut message.results);
        let Some(token) = message.token else { continue };
        if results.len() != keys {
            let message = format!("the node answered {keys} keys with {} results", results.len());
            return Err(AttemptError::local(Reason::Internal, message));
        }
        return Ok(Answered { results, receipts: message.receipts, token });
    }
}

/// The answer to one key.
fn response(result: MultiGetResult, receipt: Option<Receipt>, whole: &SessionToken) -> GetResponse {
    let token =
        receipt.as_ref().map(|receipt| SessionToken::of_receipt(whole.cluster_id.clone(), receipt));
    GetResponse {
        found: result.found,
        value: result.value,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time,
        receipt,
        token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_request_fit_it() {
        assert_eq!(parts(&[]), []);
        let key = Bytes::from(vec![b'k'; 4_096]);
        let keys = vec![key; 600];
        let parts = parts(&keys);
        assert_eq!(parts, [0..255, 255..510, 510..600]);
    }
}
