//! Limits of the contract. Where a node's configuration changes one, `GetInfo` reports the node's
//! value; these are the defaults, and the bounds that no configuration exceeds.

use std::time::Duration;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// The longest value by default, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The longest value that a configuration may allow, in bytes: with a key and the frame of the
/// request it stays below [`REQUEST_BYTES_MAX`].
pub const VALUE_BYTES_CEILING: usize = REQUEST_BYTES_MAX - (64 << 10);

/// The largest request, in bytes of its encoding.
pub const REQUEST_BYTES_MAX: usize = 2 << 20;

/// The largest message that either end decodes, in bytes. The gRPC library rejects larger ones.
pub const DECODE_BYTES_MAX: usize = 4 << 20;

/// The largest message that is ever sent, in bytes of its encoding.
pub const MESSAGE_BYTES_MAX: usize = 7 << 19;

/// The bytes of values that the gets of a Batch may return together.
pub const BATCH_ANSWER_BYTES_MAX: usize = 3 << 20;

/// The most operations of a Batch. A Batch is one log entry and is applied as a whole.
pub const BATCH_OPERATIONS_MAX: usize = 4_096;

/// The largest message of a Scan, in bytes, unless a single row is larger.
pub const SCAN_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The most rows of one Scan call.
pub const SCAN_ROWS_MAX: u64 = 100_000;

/// The most bytes of keys and values of one Scan call.
pub const SCAN_BYTES_MAX: u64 = 64 << 20;

/// The longest duration of one Scan call, which is also how long it may pin an index.
pub const SCAN_TIME_MAX: Duration = Duration::from_secs(10);

/// The most parts of a session token.
pub const TOKEN_PARTS_MAX: usize = 4_096;

/// The length of a session id as shards store it, in bytes: birth 8, node 4, counter 4, random 8.
pub const SESSION_ID_BYTES: usize = 24;

/// The length of the tag of a client, in bytes.
pub const CLIENT_TAG_BYTES: usize = 16;

/// The length of the tag of a principal, in bytes.
pub const PRINCIPAL_TAG_BYTES: usize = 16;

/// The length of a session id as clients hold it, in bytes: the stored id, the tag of the client
/// that it was opened for, and a MAC of 16.
pub const SESSION_WIRE_BYTES: usize = SESSION_ID_BYTES + CLIENT_TAG_BYTES + 16;

/// The longest session id that clients must be able to hold, in bytes: other versions may give
/// longer ones than [`SESSION_WIRE_BYTES`].
pub const SESSION_WIRE_BYTES_MAX: usize = 64;

/// How long a session is valid from its birth by default.
pub const SESSION_TTL: Duration = Duration::from_secs(600);

/// The most sequences of one session that are not known to be answered.
pub const SESSION_UNANSWERED_MAX: u64 = 1_024;

/// The total bytes of previous values that one stored answer keeps.
pub const STORED_PREVIOUS_BYTES_MAX: usize = 1 << 10;

/// How far ahead of a shard's log time a session's birth may be.
pub const SESSION_FUTURE_MAX: Duration = Duration::from_secs(1);

/// The length of cluster ids, histories and incarnations in bytes.
pub const ID_BYTES: usize = 16;

/// The most shards of a cluster.
pub const SHARDS_MAX: u64 = 4_096;

/// The most replicas of a shard.
pub const REPLICAS_MAX: u32 = 7;

/// The deadline of a call that gives none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The longest deadline of a call; a later one is cut to it.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// The longest message of a failure, in bytes. It is up to three times in one header list, of which
/// common gRPC stacks accept 8 KiB.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 1 << 10;
