//! Arguments of the commands on single keys.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::Encodings;

/// Arguments of `put`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("content").required(true).args(["value", "stdin", "file"]))]
#[command(override_usage = "kvctl put [OPTIONS] <KEY> <VALUE|--stdin|--file FILE>")]
pub struct PutArgs {
    /// Key to store under
    pub key: OsString,

    /// Value to store; may begin with a dash; put -- before one that looks like an option
    #[arg(allow_hyphen_values = true)]
    pub value: Option<OsString>,

    /// Read the value from standard input
    #[arg(long)]
    pub stdin: bool,

    /// Read the value from FILE
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Only if the key is absent
    #[arg(long, conflicts_with = "if_revision")]
    pub if_absent: bool,

    /// Only if the key was last written at revision N (0: if it is absent)
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Keys to read; several keys print one line each (key, tab, value)
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<OsString>,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// Arguments of `del`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["keys", "prefix"]))]
#[command(override_usage = "kvctl del [OPTIONS] <KEY...|--prefix PREFIX>")]
pub struct DelArgs {
    /// Keys to remove
    #[arg(value_name = "KEY")]
    pub keys: Vec<OsString>,

    /// Remove all keys that begin with PREFIX (all keys if it is empty); counts them first and asks
    /// for confirmation on a terminal
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["if_absent", "if_revision"])]
    pub prefix: Option<OsString>,

    /// Remove a prefix without asking for confirmation
    #[arg(short, long, requires = "prefix")]
    pub yes: bool,

    /// Only if the key is absent: a check that changes nothing
    #[arg(long, conflicts_with = "if_revision")]
    pub if_absent: bool,

    /// Only if the key was last written at revision N
    #[arg(long, value_name = "N")]
    pub if_revision: Option<u64>,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// Arguments of `cas`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("expected").required(true)
    .args(["expect", "absent", "expect_revision"]))]
#[command(override_usage = "kvctl cas [OPTIONS] <KEY> \
    <--expect VALUE|--absent|--expect-revision N> --value VALUE")]
pub struct CasArgs {
    /// Key to store under
    pub key: OsString,

    /// Value that the key must have
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub expect: Option<OsString>,

    /// Require that the key is absent
    #[arg(long)]
    pub absent: bool,

    /// Revision that the key must have
    #[arg(long, value_name = "N")]
    pub expect_revision: Option<u64>,

    /// Value to store
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub value: OsString,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// Arguments of `incr`.
#[derive(Debug, Args)]
pub struct IncrArgs {
    /// Key that holds the number
    pub key: OsString,

    /// Number to add; may be negative
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub by: i64,

    #[command(flatten)]
    pub encodings: Encodings,
}

/// Arguments of `batch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is one operation, a JSON object:
  {\"op\": \"put\", \"key\": K, \"value\": V}
  {\"op\": \"delete\", \"key\": K}                (or \"del\")
  {\"op\": \"increment\", \"key\": K, \"by\": N}    (or \"incr\"; without by: 1)
  {\"op\": \"check\", \"key\": K, CONDITION}
  {\"op\": \"get\", \"key\": K}
put, delete and increment take a CONDITION too: \"if_absent\": true, \"if_revision\": N or
\"if_value\": V. Instead of key, value and if_value: key_base64, value_base64, if_value_base64.

Example; the keys share the hash tag 42 and therefore the shard:
kvctl batch <<'END'
{\"op\": \"check\", \"key\": \"{42}owner\", \"if_value\": \"Ada\"}
{\"op\": \"put\", \"key\": \"{42}name\", \"value\": \"Analytical Engine\"}
{\"op\": \"increment\", \"key\": \"{42}visits\", \"by\": 1}
END")]
pub struct BatchArgs {
    /// File with the operations, or - for standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
}

/// Arguments of `locate`.
#[derive(Debug, Args)]
pub struct LocateArgs {
    /// Key to locate; it need not exist
    pub key: OsString,

    /// Encoding of the key
    #[arg(long, value_enum, value_name = "ENCODING", default_value_t)]
    pub key_encoding: crate::encoding::Encoding,
}
