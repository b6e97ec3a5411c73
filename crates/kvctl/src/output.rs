//! Output: data on standard output, everything else on standard error.

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

/// Standard output, for the data of a command only.
pub struct Output {
    writer: Box<dyn Write + Send>,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// Whether colours may be used: on a terminal without NO_COLOR.
    pub color: bool,
    format: Option<Format>,
    /// Buffered rows of a table, whose column widths depend on all of them.
    entries: Option<Entries>,
}

/// The rows of a table with a key and one more column.
struct Entries {
    heading: &'static str,
    table: Table,
    rows: usize,
}

/// Maximum number of rows of one table; further rows start a new one.
const ENTRIES_MAX: usize = 1_000;

impl Output {
    /// Standard output of this process.
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

    /// The format that `--output` names, else the default of this command.
    pub fn format_or(&self, default: Format) -> Format {
        self.format.unwrap_or(default)
    }

    /// Writes exactly these bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// Writes a line of text.
    pub fn line(&mut self, line: impl AsRef<str>) -> io::Result<()> {
        self.writer.write_all(line.as_ref().as_bytes())?;
        self.writer.write_all(b"\n")
    }

    /// Writes a line of fields, separated by tabs; they must not contain tabs or line ends.
    pub fn fields(&mut self, fields: &[&str]) -> io::Result<()> {
        self.line(fields.join("\t"))
    }

    /// Writes a key and a cell under this heading: a row of a table if `--output table` was given,
    /// else a line of fields. Neither may contain tabs or line ends.
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

    /// Prints the buffered rows.
    fn end_table(&mut self) -> io::Result<()> {
        match self.entries.take() {
            Some(entries) => self.table(&entries.table),
            None => Ok(()),
        }
    }

    /// Writes a line with one JSON object.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, value)?;
        self.writer.write_all(b"\n")
    }

    /// Writes everything that is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.end_table()?;
        self.writer.flush()
    }

    /// Direct access, for writers of whole files.
    pub fn writer(&mut self) -> &mut (dyn Write + Send) {
        &mut *self.writer
    }
}

/// Writes a line to standard error. A closed standard error is not a failure.
pub fn note(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", line.as_ref());
}

/// Writes a remark to standard error; with `-o json` an object with this message, so that a program
/// that reads standard error finds only objects.
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

    /// Captured output, for tests.
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
        /// An output that is not a terminal, and its captured bytes.
        pub fn captured(format: Option<Format>) -> (Output, Captured) {
            let captured = Captured::default();
            let writer = Box::new(captured.clone());
            (Output { writer, terminal: false, color: false, format, entries: None }, captured)
        }
    }
}
