//! Metrics: one row for each, and a histogram that is cheap to observe.
//!
//! Each crate that counts declares its rows with [`metrics!`]: a row is the doc comment, the name
//! and the kind, and the doc comment is the help text that operators read. The node registers the
//! rows of all crates in one registry.
//!
//! Names are stable forever. Counters end in `_total`, latencies are in seconds, sizes in bytes. No
//! label ever holds a key or anything else that a client chooses.

mod histogram;
pub mod process;
mod rows;

pub use histogram::Histogram;
pub use prometheus_client;
pub use rows::registered;
