//! Loader of `load`: stores the records of a file, many in parallel, records of one key in order.

use std::collections::HashSet;
use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader, LineWriter, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::encoding::escape;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::describe::plural;
use crate::records::{Layout, Record, RecordError, RecordReader};

mod progress;
pub use progress::Progress;

/// Number of records that are read ahead of those in flight.
const READ_AHEAD: usize = 64;

/// Result of a record that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The key already had the value, and nothing was written.
    pub unchanged: bool,
    /// The revision at which the key got the value.
    pub revision: u64,
    /// The shard of the key.
    pub shard: u64,
}

/// Numbers of records by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records that were written.
    pub put: u64,
    /// Records whose key already had the value.
    pub unchanged: u64,
    /// Records that were certainly not written.
    pub failed: u64,
    /// Records whose outcome is unknown.
    pub unknown: u64,
}

impl Counts {
    /// Number of records that are stored.
    pub fn stored(&self) -> u64 {
        self.put + self.unchanged
    }
}

/// Limits of a load: parallelism, rate, and failures.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of records in flight.
    pub in_flight: usize,
    /// Maximum number of records started per second.
    pub rate: Option<u32>,
    /// Number of failures after which the load stops; 0 = never.
    pub max_failures: u64,
}

/// Result of a whole load.
#[derive(Debug)]
pub struct Loaded {
    /// Numbers of records by result.
    pub counts: Counts,
    /// The weightiest exit code that occurred.
    pub exit: Exit,
    /// Why the load stopped before the end of the file.
    pub stopped: Option<Failure>,
}

