//! Scans: they fetch page after page, and resume a broken stream after its last row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use quorate_proto::v1::{
    ReadLevel, Reason, Receipt, ScanRequest, ScanResponse, ScanRow, SessionToken,
};
use tonic::Streaming;

use crate::attempt::AttemptError;
use crate::error::{Error, Result};
use crate::inner::Inner;
use crate::request::{Freshness, every_call, every_read, read};
use crate::retry::{self, Backoff, Next, RetryClass};
use crate::router::Route;

/// Reads keys in byte order over all shards; see [`Client::scan`](crate::Client::scan). Each page
/// reads every shard at one index of that shard; pages, and parts before and after a resumption,
/// are from different times.
#[derive(Debug)]
#[must_use = "a scan is started with `rows`, `count` or `collect`"]
pub struct Scan<'a> {
    client: &'a Arc<Inner>,
    request: ScanRequest,
    freshness: Freshness,
    timeout: Option<Duration>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(client: &'a Arc<Inner>) -> Self {
        Scan {
            client,
            request: ScanRequest {
                keyspace: client.config.keyspace.clone(),
                ..ScanRequest::default()
            },
            freshness: Freshness::new(client),
            timeout: None,
        }
    }

    every_call!();
    every_read!();

    /// Scans only keys that begin with this prefix.
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.request.prefix = prefix.into();
        self
    }

    /// Scans only keys from this one on, inclusive. Cannot be combined with a prefix.
    pub fn start(mut self, start: impl Into<Bytes>) -> Self {
        self.request.start = start.into();
        self
    }

    /// Scans only keys before this one. Cannot be combined with a prefix.
    pub fn end(mut self, end: impl Into<Bytes>) -> Self {
        self.request.end = end.into();
        self
    }

    /// Scans from the greatest key downwards.
    pub fn reverse(mut self) -> Self {
        self.request.reverse = true;
        self
    }

    /// Omits the values.
    pub fn keys_only(mut self) -> Self {
        self.request.keys_only = true;
        self
    }

    /// Limits the number of rows; 0 = no limit.
    pub fn limit(mut self, rows: u64) -> Self {
        self.request.limit = rows;
        self
    }

    /// Sets the most rows of one page, which the client holds in memory at once with those of the
    /// message behind it; 0 = as many as the node gives.
    pub fn page_size(mut self, rows: u64) -> Self {
        self.request.page_size = rows;
        self
    }

    /// Starts the scan, to be read row by row.
    #[must_use]
    pub fn rows(mut self) -> Rows {
        self.request.read = self.freshness.wire(self.client, None);
        Rows {
            client: Arc::clone(self.client),
            left: (self.request.limit != 0).then_some(self.request.limit),
            request: self.request,
            timeout: self.timeout,
            page: None,
            pending: Vec::new().into_iter(),
            last_key: None,
            backoff: Backoff::default(),
            deadline: None,
            broke: None,
            done: false,
            counted: 0,
            receipts: Vec::new(),
        }
    }

    /// Counts the rows without reading them.
    ///
    /// # Errors
    /// As any read.
    pub async fn count(self) -> Result<u64> {
        self.count_with_receipts().await.map(|(count, _)| count)
    }

    /// As [`Scan::count`], with the receipts as in [`Rows::receipts`].
    ///
    /// # Errors
    /// As any read.
    pub async fn count_with_receipts(mut self) -> Result<(u64, Vec<Receipt>)> {
        self.request.count_only = true;
        let mut rows = self.rows();
        while rows.next().await?.is_some() {}
        Ok((rows.counted, rows.receipts))
    }

    /// Reads all rows into memory.
    ///
    /// # Errors
    /// As any read.
    pub async fn collect(self) -> Result<Vec<ScanRow>> {
        let mut rows = self.rows();
        let mut all = Vec::new();
        while let Some(row) = rows.next().await? {
            all.push(row);
        }
        Ok(all)
    }
}

/// The rows of a scan, in order.
#[derive(Debug)]
pub struct Rows {
    client: Arc<Inner>,
    /// The request for the next page.
    request: ScanRequest,
    timeout: Option<Duration>,
    page: Option<Streaming<ScanResponse>>,
    pending: std::vec::IntoIter<ScanRow>,
    /// The last key received from the current page.
    last_key: Option<Bytes>,
    /// Number of rows left; none = no limit.
    left: Option<u64>,
    backoff: Backoff,
    /// Deadline of the next message, over all pages and attempts until it comes; none = not yet
    /// waited for.
    deadline: Option<Instant>,
    /// How the last attempt for the next message ended: what an end by the deadline reports, for
    /// the last of many attempts has little time and no cause of its own.
    broke: Option<AttemptError>,
    done: bool,
    counted: u64,
    receipts: Vec<Receipt>,
}

impl Rows {
    /// The next row; none at the end.
    ///
    /// # Errors
    /// As any read: [`crate::Error::NotApplied`] when no node continues the scan within the
    /// timeout, which applies to each message of rows.
    pub async fn next(&mut self) -> Result<Option<ScanRow>> {
        loop {
            if let Some(row) = self.pending.next() {
                return Ok(Some(row));
            }
            if self.done {
                return Ok(None);
            }
            if self.page.is_none() {
                self.open().await?;
            }
            self.advance().await?;
        }
    }

    /// The receipts of the finished pages, several per shard if a shard was read for several pages.
    #[must_use]
    pub fn receipts(&self) -> &[Receipt] {
        &self.receipts
    }

