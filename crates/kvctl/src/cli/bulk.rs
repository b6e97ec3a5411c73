//! Arguments of the commands on many keys.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Encodings;

/// Arguments of `scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Only keys that begin with PREFIX
    #[arg(conflicts_with_all = ["start", "end"])]
    pub prefix: Option<OsString>,

    /// First key
    #[arg(long, value_name = "KEY")]
    pub start: Option<OsString>,

    /// End before this key
    #[arg(long, value_name = "KEY")]
    pub end: Option<OsString>,

    /// From the last key to the first
    #[arg(long)]
    pub reverse: bool,

    /// Stop after N keys
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,

    /// Print keys without values
    #[arg(long)]
    pub keys_only: bool,

    /// Print only the number of keys
    #[arg(long, conflicts_with = "keys_only")]
    pub count: bool,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// File formats of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RecordFormat {
    /// One record per line, fields separated by tabs
    Tsv,
    /// Comma-separated values, quoted as in RFC 4180
    Csv,
    /// One JSON object per line
    Jsonl,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
#[command(after_help = "\
Pairs (without --delimiter and --key-field), as dump writes them:
  tsv    key, tab, value; \\t \\n \\r \\\\ stand for tab, line feed, carriage return, backslash, and
         \\xHH for the byte HH (hexadecimal)
  csv    key, comma, value; quotes around fields with commas, quotes or line ends
  jsonl  {\"key\": K, \"value\": V} on each line; key_base64 and value_base64 instead if not
         UTF-8; other fields are ignored
Records (with --delimiter or --key-field, tsv and csv): the key is one field of the record, and
the value is the whole record as it is in the file, without its line end. With tsv a record is a
line and nothing is unescaped; with csv a quoted field may contain delimiters and line ends.
Records with the same key are stored in the order of the file.
A key that already has the value of its record is not written again and counts as unchanged.")]
pub struct LoadArgs {
    /// File to read, or - for standard input
    pub file: PathBuf,

    /// Format of the file [default: from its name, else tsv]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<RecordFormat>,

    /// Delimiter of the fields of a record: one byte, or \t
    #[arg(long, value_name = "BYTE", value_parser = delimiter)]
    pub delimiter: Option<u8>,

    /// Number of the key field, from 1 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_field: Option<u32>,

    /// Prefix to put before every key
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub key_prefix: OsString,

    /// Maximum number of records per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,

    /// Maximum number of records in flight
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=512))]
    pub in_flight: u32,

    /// Write a line per acknowledged record to FILE: key, revision, shard (tsv)
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,

    /// Stop after N records that could not be stored (0: never)
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub max_failures: u64,
}

/// Arguments of `dump`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each page reads every shard at one index of that shard; shards are not read at one instant.")]
pub struct DumpArgs {
    /// Only keys that begin with PREFIX
    pub prefix: Option<OsString>,

    /// Format of the output [default: from the name of the file, else tsv]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<RecordFormat>,

    /// Write to FILE, which must not exist
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Encoding of PREFIX
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub key_encoding: crate::encoding::Encoding,
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" => Ok(b'\t'),
        _ if text.len() == 1 && !matches!(text, "\n" | "\r" | "\"") => Ok(text.as_bytes()[0]),
        _ => Err("expected one byte that is neither a quote nor a line end".into()),
    }
}
