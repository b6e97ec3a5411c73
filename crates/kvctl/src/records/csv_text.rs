//! Comma-separated values: the end of a record, and its fields.

use std::io::{self, Read as _, Write};

use super::mark;

/// Tracks the quotes of a record over its lines. A quote opens a field only at its beginning, so
/// that a stray quote within a field (`5" pipe`) is text, as for the parser.
pub struct Quotes {
    delimiter: u8,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote within a quoted field: its end, or the first half of a doubled quote.
    QuoteSeen,
}

impl Quotes {
    /// The state at the beginning of a record.
    pub fn new(delimiter: u8) -> Self {
        Quotes { delimiter, state: State::FieldStart }
    }

    /// Reads more text of the record. Returns whether a quoted field is still open, so that the
    /// record continues.
    pub fn open_after(&mut self, text: &[u8]) -> bool {
        for &byte in text {
            self.state = match (self.state, byte) {
                (State::FieldStart, b'"') => State::Quoted,
                (State::Quoted, b'"') => State::QuoteSeen,
                (State::QuoteSeen, b'"') => State::Quoted,
                (State::Quoted, _) => State::Quoted,
                (_, byte) if byte == self.delimiter => State::FieldStart,
                _ => State::Plain,
            };
        }
        self.state == State::Quoted
    }
}

/// The fields of one record, unquoted.
pub fn fields(text: &[u8], delimiter: u8) -> Result<Vec<Vec<u8>>, String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .buffer_capacity(text.len().clamp(16, 64 << 10))
        // The reader drops a byte order mark at its beginning, but here it is part of a field. A
        // blank line before it is skipped.
        .from_reader(b"\n".chain(text));
    let mut record = csv::ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(|error| format!("is not CSV: {error}"))?;
    Ok(record.iter().map(<[u8]>::to_vec).collect())
}

/// Writes one record. Quotes fields if necessary, and all fields if the record begins with a byte
/// order mark, which a reader would drop at the beginning of a file.
pub fn write(output: &mut impl Write, fields: &[&[u8]]) -> io::Result<()> {
    let quote = match fields.first() {
        Some(first) if first.starts_with(mark::UTF_8) => csv::QuoteStyle::Always,
        _ => csv::QuoteStyle::Necessary,
    };
    let mut writer =
        csv::WriterBuilder::new().quote_style(quote).buffer_capacity(1 << 10).from_writer(output);
    writer.write_byte_record(&csv::ByteRecord::from(fields.to_vec()))?;
    writer.flush()
}
