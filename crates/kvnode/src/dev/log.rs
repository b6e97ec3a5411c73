//! Where the lines of a node go: all into a file, and to the terminal those that its user must see.

use std::fs::{File, rename};
use std::io::{self, Write};
use std::path::PathBuf;

use super::say;
use crate::telemetry::has_colour;

/// A file that would become longer is put aside as `NAME.old`, in place of the one before it.
const LONGEST_FILE: u64 = 16 << 20;

/// The log of one node.
#[derive(Debug)]
pub(super) struct Log {
    label: String,
    path: PathBuf,
    /// `None` before the first line, and after a failure.
    file: Option<File>,
    written: u64,
    failed: bool,
    shows_all: bool,
    /// Its node ends together with all others, so their absence is expected.
    ends: bool,
    longest: u64,
}

impl Log {
    /// The log of the node with this id; nothing is opened yet.
    pub(super) fn new(id: u16, path: PathBuf, shows_all: bool) -> Self {
        let label = label(id);
        let longest = LONGEST_FILE;
        Self { label, path, file: None, written: 0, failed: false, shows_all, ends: false, longest }
    }

    /// From now on warnings are not shown, unless everything is.
    pub(super) fn end(&mut self) {
        self.ends = true;
    }

    /// Takes a line of the node.
    pub(super) fn line(&mut self, line: &str) {
        if let Err(error) = self.append(line)
            && !std::mem::replace(&mut self.failed, true)
        {
            say(&format!("the log {} cannot be written: {error}", self.path.display()));
        }
        if self.shows_all || is_for_everybody(line, self.ends) {
            // Nothing waits for its reader: this process must see its nodes and Ctrl-C.
            quorate_node::log::line(&format!("{} {line}", self.label));
        }
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let text = format!("{line}\n");
        let length = text.len() as u64;
        if self.file.is_some() && self.written + length > self.longest {
            self.file = None;
            rename(&self.path, self.path.with_extension("log.old"))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::options().create(true).append(true).open(&self.path)?;
                self.written = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        // In one write, so that a reader that follows the file sees whole lines.
        file.write_all(text.as_bytes())?;
        self.written += length;
        Ok(())
    }
}

/// Whether the line is shown without `--logs`: warnings, errors, and lines outside of the log, such
/// as the last words of a node; warnings only before the nodes end.
fn is_for_everybody(line: &str, ends: bool) -> bool {
    let mut words = line.split_whitespace();
    let stamp = words.next().unwrap_or_default();
    let is_log_line = stamp.ends_with('Z') && stamp.starts_with(|c: char| c.is_ascii_digit());
    match words.next() {
        Some("INFO" | "DEBUG" | "TRACE") => !is_log_line,
        Some("WARN") => !(is_log_line && ends),
        _ => true,
    }
}

/// The prefix of a node's lines.
fn label(id: u16) -> String {
    /// Colours that can be read on a light and on a dark ground.
    const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];
    let plain = format!("n{id} |");
    if has_colour(&io::stderr()) {
        let colour = COLOURS[usize::from(id - 1) % COLOURS.len()];
        format!("\x1b[{colour}m{plain}\x1b[0m")
    } else {
        plain
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_log_is_continued_and_put_aside_before_it_becomes_too_long() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("n1.log");
        let old = home.path().join("n1.log.old");
        let log = || Log { longest: 12, ..Log::new(1, path.clone(), false) };
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let line = |text: &str| format!("2026Z INFO {text}");
        assert_eq!(line("").len(), 11);
        log().line(&line(""));
        let mut log = log();
        log.line("");
        assert_eq!(read(&path), format!("{}\n\n", line("")), "what is there is continued");
        log.line(&line("a"));
        log.line(&line("b"));
        assert_eq!((read(&old), read(&path)), (line("a") + "\n", line("b") + "\n"));
    }

    #[test]
    fn what_is_no_calm_log_line_is_for_everybody() {
        for line in ["2026-11-26T13:21:06.4Z  WARN a", "2026-11-26T13:21:06.4Z ERROR a", "INFO", ""]
        {
            assert!(is_for_everybody(line, false), "{line}");
            assert_eq!(is_for_everybody(line, true), !line.contains("WARN"), "{line}");
        }
        for level in ["INFO", "DEBUG", "TRACE"] {
            assert!(!is_for_everybody(&format!("2026-11-26T13:21:06.4Z {level} a"), false));
        }
    }
}
