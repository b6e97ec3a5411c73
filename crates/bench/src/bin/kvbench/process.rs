//! A server as a child process, which ends with this value.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::usage::{self, Usage};

/// How much of a log is shown, in bytes: some twenty lines.
const TAIL: u64 = 3_000;

/// Variables of the environment that would change what a server does.
const SETTINGS: [&str; 2] = ["QUORATE_", "ETCD_"];

/// Without it etcd refuses to run on some kinds of machines.
const ARCHITECTURE: &str = "ETCD_UNSUPPORTED_ARCH";

/// A running server.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program, whose output goes into the file `log`.
    ///
    /// It is called on the thread that lives longest: on Linux a `kvnode` ends with the thread that
    /// started it.
    ///
    /// # Errors
    /// The log cannot be made, or the program cannot be run.
    pub(super) fn start(program: &Path, arguments: &[String], log: PathBuf) -> io::Result<Process> {
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if SETTINGS.iter().any(|prefix| text.starts_with(prefix)) && text != ARCHITECTURE {
                command.env_remove(&name);
            }
        }
        let child = command
            .args(arguments)
            // The other end of the pipe closes when this process ends, however it ends.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C on a terminal reaches this process alone, which ends its children.
            .process_group(0)
            .spawn()?;
        Ok(Process { child, log })
    }

    /// How the process ended; `None` while it runs.
    pub(super) fn end(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// What the process takes.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn usage(&self) -> io::Result<Usage> {
        usage::of_process(self.child.id())
    }

    /// The end of what the process wrote, from the beginning of a line.
    pub(super) fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let begin = file.metadata()?.len().saturating_sub(TAIL);
            file.seek(SeekFrom::Start(begin))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let text = String::from_utf8_lossy(&bytes);
            let whole = match text.split_once('\n') {
                Some((_, whole)) if begin > 0 => whole,
                _ => &text,
            };
            Ok(whole.trim_end().to_owned())
        };
        match read() {
            Ok(text) if text.is_empty() => "(its log is empty)".to_owned(),
            Ok(text) => text,
            Err(error) => format!("(its log cannot be read: {error})"),
        }
    }
}

impl Drop for Process {
    /// Kills the process and waits for its end, so that its files can be removed afterwards. Its
    /// data is thrown away, and an orderly end would only take time.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Process::start(Path::new("sh"), &arguments, log.to_owned()).unwrap()
    }

    #[test]
    fn a_process_ends_with_its_value() {
        let home = tempfile::tempdir().unwrap();
        let process = shell("read line", &home.path().join("log"));
        let pid = process.child.id();
        assert!(usage::of_process(pid).is_ok());
        drop(process);
        assert!(usage::of_process(pid).is_err(), "process {pid} is still there");
    }

    #[test]
    fn the_last_words_are_whole_lines_of_both_outputs() {
        let home = tempfile::tempdir().unwrap();
        let script = "seq 1 2000; echo the last line >&2; exit 3";
        let mut process = shell(script, &home.path().join("log"));
        let _ = process.child.wait();
        assert_eq!(process.end().as_deref(), Some("exit status: 3"));
        let words = process.last_words();
        assert!(words.ends_with("1999\n2000\nthe last line"), "{words}");
        let first: u32 = words.lines().next().unwrap().parse().unwrap();
        assert!(first > 1_000 && words.len() as u64 <= TAIL, "{first}");
        let process = shell("read line", &home.path().join("empty"));
        assert_eq!(process.last_words(), "(its log is empty)");
    }
}
