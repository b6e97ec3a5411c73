//! JSON of results: names as in the proto, integers as numbers, ids in hexadecimal, bytes as text
//! if they are UTF-8, else in base64 under another name. The names are fixed forever.

use std::time::Duration;

use quorate_client::level::LevelRow;
use serde_json::{Map, Value};

use crate::encoding::to_base64;
use crate::wire::{self, std_duration};

/// An object whose fields keep the order in which they were added.
#[derive(Default)]
pub struct Object(Map<String, Value>);

impl Object {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a field if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds bytes: as `name` if they are UTF-8, else as `name_base64`.
    #[must_use]
    pub fn with_bytes(self, name: &str, bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => self.with(name, text),
            Err(_) => self.with(&format!("{name}_base64"), to_base64(bytes)),
        }
    }

    /// Adds the version of a record: its revision, the revision that created the key, and the log
    /// time.
    #[must_use]
    pub fn with_version(self, revision: u64, create_revision: u64, log_time: u64) -> Self {
        self.with("revision", revision)
            .with("create_revision", create_revision)
            .with_log_time(log_time)
    }

    /// Adds a log time, in its two parts.
    #[must_use]
    pub fn with_log_time(self, log_time: u64) -> Self {
        self.with("log_time_ms", log_time >> 16).with("log_time_logical", log_time & 0xffff)
    }

    /// Adds the receipt of an answer, if there is one.
    #[must_use]
    pub fn with_receipt(self, receipt: Option<&wire::Receipt>) -> Self {
        self.with_some("receipt", receipt.map(crate::output::json::receipt))
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Value {
        Value::Object(object.0)
    }
}

/// A receipt with the names of the proto; the age is `age_bound_ms`, rounded up so that it stays an
/// upper bound.
pub fn receipt(receipt: &wire::Receipt) -> Value {
    Object::new()
        .with("level", level(receipt.level))
        .with("shard", receipt.shard)
        .with("term", receipt.term)
        .with("index", receipt.index)
        .with("node_id", receipt.node_id)
        .with("map_epoch", receipt.map_epoch)
        .with("history", hex::encode(&receipt.history))
        .with_some(
            "age_bound_ms",
            receipt.age_bound.as_ref().map(|age| millis_up(std_duration(age))),
        )
        .with("leader_node_id", receipt.leader_node_id)
        .into()
}

/// The previous value of a key.
pub fn stored_value(stored: &wire::StoredValue) -> Value {
    let object = if stored.value_omitted {
        Object::new().with("value_omitted", true)
    } else {
        Object::new().with_bytes("value", &stored.value)
    };
    object.with_version(stored.revision, stored.create_revision, stored.log_time).into()
}

/// The name of a level, as `--consistency` accepts it.
pub fn level(level: i32) -> &'static str {
    LevelRow::of_number(level).map_or("unknown", |row| row.name)
}

/// Milliseconds, rounded up.
pub fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
