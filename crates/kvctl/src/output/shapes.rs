//! Output of commands on single keys in each format. The tests below hold each form.

use std::io;

use serde_json::Value;

use super::Output;
use super::json::{self, Object};
use crate::cli::{Encodings, Format};
use crate::wire::{
    CompareAndSetResponse, DeleteResponse, GetResponse, IncrementResponse, PutResponse, Receipt,
    ScanRow, StoredValue,
};

/// The answer of every write of one key.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Whether the write was applied; false only if a condition did not hold.
    pub applied: bool,
    /// Whether the key existed immediately before.
    pub found: bool,
    /// The revision of the key now; 0 = absent.
    pub revision: u64,
    /// The revision that created the key; 0 = absent.
    pub create_revision: u64,
    /// The log time of the entry at `revision`; 0 = none.
    pub log_time: u64,
    /// The value of the key immediately before, if it was requested.
    pub previous: Option<StoredValue>,
    /// The sum, if this is an increment that was applied.
    pub number: Option<i64>,
    /// Whether this is the stored answer of an earlier attempt.
    pub replayed: bool,
    /// The receipt.
    pub receipt: Option<Receipt>,
}

macro_rules! written_from {
    ($($response:ty => |$it:ident| $number:expr;)*) => {$(
        impl From<$response> for Written {
            fn from($it: $response) -> Written {
                Written {
                    number: $number,
                    applied: $it.applied,
                    found: $it.found,
                    revision: $it.revision,
                    create_revision: $it.create_revision,
                    log_time: $it.log_time,
                    previous: $it.previous,
                    replayed: $it.replayed,
                    receipt: $it.receipt,
                }
            }
        }
    )*};
}

written_from! {
    PutResponse => |it| None;
    DeleteResponse => |it| None;
    CompareAndSetResponse => |it| None;
    IncrementResponse => |it| it.applied.then_some(it.number);
}

impl Written {
    fn json(&self, key: &[u8]) -> Value {
        Object::new()
            .with_bytes("key", key)
            .with("applied", self.applied)
            .with("found", self.found)
            .with_version(self.revision, self.create_revision, self.log_time)
            .with_some("number", self.number)
            .with_some("previous", self.previous.as_ref().map(json::stored_value))
            .with("replayed", self.replayed)
            .with_receipt(self.receipt.as_ref())
            .into()
    }

    /// The value that made a condition false; `None` if the key is absent.
    fn there(&self) -> Option<&StoredValue> {
        self.previous.as_ref().filter(|stored| !stored.value_omitted)
    }
}

impl Output {
    /// Prints the only key that was read: just its value, with a line end only on a terminal.
    pub fn got(&mut self, key: &[u8], got: &GetResponse, with: &Encodings) -> io::Result<()> {
        match self.format_or(Format::Raw) {
            Format::Json => self.json(&got_json(key, got)),
            _ if !got.found => Ok(()),
            Format::Raw => {
                self.bytes(&with.value_encoding.encode(&got.value))?;
                if self.terminal { self.bytes(b"\n") } else { Ok(()) }
            }
            Format::Tsv | Format::Table => self.pair(key, &got.value, with),
        }
    }

    /// Prints one of several keys that were read.
    pub fn got_one(&mut self, key: &[u8], got: &GetResponse, with: &Encodings) -> io::Result<()> {
        match self.format_or(Format::Tsv) {
            Format::Json => self.json(&got_json(key, got)),
            _ if !got.found => Ok(()),
            Format::Raw => {
                self.bytes(&with.value_encoding.encode(&got.value))?;
                self.bytes(b"\n")
            }
            Format::Tsv | Format::Table => self.pair(key, &got.value, with),
        }
    }

    /// Prints a key and its value, in a line or a row.
    pub fn pair(&mut self, key: &[u8], value: &[u8], with: &Encodings) -> io::Result<()> {
        self.entry("VALUE", &with.key_encoding.field(key), &with.value_encoding.field(value))
    }

    /// Prints a write that stores a value: `OK`, or the value that made its condition false.
    pub fn stored(&mut self, key: &[u8], it: &Written, with: &Encodings) -> io::Result<()> {
        match self.format_or(Format::Raw) {
            Format::Json => self.json(&it.json(key)),
            Format::Raw if it.applied => self.line("OK"),
            _ if it.applied => {
                let key = with.key_encoding.field(key);
                self.entry("REVISION", &key, &it.revision.to_string())
            }
            format => self.there(key, it, with, format),
        }
    }

    /// Prints an increment: the sum.
    pub fn summed(&mut self, key: &[u8], it: &Written, with: &Encodings) -> io::Result<()> {
        let number = it.number.unwrap_or_default().to_string();
        match self.format_or(Format::Raw) {
            Format::Json => self.json(&it.json(key)),
            Format::Raw => self.line(number),
            Format::Tsv | Format::Table => {
                self.entry("NUMBER", &with.key_encoding.field(key), &number)
            }
        }
    }

