//! The merge of a scan: the rows of all its shards in byte order, a message at a time.
//!
//! A thread that may wait for the disk puts each message together, and is given back before it is
//! sent: what waits for a slow reader or for another node is a task, which holds no thread.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use quorate_proto::limits::{SCAN_BYTES_MAX, SCAN_MESSAGE_BYTES_MAX, SCAN_TIME_MAX};
use quorate_proto::v1::{Failure, Reason, Receipt, ScanResponse, ScanRow, SessionToken};
use quorate_storage::DeltaBudget;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::plan::Plan;
use super::source::{Next, Source};
use crate::context::{Context, read_timeout};
use crate::metrics::Shed;
use crate::shared::{Shared, retry_after};

/// About what a row takes in a message beside its key and value.
const ROW_OVERHEAD: usize = 40;
/// Rows after which a scan lets another one have its thread, should no message be full by then.
const STEP_ROWS: usize = 4_096;
/// What is left of the call's time when a page is ended, so that its end still arrives.
const TIME_TO_END: Duration = Duration::from_millis(50);

/// How often a scan that waits for its reader looks whether its pins are in the way of writes.
const ROOM_INTERVAL: Duration = Duration::from_millis(20);

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

/// A scan under way. It holds its pins for [`SCAN_TIME_MAX`] at most, whatever its reader does.
pub(super) struct Merge {
    shared: Arc<Shared>,
    context: Context,
    plan: Plan,
    sources: Vec<Source>,
    answers: mpsc::Sender<ScanResponse>,
    /// The reader is a node that merges on. It gets the receipts with every message, because it may
    /// end its own page before this one ends.
    between_nodes: bool,
    /// When the page ends if it has rows, ...
    page_until: Instant,
    /// ... and when the scan fails if it has none.
    pinned_until: Instant,
    heap: BinaryHeap<Head>,
    /// The sources whose next row is not in the heap.
    behind: Vec<usize>,
    answer: ScanResponse,
    answer_bytes: usize,
    count: u64,
    bytes: u64,
}

/// Why a scan gave its thread back.
enum Step {
    /// The message is full.
    Full,
    /// The next row of this source is to come from another node.
    Ask(usize),
    /// Others may want the thread.
    Pause,
    /// The page ends here; is it the last one?
    End { at_end: bool },
}

impl Merge {
    pub(super) fn new(
        shared: Arc<Shared>,
        context: Context,
        plan: Plan,
        sources: Vec<Source>,
        answers: mpsc::Sender<ScanResponse>,
        between_nodes: bool,
    ) -> Self {
        let pinned_until = context.deadline.min(Instant::now() + SCAN_TIME_MAX);
        let in_time = context.deadline.checked_sub(TIME_TO_END);
        Self {
            page_until: pinned_until.min(in_time.unwrap_or(context.deadline)),
            pinned_until,
            heap: BinaryHeap::with_capacity(sources.len()),
            behind: (0..sources.len()).collect(),
            answer: ScanResponse::default(),
            answer_bytes: 0,
            count: 0,
            bytes: 0,
            shared,
            context,
            plan,
            sources,
            answers,
            between_nodes,
        }
    }

    /// Sends all messages but the last, which it returns; `None` = the reader has left. The
    /// pins are gone when it returns.
    pub(super) async fn run(self) -> Result<Option<ScanResponse>, Failure> {
        let deadline = self.context.deadline;
        match timeout_at(deadline, self.messages()).await {
            Ok(ended) => ended,
            Err(_) => Err(read_timeout("the disk")),
        }
    }

    async fn messages(mut self) -> Result<Option<ScanResponse>, Failure> {
        while !self.answers.is_closed() {
            let patience = if self.count > 0 { self.page_until } else { self.pinned_until };
            let threads = self.shared.scan_threads.clone();
            let Ok(Ok(thread)) = timeout_at(patience, threads.acquire_owned()).await else {
                self.shared.metrics.shed(Shed::ScanThreads).inc();
                let message = "too many scans are under way; try again";
                let overloaded = Failure::of(Reason::Overloaded, message);
                return self.end_early(retry_after(overloaded, 1_000));
            };
            let (merge, step) = tokio::task::spawn_blocking(move || {
                let step = self.step();
                drop(thread);
                (self, step)
            })
            .await
            .map_err(|_| Failure::of(Reason::Internal, "the scan was stopped"))?;
            self = merge;
            match step? {
                Step::Full => {
                    let room = timeout_at(self.page_until, self.answers.clone().reserve_owned());
                    let room = tokio::select! {
                        biased;
                        room = room => room,
                        // The message has rows, so that the reader gets further by each page.
                        () = until_in_the_way(&self.shared.budget) => {
                            return self.finish(false).map(Some);
                        }
                    };
                    match room {
                        Ok(Ok(room)) => drop(room.send(self.take_message())),
                        Ok(Err(_)) => return Ok(None),
                        Err(_) => return self.finish(false).map(Some),
                    }
                }
                Step::Ask(source) => {
                    match timeout_at(patience, self.sources[source].receive()).await {
                        Ok(received) => received?,
                        Err(_) => return self.end_early(read_timeout("another node's rows")),
                    }
                }
                Step::Pause => {}
                Step::End { at_end } => return self.finish(at_end).map(Some),
            }
        }
        Ok(None)
    }

