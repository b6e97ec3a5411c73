//! What is printed: data on standard output, everything else on standard error.

use std::io::{self, BufWriter, IsTerminal as _, Write};

use serde_json::Value;

use crate::cli::Format;
use crate::output::table::{Align, Column, Table, Tone};

pub mod cluster;
pub mod describe;
pub mod json;
pub mod shapes;
pub mod table;
pub mod waiting;

/// Standard output: what the command was asked for, and nothing else.
pub struct Output {
    writer: Box<dyn Write + Send>,
    /// Whether people read it.
    pub terminal: bool,
    /// Whether it may be coloured: a terminal, and no NO_COLOR.
    pub color: bool,
    format: Option<Format>,
    /// Rows that wait for others of their table: the columns are as wide as all of them need.
    entries: Option<Entries>,
}

/// The rows of a table with a key and one more column.
struct Entries {
    heading: &'static str,
    table: Table,
    rows: usize,
}

/// Rows of one table; more begin another one.
const ENTRIES_MAX: usize = 1_000;

impl Output {
    /// The process's own standard output.
    pub fn stdout(format: Option<Format>) -> Output {
        let terminal = io::stdout().is_terminal();
        Output {
            writer: Box::new(BufWriter::with_capacity(64 << 10, io::stdout())),
            terminal,
            color: terminal && color_wanted(),
            format,
            entries: None,
        }
    }

    /// The format asked for, or what this command prints if none was.
    pub fn format_or(&self, default: Format) -> Format {
        self.format.unwrap_or(default)
    }

    /// Exactly these bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// A line of text.
    pub fn line(&mut self, line: impl AsRef<str>) -> io::Result<()> {
        self.writer.write_all(line.as_ref().as_bytes())?;
        self.writer.write_all(b"\n")
    }

    /// A line of fields, separated by tabs; they must be free of tabs and line ends.
    pub fn fields(&mut self, fields: &[&str]) -> io::Result<()> {
        self.line(fields.join("\t"))
    }

    /// A key and what belongs to it under this heading: a row of a table if one was asked for, else a
    /// line of fields. Both must be free of tabs and line ends.
    pub fn entry(&mut self, heading: &'static str, key: &str, cell: &str) -> io::Result<()> {
        if self.format != Some(Format::Table) {
            return self.fields(&[key, cell]);
        }
        let fits = |entries: &mut Entries| entries.heading == heading && entries.rows < ENTRIES_MAX;
        if !self.entries.as_mut().is_some_and(fits) {
            self.end_table()?;
        }
        let entries = self.entries.get_or_insert_with(|| Entries {
            heading,
            table: Table::new(&[Column("KEY", Align::Left), Column(heading, Align::Left)]),
            rows: 0,
        });
        entries.table.row(Tone::Plain, vec![key.to_owned(), cell.to_owned()]);
        entries.rows += 1;
        Ok(())
    }

    /// Prints the rows that wait.
    fn end_table(&mut self) -> io::Result<()> {
        match self.entries.take() {
            Some(entries) => self.table(&entries.table),
            None => Ok(()),
        }
    }

    /// A line with one JSON object.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, value)?;
        self.writer.write_all(b"\n")
    }

    /// Sends on what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.end_table()?;
        self.writer.flush()
    }

    /// Direct access, for writers of whole files.
    pub fn writer(&mut self) -> &mut (dyn Write + Send) {
        &mut *self.writer
    }
}

/// A line for people on standard error. A closed standard error is no reason to fail.
pub fn note(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", line.as_ref());
}

/// A remark for people on standard error; with `-o json` an object with this message, so that a program
/// that reads standard error finds objects alone.
pub fn remark(format: Option<Format>, message: &str) {
    match format {
        Some(Format::Json) => note(serde_json::json!({ "message": message }).to_string()),
        _ => note(message),
    }
}

/// Whether the user has not asked for plain output (<https://no-color.org>).
pub fn color_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod captured {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::{Format, Output};

    /// What an output was given.
    #[derive(Clone, Default)]
    pub struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }

        pub fn text(&self) -> String {
            String::from_utf8_lossy(&self.bytes()).into_owned()
        }
    }

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        /// An output that is no terminal, and what it is given.
        pub fn captured(format: Option<Format>) -> (Output, Captured) {
            let captured = Captured::default();
            let writer = Box::new(captured.clone());
            (Output { writer, terminal: false, color: false, format, entries: None }, captured)
        }
    }
}