    /// Prints one key that was removed, in the formats with a line for each key.
    pub fn removed(&mut self, key: &[u8], it: &Written, with: &Encodings) -> io::Result<()> {
        match self.format_or(Format::Raw) {
            Format::Json => self.json(&it.json(key)),
            format if !it.applied => self.there(key, it, with, format),
            // The number of removed keys is printed once, at the end.
            Format::Raw => Ok(()),
            Format::Tsv | Format::Table => {
                let revision = it.revision.to_string();
                self.entry("REVISION", &with.key_encoding.field(key), &revision)
            }
        }
    }

    /// Prints the value that made a condition false, as `get` would print it.
    fn there(
        &mut self,
        key: &[u8],
        it: &Written,
        with: &Encodings,
        format: Format,
    ) -> io::Result<()> {
        let Some(there) = it.there() else { return Ok(()) };
        match format {
            Format::Raw => {
                self.bytes(&with.value_encoding.encode(&there.value))?;
                if self.terminal { self.bytes(b"\n") } else { Ok(()) }
            }
            _ => self.pair(key, &there.value, with),
        }
    }
}

fn got_json(key: &[u8], got: &GetResponse) -> Value {
    let object = Object::new().with_bytes("key", key).with("found", got.found);
    let object = match got.found {
        true => object.with_bytes("value", &got.value).with_version(
            got.revision,
            got.create_revision,
            got.log_time,
        ),
        false => object,
    };
    object.with_receipt(got.receipt.as_ref()).into()
}

