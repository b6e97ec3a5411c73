//! The log on its way to standard error: nothing in the process ever waits for its reader, and what
//! a stranger can cause does not fill it.
//!
//! Lines are put into a bounded queue, which a thread of its own writes. Lines that do not fit
//! are lost, counted, and reported in the log once writing continues. Of lines that come from one
//! place of the code, more than a burst are left out, counted, and reported within a
//! second.
//!
//! `tracing-appender` is not used: its bound is a number of lines of any length, and its end waits
//! without a limit for a reader that stands still.

mod limit;
mod queue;

use std::io;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tracing::{Event, Level, Metadata};

use limit::Limiter;
use queue::Queue;

/// Bytes of lines that wait for standard error.
const QUEUE_BYTES: usize = 1 << 20;
/// Of the same, for errors alone, so that the reason of an end finds room.
const ERROR_BYTES: usize = 64 << 10;
/// Longest wait for the last lines at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which lines that were left out are reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Why lines did not reach standard error.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DroppedLabel {
    reason: &'static str,
}

static DROPPED: LazyLock<Family<DroppedLabel, Counter>> = LazyLock::new(Family::default);
static LIMITER: LazyLock<Limiter> = LazyLock::new(Limiter::default);
/// The queue and its thread. Without a thread, lines are written by those that log.
static QUEUE: LazyLock<Option<Arc<Queue>>> = LazyLock::new(|| {
    let queue = Arc::new(Queue::new(QUEUE_BYTES, count("unread")));
    let writes = queue.clone();
    let run = move || {
        let mut reported = Instant::now();
        writes.write_to(&mut io::stderr(), REPORT_INTERVAL, |lost| {
            if lost > 0 {
                tracing::warn!(lines = lost, "log: lines lost, standard error was not read");
            }
            if reported.elapsed() >= REPORT_INTERVAL {
                reported = Instant::now();
                LIMITER.report();
            }
        });
    };
    std::thread::Builder::new().name("log".to_owned()).spawn(run).ok().map(|_| queue)
});

fn count(reason: &'static str) -> Counter {
    DROPPED.get_or_create_owned(&DroppedLabel { reason })
}

/// The counters of lines that did not reach standard error, by reason.
pub(crate) fn dropped() -> Family<DroppedLabel, Counter> {
    DROPPED.clone()
}

/// Puts formatted log lines, one each call of `write`, on their way to standard error.
#[derive(Debug)]
pub struct Writer {
    most: usize,
}

impl Writer {
    /// A writer for lines of this level.
    #[must_use]
    pub fn of(level: Level) -> Self {
        let more = if level == Level::ERROR { ERROR_BYTES } else { 0 };
        Self { most: QUEUE_BYTES + more }
    }
}

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &*QUEUE {
            Some(queue) => queue.push(line, self.most),
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line that is not of the log to standard error, in order with those of the log.
pub fn line(text: &str) {
    // A writer does not fail.
    let _ = io::Write::write_all(&mut Writer::of(Level::ERROR), format!("{text}\n").as_bytes());
}

/// Waits until everything logged so far is written, at most a second: a reader that stands still
/// does not keep a process alive.
pub fn flush() {
    LIMITER.report();
    if let Some(queue) = &*QUEUE {
        queue.flush(FLUSH_TIMEOUT);
    }
}

/// Whether an event is logged: not if too many came from its place in the code. Errors that end the
/// process and what an operator asked for by a lower level always are.
#[must_use]
pub fn admits(event: &Event<'_>) -> bool {
    if is_exempt(event.metadata()) || LIMITER.admits(event) {
        return true;
    }
    count("repeated").inc();
    false
}

fn is_exempt(metadata: &Metadata<'_>) -> bool {
    *metadata.level() > Level::INFO
        || metadata.target().starts_with(module_path!())
        || metadata.fields().field("exit_code").is_some()
}
