//! The commands, one family per file.

pub mod load;