/// The JSON of one row of a scan.
pub fn row_json(row: &ScanRow, with_value: bool) -> Value {
    let object = Object::new().with_bytes("key", &row.key);
    let object = if with_value { object.with_bytes("value", &row.value) } else { object };
    object.with_version(row.revision, row.create_revision, row.log_time).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Encoding;
    use crate::wire::ReadLevel;

    const TEXT: Encodings =
        Encodings { key_encoding: Encoding::Utf8, value_encoding: Encoding::Utf8 };
    const FORMATS: [Option<Format>; 5] =
        [None, Some(Format::Raw), Some(Format::Tsv), Some(Format::Table), Some(Format::Json)];

    fn receipt() -> Receipt {
        Receipt {
            level: ReadLevel::Stale.into(),
            shard: 3,
            term: 4,
            index: 812,
            node_id: 2,
            map_epoch: 1,
            history: vec![0xab; 16].into(),
            age_bound: std::time::Duration::from_micros(36_500).try_into().ok(),
            leader_node_id: 1,
        }
    }

    const RECEIPT: &str = concat!(
        r#""receipt":{"level":"stale","shard":3,"term":4,"index":812,"node_id":2,"map_epoch":1,"#,
        r#""history":"abababababababababababababababab","age_bound_ms":37,"leader_node_id":1}"#
    );

    /// What is printed in each format, the default first.
    fn printed(print: impl Fn(&mut Output) -> io::Result<()>) -> [String; 5] {
        FORMATS.map(|format| {
            let (mut output, written) = Output::captured(format);
            print(&mut output).unwrap();
            output.flush().unwrap();
            written.text()
        })
    }

    fn got(value: &'static [u8]) -> GetResponse {
        GetResponse {
            found: true,
            value: bytes::Bytes::from_static(value),
            revision: 812,
            create_revision: 7,
            log_time: (1_764_000_000_000 << 16) | 5,
            receipt: Some(receipt()),
            token: None,
        }
    }

    #[test]
    fn a_get_prints_the_value() {
        let text = printed(|output| output.got(b"k", &got(b"a\tb\n"), &TEXT));
        assert_eq!(text[..4], ["a\tb\n", "a\tb\n", "k\ta\\tb\\n\n", "KEY  VALUE\nk    a\\tb\\n\n"]);
        assert_eq!(
            text[4],
            format!(
                concat!(
                    r#"{{"key":"k","found":true,"value":"a\tb\n","#,
                    r#""revision":812,"create_revision":7,"#,
                    r#""log_time_ms":1764000000000,"log_time_logical":5,{}}}{}"#
                ),
                RECEIPT, "\n"
            )
        );
        let several = printed(|output| output.got_one(b"k", &got(b"v"), &TEXT));
        assert_eq!(several[..3], ["k\tv\n", "v\n", "k\tv\n"]);
    }

    #[test]
    fn a_get_prints_bytes_that_are_not_text() {
        let (mut output, written) = Output::captured(None);
        output.got(b"\xff", &got(b"\x00\xfe"), &TEXT).unwrap();
        assert_eq!(written.bytes(), b"\x00\xfe");
        let text = printed(|output| output.got(b"\xff", &got(b"\x00\xfe"), &TEXT));
        assert_eq!(text[2], "\\xff\t\\x00\\xfe\n");
        assert!(text[4].starts_with(r#"{"key_base64":"/w==","found":true,"value_base64":"AP4=","#));
        let hex = Encodings { key_encoding: Encoding::Hex, value_encoding: Encoding::Base64 };
        let text = printed(|output| output.got(b"\xff", &got(b"\x00\xfe"), &hex));
        assert_eq!(text[1..3], ["AP4=", "ff\tAP4=\n"]);
    }

    #[test]
    fn a_get_of_an_absent_key_prints_nothing() {
        let absent = GetResponse { receipt: Some(receipt()), ..Default::default() };
        let text = printed(|output| output.got(b"k", &absent, &TEXT));
        assert_eq!(text[..4], ["", "", "", ""]);
        assert_eq!(text[4], format!(r#"{{"key":"k","found":false,{RECEIPT}}}{}"#, "\n"));
    }

    #[test]
    fn a_get_on_a_terminal_ends_the_line() {
        let (mut output, written) = Output::captured(None);
        output.terminal = true;
        output.got(b"k", &got(b"v"), &TEXT).unwrap();
        assert_eq!(written.text(), "v\n");
    }

    fn written() -> Written {
        PutResponse {
            applied: true,
            found: true,
            revision: 812,
            create_revision: 7,
            log_time: (9 << 16) | 1,
            previous: None,
            replayed: false,
            receipt: Some(receipt()),
            token: None,
        }
        .into()
    }

    #[test]
    fn a_put_prints_ok_or_the_revision() {
        let text = printed(|output| output.stored(b"k", &written(), &TEXT));
        assert_eq!(text[..4], ["OK\n", "OK\n", "k\t812\n", "KEY  REVISION\nk    812\n"]);
        assert_eq!(
            text[4],
            format!(
                concat!(
                    r#"{{"key":"k","applied":true,"found":true,"#,
                    r#""revision":812,"create_revision":7,"#,
                    r#""log_time_ms":9,"log_time_logical":1,"replayed":false,{}}}{}"#
                ),
                RECEIPT, "\n"
            )
        );
    }

    #[test]
    fn a_false_condition_prints_what_is_there() {
        let previous = StoredValue {
            value: bytes::Bytes::from_static(b"there"),
            value_omitted: false,
            revision: 5,
            create_revision: 5,
            log_time: 1 << 16,
        };
        let refused = Written { applied: false, previous: Some(previous), ..written() };
        for print in [Output::stored, Output::removed] {
            let text = printed(|output| print(output, b"k", &refused, &TEXT));
            assert_eq!(text[..3], ["there", "there", "k\tthere\n"]);
            assert!(
                text[4].contains(concat!(
                    r#""applied":false,"found":true,"revision":812,"create_revision":7,"#,
                    r#""log_time_ms":9,"log_time_logical":1,"#,
                    r#""previous":{"value":"there","revision":5,"create_revision":5,"#,
                    r#""log_time_ms":1,"log_time_logical":0}"#
                )),
                "{}",
                text[4]
            );
        }
        let absent = Written { applied: false, found: false, ..Default::default() };
        let text = printed(|output| output.stored(b"k", &absent, &TEXT));
        assert_eq!(text[..4], ["", "", "", ""]);
    }

    #[test]
    fn an_increment_prints_the_sum_and_a_removal_the_revision() {
        let sum: Written =
            IncrementResponse { applied: true, number: -5, ..Default::default() }.into();
        let text = printed(|output| output.summed(b"k", &sum, &TEXT));
        assert_eq!(text[..3], ["-5\n", "-5\n", "k\t-5\n"]);
        assert!(
            text[4].contains(r#""log_time_logical":0,"number":-5,"replayed":false"#),
            "{}",
            text[4]
        );
        let text = printed(|output| output.removed(b"k", &written(), &TEXT));
        assert_eq!(text[..3], ["", "", "k\t812\n"]);
    }

    #[test]
    fn a_row_of_a_scan_is_one_json_object() {
        let row = ScanRow {
            key: bytes::Bytes::from_static(b"k"),
            value: bytes::Bytes::from_static(b"\xff"),
            revision: 3,
            create_revision: 2,
            log_time: 1 << 16,
        };
        assert_eq!(
            row_json(&row, true).to_string(),
            concat!(
                r#"{"key":"k","value_base64":"/w==","revision":3,"create_revision":2,"#,
                r#""log_time_ms":1,"log_time_logical":0}"#
            )
        );
        assert_eq!(
            row_json(&row, false).to_string(),
            r#"{"key":"k","revision":3,"create_revision":2,"log_time_ms":1,"log_time_logical":0}"#
        );
    }
}
