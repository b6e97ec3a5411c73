//! The replicated state machine: what a committed entry does to the rows of its group.
//!
//! Every replica of a group applies the same entries in the same order and must end with the same
//! rows, byte for byte; the digest of the rows is compared between replicas. So nothing here reads
//! a clock (the log time of the entry is the only time), draws a random number, iterates a hash map
//! or computes with floats, and the in-memory session table and map are always what a reload of the
//! rows would give.
//!
//! | module | what it is |
//! |---|---|
//! | [`command`] | the commands that entries hold: their versions, how they are made and encoded |
//! | `machine` | one entry → rows and answer, with the checks in their order: [`StateMachine`] |
//! | `execute` | the operations of one write |
//! | `sessions` | the exactly-once table |
//! | `session_id` | the identity of a session, and how one is minted: [`SessionId`] |
//! | `meta` | the cluster map of group 0, its rows |
//! | `map` | the map as its readers use it: [`Map`] |
//! | [`map_rules`] | what a cluster map must be |
//! | `answer` | what an applied entry answers: [`WriteAnswer`] |
//! | `answer_row` | the stored form of an answer |
//! | `record` | the stored form of a value: [`Record`] |
//! | `stamp` | log time: [`LogTime`] |
//! | `rows` | what apply needs of the storage: [`Rows`] |
//!
//! An error here stops the replica: it could not continue without differing from the others.
//! Everything that depends on the client or on the state is an answer.
//!
//! **Boundary.** The whole crate is deterministic; what needs a clock, randomness or a client's request
//! stays with the callers, who hand in values. Requests are checked before they become commands, and a
//! command that reaches this crate malformed all the same is refused, never trusted.

mod answer;
mod answer_row;
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
mod sessions;
mod stamp;

#[cfg(test)]
mod tests;

pub use answer::{Done, NotANumber, OperationResult, Previous, ReadValue, Refusal, WriteAnswer};
pub use error::{ApplyError, Damaged};
pub use execute::check as check_write;
pub use machine::{Applied, Ownership, StateMachine};
pub use map::{Map, replicas_of};
pub use record::Record;
pub use rows::{MemoryRows, Rows};
pub use session_id::{BirthWish, SessionId, SessionMint, WriteKey};
pub use sessions::SessionLimits;
pub use stamp::{FROM_MEDIAN_MAX_MS, LogTime, median, next_stamp};
