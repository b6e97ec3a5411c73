//! Records of files: the formats that `load` reads and `dump` writes.
//!
//! A file contains either *pairs*, a key and its value, in a form that can represent any bytes; or
//! *records* as other programs write them, of which one field is the key and the whole text is the
//! value. The reader counts lines exactly, so that an error can name its line.

use std::io::{self, BufRead, Read as _, Write};

use bytes::Bytes;

use crate::cli::RecordFormat;
use crate::encoding::{escape, from_base64, to_base64, unescape};

mod csv_text;
mod jsonl;
mod mark;

pub use jsonl::{one_of, why};
pub use mark::strip as strip_mark;

/// Maximum length of the text of one record: a value of 1 MiB and a key of 4 KiB fit with every
/// byte escaped.
const TEXT_BYTES_MAX: usize = 6 << 20;

/// One record of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// The line it begins on, from 1.
    pub line: u64,
    /// Bytes of the file up to the end of this record, for progress.
    pub end: u64,
    /// The key, with its prefix.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// Why a record could not be read.
#[derive(Debug)]
pub enum RecordError {
    /// The text is not a record.
    Malformed {
        /// The line the record begins on, from 1.
        line: u64,
        /// What is wrong: a sentence that continues after "line N: ".
        message: String,
    },
    /// The file could not be read.
    Io(io::Error),
}

/// Format of a file, and how its records become keys and values.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The format of the file.
    pub format: RecordFormat,
    /// The delimiter of fields; `None` means the one of the format.
    pub delimiter: Option<u8>,
    /// The number of the key field, from 1.
    pub key_field: Option<usize>,
    /// The prefix to put before each key.
    pub key_prefix: Bytes,
}

impl Layout {
    /// Whether the value is the whole record and the key one of its fields.
    fn takes_whole_records(&self) -> bool {
        self.delimiter.is_some() || self.key_field.is_some()
    }

    fn delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(match self.format {
            RecordFormat::Csv => b',',
            RecordFormat::Tsv | RecordFormat::Jsonl => b'\t',
        })
    }

    /// Parses the text of one record into key and value. The error continues after "line N: ".
    fn parse(&self, text: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
        if self.takes_whole_records() {
            let number = self.key_field.unwrap_or(1);
            return Ok((self.field(text, number)?, text.to_vec()));
        }
        match self.format {
            RecordFormat::Jsonl => jsonl::parse(text),
            RecordFormat::Csv => {
                let mut fields = csv_text::fields(text, self.delimiter())?;
                let count = fields.len();
                match (fields.pop(), fields.pop(), fields.pop()) {
                    (Some(value), Some(key), None) => Ok((key, value)),
                    _ => Err(wrong_fields(count)),
                }
            }
            RecordFormat::Tsv => {
                let mut fields = text.split(|byte| *byte == b'\t');
                match (fields.next(), fields.next(), fields.next()) {
                    (Some(key), Some(value), None) => {
                        let key = unescape(key).map_err(|error| format!("the key {error}"))?;
                        let value =
                            unescape(value).map_err(|error| format!("the value {error}"))?;
                        Ok((key, value))
                    }
                    _ => Err(wrong_fields(text.split(|byte| *byte == b'\t').count())),
                }
            }
        }
    }

    /// The field with this number, from 1, of a record that is stored whole.
    fn field(&self, text: &[u8], number: usize) -> Result<Vec<u8>, String> {
        let delimiter = self.delimiter();
        let fields = match self.format {
            RecordFormat::Csv => csv_text::fields(text, delimiter)?,
            _ => text.split(|byte| *byte == delimiter).map(<[u8]>::to_vec).collect(),
        };
        let count = fields.len();
        fields.into_iter().nth(number - 1).ok_or_else(|| {
            let plural = if count == 1 { "" } else { "s" };
            format!("the record has {count} field{plural}; expected a field {number}")
        })
    }
}

fn wrong_fields(count: usize) -> String {
    format!(
        "expected a key and a value, found {count} fields; with --key-field N the \
         whole record is the value and its field N is the key"
    )
}

/// Reads the records of a file, one after the other.
pub struct RecordReader<R> {
    input: R,
    layout: Layout,
    /// Line ends seen.
    lines: u64,
    /// Bytes read from the file.
    taken: u64,
}

impl<R: BufRead> RecordReader<R> {
    /// A reader at the beginning of `input`.
    pub fn new(input: R, layout: Layout) -> Self {
        RecordReader { input, layout, lines: 0, taken: 0 }
    }

    /// The text of the next record that is not blank, without its line end, and the line it begins
    /// on.
    fn next_text(&mut self) -> Result<Option<(u64, Vec<u8>)>, RecordError> {
        loop {
            let line = self.lines + 1;
            let mut text = Vec::new();
            let mut quotes = csv_text::Quotes::new(self.layout.delimiter());
            loop {
                let before = text.len();
                let room = TEXT_BYTES_MAX + 1 - before;
                let read = (&mut self.input)
                    .take(room as u64)
                    .read_until(b'\n', &mut text)
                    .map_err(RecordError::Io)?;
                if self.taken == 0 {
                    let malformed = |message| RecordError::Malformed { line, message };
                    mark::strip(&mut text).map_err(malformed)?;
                }
                self.taken += read as u64;
                if text.len() > TEXT_BYTES_MAX {
                    let message = format!("the record is longer than {TEXT_BYTES_MAX} bytes");
                    return Err(RecordError::Malformed { line, message });
                }
                if read == 0 && before == 0 {
                    return Ok(None);
                }
                self.lines += u64::from(text.ends_with(b"\n"));
                if self.layout.format != RecordFormat::Csv || !quotes.open_after(&text[before..]) {
                    break;
                }
                if read == 0 {
                    let message = "a quote that is opened here is never closed".into();
                    return Err(RecordError::Malformed { line, message });
                }
            }
            if text.ends_with(b"\n") {
                text.pop();
                if text.ends_with(b"\r") {
                    text.pop();
                }
            }
            if !text.is_empty() {
                return Ok(Some((line, text)));
            }
        }
    }

    fn next_record(&mut self) -> Result<Option<Record>, RecordError> {
        let Some((line, text)) = self.next_text()? else { return Ok(None) };
        let malformed = |message| RecordError::Malformed { line, message };
        let (key, value) = self.layout.parse(&text).map_err(malformed)?;
        if key.is_empty() {
            return Err(malformed("the key is empty".into()));
        }
        let key = if self.layout.key_prefix.is_empty() {
            Bytes::from(key)
        } else {
            Bytes::from([&self.layout.key_prefix[..], &key].concat())
        };
        Ok(Some(Record { line, end: self.taken, key, value: Bytes::from(value) }))
    }
}

impl<R: BufRead> Iterator for RecordReader<R> {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().transpose()
    }
}

/// Writes one pair in a form that [`RecordReader`] reads back to the same bytes.
pub fn write_pair(
    output: &mut impl Write,
    format: RecordFormat,
    key: &[u8],
    value: &[u8],
) -> io::Result<()> {
    match format {
        RecordFormat::Tsv => writeln!(output, "{}\t{}", escape(key), escape(value)),
        RecordFormat::Csv => csv_text::write(output, &[key, value]),
        RecordFormat::Jsonl => jsonl::write(output, key, value),
    }
}

#[cfg(test)]
mod tests;
