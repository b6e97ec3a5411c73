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
//! | [`machine`] | one entry → rows and answer, with the checks in their order |
//! | [`execute`] | the operations of one write |
//! | [`sessions`] | the exactly-once table |
//! | [`meta`] | the cluster map of group 0, its rows |
//! | [`map_rules`] | what a cluster map must be |
//! | [`answer`] | what an applied entry answers |
//! | [`answer_row`] | the stored form of an answer |
//! | [`record`] | the stored form of a value |
//! | [`stamp`] | log time |
//! | [`rows`] | what apply needs of the storage |
//!
//! An error here stops the replica: it could not go on without differing from the others.
//! Everything that depends on the client or on the state is an answer.

pub mod answer;
pub mod answer_row;
pub mod error;
pub mod execute;
pub mod machine;
pub mod map_rules;
pub mod meta;
mod reader;
pub mod record;
pub mod rows;
pub mod sessions;
pub mod stamp;

#[cfg(test)]
mod tests;

pub use answer::{Done, NotANumber, OperationResult, Previous, ReadValue, Refusal, WriteAnswer};
pub use error::{ApplyError, Damaged};
pub use machine::{Applied, Ownership, StateMachine};
pub use record::Record;
pub use rows::{MemoryRows, Rows};
pub use stamp::{LogTime, next_stamp};
