//! The lines that wait for standard error.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;

/// Lines that wait to be written, up to a bound in bytes. Only the thread that writes waits
/// for the reader of what is written.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Notified when there is something to write.
    more: Condvar,
    /// Notified when something was written.
    written: Condvar,
    lost: Counter,
}

struct Waiting {
    /// Whole lines, one after the other.
    lines: Vec<u8>,
    /// Lines that found no room since the last report.
    lost: u64,
    /// Bytes accepted, and bytes handed to the reader or given up, since the beginning.
    accepted: u64,
    done: u64,
}

impl Queue {
    /// An empty queue with room for `bytes` at first, which counts the lines it loses.
    pub(super) fn new(bytes: usize, lost: Counter) -> Self {
        let lines = Vec::with_capacity(bytes.min(8 << 10));
        Self {
            waiting: Mutex::new(Waiting { lines, lost: 0, accepted: 0, done: 0 }),
            more: Condvar::new(),
            written: Condvar::new(),
            lost,
        }
    }

    /// Takes a line, unless more than `most` bytes would wait then: it is lost.
    pub(super) fn push(&self, line: &[u8], most: usize) {
        let mut waiting = self.waiting.lock();
        if waiting.lines.len() + line.len() > most {
            waiting.lost += 1;
            self.lost.inc();
            return;
        }
        waiting.lines.extend_from_slice(line);
        waiting.accepted += line.len() as u64;
        drop(waiting);
        self.more.notify_one();
    }

    /// Writes lines for as long as the process lives. Before each write, and after each `interval`
    /// without one, `report` gets the number of lines lost since the last time; what it logs comes
    /// where the lost lines would have been.
    pub(super) fn write_to(
        &self,
        out: &mut dyn Write,
        interval: Duration,
        mut report: impl FnMut(u64),
    ) -> ! {
        let mut lines = Vec::new();
        loop {
            let lost = self.take(&mut lines, interval);
            report(lost);
            // A reader that is gone misses nothing.
            let _ = out.write_all(&lines);
            self.waiting.lock().done += lines.len() as u64;
            self.written.notify_all();
            lines.clear();
        }
    }

    /// Swaps the lines that wait with an empty buffer, at the latest after `interval`.
    fn take(&self, lines: &mut Vec<u8>, interval: Duration) -> u64 {
        let mut waiting = self.waiting.lock();
        if waiting.lines.is_empty() {
            self.more.wait_for(&mut waiting, interval);
        }
        std::mem::swap(&mut waiting.lines, lines);
        std::mem::take(&mut waiting.lost)
    }

    /// Waits until what was accepted so far is written, at most `timeout`. Returns whether it is.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut waiting = self.waiting.lock();
        let accepted = waiting.accepted;
        while waiting.done < accepted {
            if self.written.wait_until(&mut waiting, deadline).timed_out() {
                return waiting.done >= accepted;
            }
        }
        true
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} bytes)", self.waiting.lock().lines.len())
    }
}
