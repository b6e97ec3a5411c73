//! The source of one shard's rows: the shard pinned here, or the answers of another node.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use quorate_engine::Shard;
use quorate_machine::Record;
use quorate_proto::v1::{Failure, Reason, Receipt, ScanResponse, ScanRow};
use quorate_storage::{RowKey, Scan};
use tokio::sync::OwnedSemaphorePermit;

use crate::context::Answers;
use crate::read::storage_failure;
use crate::shared::Shared;

/// One shard's rows, in the order of the scan.
pub(crate) enum Source {
    /// A shard of this node, pinned.
    Here { shard: Arc<Shard>, rows: Box<Scan>, receipt: Receipt },
    /// A shard that another node reads.
    There(There),
}

/// The rows of a shard on another node.
pub(crate) struct There {
    answers: Answers<ScanResponse>,
    /// What came, the next row at the end.
    buffer: Vec<ScanRow>,
    receipts: Vec<Receipt>,
    rest: Rest,
    /// The scan's place among those with streams on other nodes.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// What follows the rows that came from another node.
#[derive(Clone, Copy)]
enum Rest {
    Coming,
    /// The node ended its page early: it has more rows.
    Cut,
    Nothing,
}

pub(crate) enum Next {
    Row(ScanRow),
    /// Another node has to be waited for.
    Later,
    /// There is more, but not in this call.
    Cut,
    End,
}

impl Source {
    pub(crate) fn next(&mut self, shared: &Shared, keys_only: bool) -> Result<Next, Failure> {
        match self {
            Self::Here { shard, rows, .. } => match rows.next() {
                None => Ok(Next::End),
                Some(Ok((key, record))) => row(shard, &key, record, keys_only).map(Next::Row),
                Some(Err(error)) => Err(storage_failure(shared, shard, &error)),
            },
            Self::There(there) => Ok(match (there.buffer.pop(), there.rest) {
                (Some(row), _) => Next::Row(row),
                (None, Rest::Coming) => Next::Later,
                (None, Rest::Cut) => Next::Cut,
                (None, Rest::Nothing) => Next::End,
            }),
        }
    }

    /// The receipts that are known so far: one of this node, those that came of another.
    pub(crate) fn receipts(&self) -> &[Receipt] {
        match self {
            Self::Here { receipt, .. } => std::slice::from_ref(receipt),
            Self::There(there) => &there.receipts,
        }
    }

    /// Waits for the next message of another node.
    pub(crate) async fn receive(&mut self) -> Result<(), Failure> {
        match self {
            Self::Here { .. } => Ok(()),
            Self::There(there) => there.receive().await,
        }
    }
}

impl There {
    /// The rows that another node answers with.
    pub(crate) fn new(
        answers: Answers<ScanResponse>,
        place: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Self {
        let (buffer, receipts) = (Vec::new(), Vec::new());
        Self { answers, buffer, receipts, rest: Rest::Coming, _place: place }
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        let lost = |why: String| {
            Failure::of(Reason::NoLeader, format!("a node that was asked failed: {why}"))
        };
        match self.answers.next().await {
            Some(Ok(answer)) => {
                self.buffer.extend(answer.rows.into_iter().rev());
                self.receipts.extend(answer.receipts);
                if answer.token.is_some() {
                    let whole = answer.next_page_token.is_empty();
                    self.rest = if whole { Rest::Nothing } else { Rest::Cut };
                }
                Ok(())
            }
            Some(Err(status)) => Err(Failure::from_details(status.details())
                .map_or_else(|| lost(status.to_string()), |(failure, _)| failure)),
            None => Err(lost("its answer ended before the last message".to_owned())),
        }
    }
}

fn row(shard: &Shard, key: &RowKey, record: Bytes, keys_only: bool) -> Result<ScanRow, Failure> {
    let record = Record::decode(record).map_err(|damaged| {
        shard.set_damaged(&damaged.to_string());
        Failure::of(Reason::ReplicaDamaged, damaged.to_string())
    })?;
    Ok(ScanRow {
        key: key.key_bytes(),
        value: if keys_only { Bytes::new() } else { record.value },
        revision: record.revision,
        create_revision: record.create_revision,
        log_time: record.log_time,
    })
}