    /// The rows as a stream, which ends at its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<ScanRow>> + Send {
        futures::stream::unfold(Some(self), |rows| async {
            let mut rows = rows?;
            match rows.next().await {
                Ok(Some(row)) => Some((Ok(row), Some(rows))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// The deadline of the next message. It begins with the wait for it, and no attempt renews it.
    fn wait_until(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| self.client.deadline(self.timeout))
    }

    async fn open(&mut self) -> Result<()> {
        let options = read(Route::Any, self.wait_until());
        let mut request = self.request.clone();
        request.limit = self.left.unwrap_or(0);
        // Boxed: it is large and rarely needed, and would enlarge the future of every row.
        let opened = Box::pin(self.client.execute(request, options)).await;
        self.page = Some(opened.map_err(|error| self.out_of_time(error))?);
        Ok(())
    }

    /// What is reported for an error: how the attempt before it ended, if this one only ran out of
    /// time.
    fn out_of_time(&mut self, error: Error) -> Error {
        match error.reason() {
            Some(Reason::ReadTimeout) => self.broke.take().map_or(error, |e| e.into_error("")),
            _ => error,
        }
    }

    /// Receives one message of the current page.
    async fn advance(&mut self) -> Result<()> {
        let deadline = self.wait_until();
        let Some(page) = &mut self.page else {
            return Ok(());
        };
        let message = match tokio::time::timeout_at(deadline.into(), page.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => {
                let error = AttemptError::unreachable(
                    "the scan's stream ended before its last message".into(),
                );
                return self.resume(error).await;
            }
            Ok(Err(status)) => return self.resume(AttemptError::of_status(&status)).await,
            Err(_) => {
                let waited = self.timeout.unwrap_or(self.client.config.timeout);
                let silent = AttemptError::silent("the scanning node", waited);
                return Err(self.broke.take().unwrap_or(silent).into_error(""));
            }
        };
        self.deadline = None;
        self.broke = None;
        self.backoff = Backoff::default();
        if let Some(row) = message.rows.last() {
            self.last_key = Some(row.key.clone());
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(message.rows.len() as u64);
        }
        // Only the last message of a page has receipts.
        if !message.receipts.is_empty() {
            self.page_ends(&message);
        }
        self.pending = message.rows.into_iter();
        Ok(())
    }

    fn page_ends(&mut self, message: &ScanResponse) {
        if let Some(token) = &message.token {
            self.client.tokens.note(token);
        }
        for receipt in &message.receipts {
            self.client.router.learn_leader(receipt.shard, receipt.leader_node_id);
        }
        self.receipts.extend_from_slice(&message.receipts);
        self.counted += message.count;
        if self.request.count_only
            && let Some(left) = &mut self.left
        {
            *left = left.saturating_sub(message.count);
        }
        self.page = None;
        self.last_key = None;
        self.done = message.next_page_token.is_empty() || self.left == Some(0);
        self.request.page_token = message.next_page_token.clone();
    }

    /// Resumes after a broken page: after the last row received, or with the same page if there was
    /// none.
    async fn resume(&mut self, error: AttemptError) -> Result<()> {
        self.page = None;
        if self.left == Some(0) {
            self.done = true;
            return Ok(());
        }
        let next = retry::next(RetryClass::Read, &error);
        let wait = self.backoff.wait(error.retry_after());
        let remaining = self.wait_until().saturating_duration_since(Instant::now());
        if !matches!(next, Next::Elsewhere | Next::Wait | Next::RefreshMap) || wait >= remaining {
            return Err(error.into_error(""));
        }
        if let Some(last) = self.last_key.take() {
            restart_after(&mut self.request, &last);
        }
        self.broke = Some(error);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Changes a scan to its rest after a row.
fn restart_after(request: &mut ScanRequest, last: &Bytes) {
    let prefix = std::mem::take(&mut request.prefix);
    if !prefix.is_empty() {
        request.end = after_prefix(&prefix);
        request.start = prefix;
    }
    if request.reverse {
        request.end = last.clone();
    } else {
        let mut next = BytesMut::with_capacity(last.len() + 1);
        next.extend_from_slice(last);
        next.extend_from_slice(&[0]);
        request.start = next.freeze();
    }
    request.page_token = Bytes::new();
}

/// The first key after all that begin with a prefix; empty = there is none.
fn after_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|b| *b != 0xff) {
        None => Bytes::new(),
        Some(i) => {
            let mut end = prefix[..=i].to_vec();
            end[i] += 1;
            end.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_becomes_a_range() {
        assert_eq!(after_prefix(b"ab"), b"ac"[..]);
        assert_eq!(after_prefix(b"a\xff\xff"), b"b"[..]);
        assert_eq!(after_prefix(b"\xff\xff"), b""[..]);
    }

    #[test]
    fn a_restart_scans_what_is_left() {
        let mut forward = ScanRequest {
            prefix: Bytes::from_static(b"ab"),
            page_token: Bytes::from_static(b"t"),
            ..ScanRequest::default()
        };
        let mut backward = ScanRequest { reverse: true, ..forward.clone() };
        restart_after(&mut forward, &Bytes::from_static(b"abc"));
        assert_eq!(forward.prefix, b""[..]);
        assert_eq!(forward.start, b"abc\0"[..]);
        assert_eq!(forward.end, b"ac"[..]);
        assert_eq!(forward.page_token, b""[..]);
        restart_after(&mut backward, &Bytes::from_static(b"abc"));
        assert_eq!(backward.start, b"ab"[..]);
        assert_eq!(backward.end, b"abc"[..]);
    }
}