    /// Continues until it has to wait for something other than the disk.
    fn step(&mut self) -> Result<Step, Failure> {
        for _ in 0..STEP_ROWS {
            // Only a heap with a row of every source knows the next row.
            while let Some(&source) = self.behind.last() {
                match self.sources[source].next(&self.shared, self.plan.keys_only)? {
                    Next::Row(row) => {
                        self.heap.push(Head { row, source, reverse: self.plan.reverse });
                    }
                    Next::Later => return Ok(Step::Ask(source)),
                    Next::Cut => return Ok(Step::End { at_end: self.plan.rows_left == 0 }),
                    Next::End => {}
                }
                self.behind.pop();
            }
            let Some(head) = self.heap.peek().filter(|_| self.plan.rows_left > 0) else {
                return Ok(Step::End { at_end: true });
            };
            if self.count > 0 && self.over_a_cap() {
                return Ok(Step::End { at_end: false });
            }
            let row_bytes = head.row.key.len() + head.row.value.len() + ROW_OVERHEAD;
            if self.answer_bytes > 0 && self.answer_bytes + row_bytes > SCAN_MESSAGE_BYTES_MAX {
                return Ok(Step::Full);
            }
            let Some(Head { row, source, .. }) = self.heap.pop() else { continue };
            self.behind.push(source);
            self.plan.rows_left -= 1;
            self.plan.token.last_key = row.key.clone();
            self.count += 1;
            self.bytes += row_bytes as u64;
            if !self.plan.count_only {
                self.answer_bytes += row_bytes;
                self.answer.rows.push(row);
            }
        }
        Ok(Step::Pause)
    }

    fn over_a_cap(&self) -> bool {
        // Counting sends nothing, so bytes do not bound it.
        let sent = !self.plan.count_only && self.bytes >= SCAN_BYTES_MAX;
        sent || self.count >= self.plan.page_rows || Instant::now() >= self.page_until
    }

    fn take_message(&mut self) -> ScanResponse {
        self.answer_bytes = 0;
        let mut message = std::mem::take(&mut self.answer);
        if self.between_nodes {
            message.receipts = self.receipts();
        }
        message
    }

    /// The end of a scan whose time is up: of its page if that has rows, else this failure.
    fn end_early(&mut self, failure: Failure) -> Result<Option<ScanResponse>, Failure> {
        if self.count == 0 { Err(failure) } else { self.finish(false).map(Some) }
    }

    fn finish(&mut self, at_end: bool) -> Result<ScanResponse, Failure> {
        let mut answer = std::mem::take(&mut self.answer);
        answer.count = self.count;
        if !at_end {
            self.plan.token.rows_left = self.plan.rows_left;
            answer.next_page_token = self.plan.token.encode();
        }
        answer.receipts = self.receipts();
        let mut token = SessionToken::default();
        for receipt in &answer.receipts {
            let part = self.shared.token(receipt);
            if token.cluster_id.is_empty() {
                token = part;
            } else if token.merge(&part).is_err() {
                let message = "the nodes that answered are in different histories";
                return Err(Failure::of(Reason::Internal, message));
            }
        }
        answer.token = Some(token);
        Ok(answer)
    }

    /// One receipt per shard. Another node sends it with its first message, and no row is sent here
    /// before that came.
    fn receipts(&self) -> Vec<Receipt> {
        let mut seen = BTreeSet::new();
        let all = self.sources.iter().flat_map(Source::receipts);
        all.filter(|receipt| seen.insert(receipt.shard)).cloned().collect()
    }
}

/// Waits until the deltas of the node are half full. Pins keep old rows in them, and at their limit
/// writes are refused: an unread scan yields before that.
async fn until_in_the_way(budget: &DeltaBudget) {
    while budget.used() < budget.limit() / 2 {
        sleep(ROOM_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

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
