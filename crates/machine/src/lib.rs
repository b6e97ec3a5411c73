//! The replicated state machine: what a committed entry does to the rows of its group.
//!
//! Every replica of a group applies the same entries in the same order and must end with the same
//! rows, byte for byte; the digest of the rows is compared between replicas. So nothing here reads
//! a clock (the log time of the entry is the only time), draws a random number, iterates a hash map
//! or computes with floats, and the in-memory session table and map always equal a reload of the
//! rows.
//!
//! | module | what it is |
//! |---|---|
//! | [`command`] | the commands in log entries: versions, construction, encoding |
//! | `machine` | one entry → rows and answer, with the checks in their order: [`StateMachine`] |
//! | `execute` | the operations of one write |
//! | `sessions` | the exactly-once table |
//! | `session_id` | session ids and their minting: [`SessionId`] |
//! | `session_key` | what makes an id one of this cluster, and names its client: [`SessionKey`] |
//! | `meta` | the cluster map of group 0, its rows |
//! | `map` | the map as its readers use it: [`Map`] |
//! | [`map_rules`] | the rules of a cluster map |
//! | `answer` | the answers of applied entries: [`WriteAnswer`] |
//! | `answer_row` | the stored form of an answer |
//! | `brief` | commands and stored answers in brief, for people: [`CommandBrief`] |
//! | `record` | the stored form of a value: [`Record`] |
//! | `stamp` | log time: [`LogTime`] |
//! | `rows` | the rows of a group during one entry: [`RowTransaction`] |
//!
//! An error here stops the replica: it could not continue without differing from the others.
//! Everything that depends on the client or on the state is an answer.
//!
//! **Boundary.** The whole crate is deterministic: the callers read the clock, the randomness and
//! the request, and pass values. Requests are checked before they become commands; a malformed
//! command that reaches this crate anyway is rejected, never trusted.

mod answer;
mod answer_row;
mod brief;
pub mod command;
mod error;
mod execute;
mod machine;
mod map;
pub mod map_rules;
mod meta;
mod reader;
mod record;
mod rows;
mod session_id;
mod session_key;
mod sessions;
mod stamp;

#[cfg(test)]
mod tests;

pub use answer::{
    Done, Full, NotANumber, OperationResult, Previous, ReadValue, Refusal, WriteAnswer,
};
pub use brief::{ActionBrief, CommandBrief, OperationBrief, Remembered};
pub use error::{ApplyError, Damaged};
pub use execute::check as check_write;
pub use machine::{Applied, Ownership, StateMachine};
pub use map::{Map, voters_of};
pub use record::Record;
pub use rows::{MemoryRows, RowTransaction};
pub use session_id::{BirthWish, SessionId, SessionMint, WriteKey};
pub use session_key::{ClientTag, SessionKey, WireSessionId};
pub use sessions::SessionLimits;
pub use stamp::{FROM_MEDIAN_MAX_MS, LogTime, median, next_stamp};
