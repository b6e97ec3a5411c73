//! One node of a dev cluster: the process that runs it, if any.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::NodePlan;
use super::log::Log;

/// A longer line of a child is cut: what it could make this process hold is bounded.
const LONGEST_LINE: usize = 64 * 1024;

/// How long the output of a process that has ended is waited for. A process that it left behind
/// could hold the output open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A node and its process.
pub(super) struct Node {
    /// What it is started with.
    pub(super) plan: NodePlan,
    process: Option<Process>,
    /// One for what a process writes to each of its outputs, whichever process of the node it is.
    log: Arc<Mutex<Log>>,
}

struct Process {
    child: Child,
    pid: Pid,
    paused: bool,
    /// They copy what the process writes.
    pumps: Vec<JoinHandle<()>>,
    /// Never written to: the child ends when this end of the pipe is closed.
    _lifeline: Option<ChildStdin>,
}

/// What a node is doing, as far as its parent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running(Pid),
    Paused(Pid),
    Stopped,
}

impl Node {
    pub(super) fn new(plan: NodePlan) -> Self {
        let log = Log::new(plan.id, plan.log.clone(), plan.shows_log);
        Self { plan, process: None, log: Arc::new(Mutex::new(log)) }
    }

    pub(super) fn state(&self) -> State {
        match &self.process {
            None => State::Stopped,
            Some(process) if process.paused => State::Paused(process.pid),
            Some(process) => State::Running(process.pid),
        }
    }

    /// Starts the process of a node that has none.
    pub(super) fn spawn(&mut self, program: &Path) -> io::Result<Pid> {
        assert!(self.process.is_none(), "node {} already has a process", self.plan.id);
        let mut child = Command::new(program)
            .args(&self.plan.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the process has no id"))?;
        let log = || Arc::clone(&self.log);
        let stdout = child.stdout.take().map(|out| tokio::spawn(pump(out, log())));
        let stderr = child.stderr.take().map(|err| tokio::spawn(pump(err, log())));
        let pumps = stdout.into_iter().chain(stderr).collect();
        let lifeline = child.stdin.take();
        self.process = Some(Process { child, pid, paused: false, pumps, _lifeline: lifeline });
        Ok(pid)
    }

    /// Waits until the process ends; forever while there is none. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let Some(process) = &mut self.process else { return std::future::pending().await };
        let status = process.child.wait().await;
        // Its last words come before the report of its end.
        let last_words = async {
            // Each leaves the list as it ends, since this future may be dropped and begun again.
            while let Some(pump) = process.pumps.last_mut() {
                let _ = pump.await;
                process.pumps.pop();
            }
        };
        let _ = timeout(LAST_WORDS, last_words).await;
        self.process = None;
        status
    }

    /// Sends a signal to the process, if there is one that has not ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process
            // Until the child is waited for its id is its own, so no other process can be hit.
            && process.child.id().is_some()
        {
            let _ = kill_process(process.pid, signal);
        }
    }

    pub(super) fn pause(&mut self) {
        self.signal(Signal::STOP);
        if let Some(process) = &mut self.process {
            process.paused = true;
        }
    }

    /// Lets a paused process go on.
    pub(super) fn go_on(&mut self) {
        self.signal(Signal::CONT);
        if let Some(process) = &mut self.process {
            process.paused = false;
        }
    }

    /// Asks the process to end in order. A paused one is woken, or it could not.
    pub(super) fn terminate(&mut self) {
        self.log.lock().end();
        self.signal(Signal::TERM);
        self.go_on();
    }
}

/// Copies the lines of a child into the log of its node.
async fn pump(stream: impl AsyncRead + Unpin, log: Arc<Mutex<Log>>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut reader, &mut line).await {
            Ok(true) => log.lock().line(&String::from_utf8_lossy(&line)),
            Ok(false) | Err(_) => return,
        }
    }
}

/// Reads a line without its end, at most [`LONGEST_LINE`] bytes of it. `false` at the end.
async fn read_line(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    let mut any = false;
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(chunk.len());
        let room = LONGEST_LINE.saturating_sub(line.len());
        line.extend_from_slice(&chunk[..taken.min(room)]);
        let used = taken + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_at_the_bound_and_the_last_needs_no_end() {
        let long = "x".repeat(LONGEST_LINE + 5);
        let input = format!("a\n{long}\n\nb");
        let mut reader = BufReader::new(input.as_bytes());
        let mut lengths = Vec::new();
        let mut line = Vec::new();
        while read_line(&mut reader, &mut line).await.unwrap() {
            lengths.push(line.len());
            line.clear();
        }
        assert_eq!(lengths, [1, LONGEST_LINE, 0, 1]);
    }
}
