//! Reading the data directory of a node that is stopped, for people and their tools.
//!
//! The database writes merely by being opened, so a copy is opened, and the directory itself stays
//! as it is, byte for byte. Damage of one part hides no other: each part is read as far as it can
//! be, and what is wrong with it is one [`Problem`] in the [`Report`].

mod copy;
mod entries;
mod groups;
mod read;
mod report;

pub use copy::{CopyPlace, Source};
pub use entries::EntryLine;
pub use read::{Inspection, read};
pub use report::{
    Checkpoint, Group, GroupLog, Health, LogSummary, Member, Problem, ProblemKind, Report, Voter,
};