/// Reads records in a thread of its own, because reading a file blocks.
pub fn read_records(
    input: impl io::Read + Send + 'static,
    layout: Layout,
) -> mpsc::Receiver<Result<Record, RecordError>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let reader = RecordReader::new(BufReader::with_capacity(256 << 10, input), layout);
        for record in reader {
            let failed = record.is_err();
            if sender.blocking_send(record).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

/// Journal of acknowledgements, one line each: key, revision, shard.
pub struct Journal(LineWriter<File>);

impl Journal {
    /// Creates the file. An existing file is rejected, because its lines would mix with the new
    /// ones.
    pub fn create(path: &Path) -> Result<Journal> {
        let file = File::create_new(path).map_err(|error| Failure::file(path, &error))?;
        Ok(Journal(LineWriter::new(file)))
    }

    fn acknowledged(&mut self, key: &[u8], stored: Stored) -> io::Result<()> {
        writeln!(self.0, "{}\t{}\t{}", escape(key), stored.revision, stored.shard)
    }
}

/// State of one load.
pub struct Loading<S> {
    store: S,
    limits: Limits,
    journal: Option<Journal>,
    progress: Progress,
    counts: Counts,
    exit: Exit,
    stopped: Option<Failure>,
    /// Keys with a record in flight; the next record of such a key waits for it.
    busy: HashSet<Bytes>,
    /// Earliest start of the next record.
    next_begin: Option<Instant>,
}

type Ended = (u64, Bytes, Result<Stored>);

impl<S, F> Loading<S>
where
    S: Fn(Bytes, Bytes) -> F,
    F: Future<Output = Result<Stored>>,
{
    /// A load that stores each record with `store`.
    pub fn new(store: S, limits: Limits, journal: Option<Journal>, progress: Progress) -> Self {
        Loading {
            store,
            limits,
            journal,
            progress,
            counts: Counts::default(),
            exit: Exit::Done,
            stopped: None,
            busy: HashSet::new(),
            next_begin: None,
        }
    }

    /// Stores all records. Stops early at a malformed record, after too many failures and on
    /// Ctrl-C, but always waits for the records in flight.
    pub async fn run(
        mut self,
        mut records: mpsc::Receiver<Result<Record, RecordError>>,
        interrupt: &Interrupt,
    ) -> Loaded {
        let mut under_way = FuturesUnordered::new();
        let mut head: Option<Record> = None;
        let mut at_end = false;
        let mut interrupted = std::pin::pin!(interrupt.first());
        loop {
            // The clock is read once for both decisions, so that a record is either due or waited
            // for.
            let now = Instant::now();
            if let Some(record) = self.take_ready(&mut head, under_way.len(), now) {
                under_way.push(self.begin(record));
                continue;
            }
            let reading = head.is_none() && !at_end && self.stopped.is_none();
            let begin_at = head.as_ref().and(self.next_begin);
            let paced = begin_at.is_some_and(|at| at > now) && self.stopped.is_none();
            if !reading && under_way.is_empty() && (head.is_none() || self.stopped.is_some()) {
                break;
            }
            tokio::select! {
                Some(ended) = under_way.next(), if !under_way.is_empty() => self.ended(ended),
                record = records.recv(), if reading => match record {
                    None => at_end = true,
                    Some(Ok(record)) => head = Some(record),
                    Some(Err(error)) => self.stop(unreadable(error)),
                },
                () = tokio::time::sleep_until(begin_at.unwrap_or_else(Instant::now)), if paced => {}
                () = &mut interrupted, if self.stopped.is_none() => {
                    self.stop(Failure::of(Exit::Interrupted, "interrupted"));
                }
            }
        }
        self.progress.finish();
        Loaded { counts: self.counts, exit: self.exit, stopped: self.stopped }
    }

    /// Takes the next record if it may start now.
    fn take_ready(
        &mut self,
        head: &mut Option<Record>,
        under_way: usize,
        now: Instant,
    ) -> Option<Record> {
        if self.stopped.is_some() || under_way >= self.limits.in_flight {
            return None;
        }
        let ready = head.take_if(|record| {
            !self.busy.contains(&record.key) && self.next_begin.is_none_or(|at| at <= now)
        })?;
        if let Some(rate) = self.limits.rate {
            // A late start is not caught up: the rate is an upper bound, not an average.
            let due = self.next_begin.unwrap_or(now);
            let late = now.saturating_duration_since(due) > Duration::from_millis(20);
            let from = if late { now } else { due };
            self.next_begin = Some(from + Duration::from_secs(1) / rate);
        }
        Some(ready)
    }

    fn begin(&mut self, record: Record) -> impl Future<Output = Ended> + use<S, F> {
        self.busy.insert(record.key.clone());
        self.progress.at(record.end);
        let stored = (self.store)(record.key.clone(), record.value);
        async move { (record.line, record.key, stored.await) }
    }

    fn ended(&mut self, (line, key, stored): Ended) {
        self.busy.remove(&key);
        match stored {
            Ok(stored) => {
                let count = if stored.unchanged {
                    &mut self.counts.unchanged
                } else {
                    &mut self.counts.put
                };
                *count += 1;
                if let Some(journal) = &mut self.journal
                    && let Err(error) = journal.acknowledged(&key, stored)
                {
                    self.stop(Failure::usage(format!("the journal could not be written: {error}")));
                }
            }
            Err(failure) => {
                let count = match failure.exit {
                    Exit::Unknown => &mut self.counts.unknown,
                    _ => &mut self.counts.failed,
                };
                *count += 1;
                self.exit = self.exit.and(failure.exit);
                self.progress.failed(line, &failure);
                let failures = self.counts.failed + self.counts.unknown;
                if failures == self.limits.max_failures {
                    self.stop(Failure::of(
                        failure.exit,
                        format!("stopped at line {line} after {}", plural(failures, "failure")),
                    ));
                }
            }
        }
        self.progress.stored(self.counts.stored());
    }

    /// Starts no more records. The first reason is kept.
    fn stop(&mut self, failure: Failure) {
        self.exit = self.exit.and(failure.exit);
        self.stopped.get_or_insert(failure);
    }
}

fn unreadable(error: RecordError) -> Failure {
    match error {
        RecordError::Malformed { line, message } => {
            Failure::usage(format!("line {line}: {message}; nothing after it was loaded"))
        }
        RecordError::Io(error) => Failure::usage(format!("the file could not be read: {error}")),
    }
}

/// Opens a file, or standard input, and returns its size if it has one.
pub fn open(path: &Path) -> Result<(Box<dyn io::Read + Send>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error| Failure::file(path, &error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!("{}: is a directory", path.display())));
    }
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

#[cfg(test)]
mod tests;
