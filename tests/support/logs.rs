//! What a node says in its log, line by line, while it says it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// One line of a node's log, which is JSON where it is not a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The sentence.
    pub message: String,
    /// The shard it is about.
    pub shard: Option<u64>,
    /// The other node it is about.
    pub peer: Option<u64>,
}

impl Line {
    fn parse(text: &str) -> Option<Line> {
        let value: Value = serde_json::from_str(text).ok()?;
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        let message = value.get("message")?.as_str()?.to_owned();
        Some(Line { message, shard: number("shard"), peer: number("peer") })
    }
}

/// Follows a log file as it grows.
#[derive(Debug)]
pub struct LogWatch {
    path: PathBuf,
    offset: u64,
    /// The beginning of a line that is not written to its end.
    rest: Vec<u8>,
    seen: Vec<Line>,
}

impl LogWatch {
    /// Follows a file from its present end; it may not be there yet.
    #[must_use]
    pub fn from_now(path: &Path) -> LogWatch {
        let offset = path.metadata().map_or(0, |file| file.len());
        LogWatch { path: path.to_owned(), offset, rest: Vec::new(), seen: Vec::new() }
    }

    /// Every line since the beginning of the watch.
    pub fn lines(&mut self) -> &[Line] {
        let mut new = Vec::new();
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.offset)).expect("a log file can be read anywhere");
            file.read_to_end(&mut new).expect("a log file can be read");
        }
        self.offset += new.len() as u64;
        self.rest.append(&mut new);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        self.seen.extend(String::from_utf8_lossy(&whole).lines().filter_map(Line::parse));
        &self.seen
    }

    /// The last line that begins with one of these words.
    pub fn last(&mut self, beginnings: &[&str]) -> Option<Line> {
        let lines = self.lines().iter().rev();
        let begins = |line: &&Line| beginnings.iter().any(|words| line.message.starts_with(words));
        lines.into_iter().find(begins).cloned()
    }
}

impl LogWatch {
    /// Waits until, of the lines that begin with one of `words`, the last begins with the first of
    /// them. Looks often enough that what the line
    /// says still holds.
    ///
    /// # Panics
    /// If that is not so within `patience`.
    pub fn wait_for(&mut self, words: &[&str], patience: Duration) -> Line {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.last(words)
                && line.message.starts_with(words[0])
            {
                return line;
            }
            let path = self.path.display();
            assert!(begun.elapsed() < patience, "waited {patience:?} for {words:?} in {path}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_read_once_they_are_whole() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "{{\"message\":\"before\"}}").expect("written");
        let mut watch = LogWatch::from_now(file.path());
        assert_eq!(watch.lines(), []);
        write!(file, "{{\"message\":\"a: b\",\"sha").expect("written");
        assert_eq!(watch.lines(), []);
        writeln!(file, "rd\":7}}\nnot JSON\n{{\"message\":\"c\",\"peer\":2}}").expect("written");
        let expected = [
            Line { message: "a: b".into(), shard: Some(7), peer: None },
            Line { message: "c".into(), shard: None, peer: Some(2) },
        ];
        assert_eq!(watch.lines(), expected);
        assert_eq!(watch.last(&["a:", "x"]), Some(expected[0].clone()));
        assert_eq!(watch.last(&["b"]), None);
    }
}
