//! A program whose lines are watched as they come, with or without a terminal of its own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::cluster::{Exit, TIMEOUT};
use crate::wait::until;

/// A running program, killed when this is dropped.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    /// The other end of its terminal.
    terminal: Option<File>,
    lines: Receiver<String>,
    /// Lines that came and were not waited for.
    seen: Vec<String>,
}

impl Watched {
    /// Starts the program with no input; both its outputs are watched.
    pub fn spawn(command: &mut Command) -> Watched {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?} starts: {e}"));
        let (sender, lines) = channel();
        watch(child.stdout.take().expect("its output is a pipe"), sender.clone());
        watch(child.stderr.take().expect("its errors are a pipe"), sender);
        Watched { child, terminal: None, lines, seen: Vec::new() }
    }

    /// Starts the program on a terminal of its own.
    pub fn spawn_on_terminal(command: &mut Command) -> Watched {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("a terminal");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("its other end has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = open(&*name, flags, Mode::empty()).expect("its other end opens");
        let again = || Stdio::from(theirs.try_clone().expect("an open file can be duplicated"));
        command.stdin(again()).stdout(again()).stderr(again());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?} starts: {e}"));
        // The program alone holds the other end: it must not stay open here.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let terminal = File::from(ours);
        let (sender, lines) = channel();
        watch(terminal.try_clone().expect("an open file can be duplicated"), sender);
        Watched { child, terminal: Some(terminal), lines, seen: Vec::new() }
    }

    /// Starts the program as [`Watched::spawn_on_terminal`] does, and makes the terminal the one
    /// that controls it, as a user's does: Ctrl-C reaches it as a signal. Needs `Need::Setsid`.
    pub fn spawn_controlled(command: &Command) -> Watched {
        // setsid becomes the program, so the process id is the program's.
        let mut controlled = Command::new("setsid");
        controlled.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => controlled.env(name, value),
                None => controlled.env_remove(name),
            };
        }
        Watched::spawn_on_terminal(&mut controlled)
    }

    /// Types this at its terminal, as it stands: a line ends with `"\n"`, Ctrl-C is `"\x03"`.
    pub fn type_in(&mut self, text: &str) {
        let terminal = self.terminal.as_mut().expect("the program has a terminal");
        terminal.write_all(text.as_bytes()).expect("the program holds the terminal open");
    }

    /// Waits for a line that contains all the parts, among those not yet given out.
    ///
    /// # Panics
    /// If none comes.
    pub fn line(&mut self, parts: &[&str]) -> String {
        let wanted = |line: &String| parts.iter().all(|part| line.contains(part));
        if let Some(at) = self.seen.iter().position(wanted) {
            return self.seen.remove(at);
        }
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if wanted(&line) => return line,
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("no line with {parts:?} among:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Forgets the lines that came so far and were not waited for.
    pub fn forget(&mut self) {
        self.seen.clear();
        while self.lines.try_recv().is_ok() {}
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).expect("the process is this test's own");
    }

    /// Waits for its end.
    pub fn wait_end(&mut self) -> Exit {
        let status = until("the program ends", TIMEOUT, || {
            self.child.try_wait().expect("the process is this test's child")
        });
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => unreachable!("a process ends with a code or by a signal"),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            let tail = &self.seen[self.seen.len().saturating_sub(60)..];
            eprintln!("--- what the program said last\n{}", tail.join("\n"));
        }
    }
}

/// The state letter of a process; `None` for one that has ended, even if it was not waited for yet.
#[must_use]
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let letter = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
    (!['Z', 'X'].contains(&letter)).then_some(letter)
}

/// Waits until none of the processes is left.
///
/// # Panics
/// If one stays.
pub fn until_gone(pids: &[u32]) {
    until("the processes end", Duration::from_secs(20), || {
        pids.iter().all(|pid| process_state(*pid).is_none()).then_some(())
    });
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number as i32).expect("a process id is not 0")
}

/// Sends the lines of a stream until its end, which at a terminal is an error.
fn watch(stream: impl io::Read + Send + 'static, to: Sender<String>) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            // A line without a receiver was written after the test's end.
            let _ = to.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    });
}
