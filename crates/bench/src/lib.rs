//! Load generation for Quorate over a few connections, for a bounded time: a closed loop of as many
//! clients as asked for, each with one operation under way, or an open loop, in which operations
//! begin at a rate whatever the answers do.
//!
//! What makes the figures mean something:
//! - No value is ever written twice ([`ValueMaker`]).
//! - Each worker counts for itself; histograms are merged at the end ([`Latencies`]).
//! - In an open loop latency is counted from when an operation *should* have begun, and a store
//!   which stalls is not asked less meanwhile and flattered by it (coordinated omission). What
//!   could not even begin, because too much was under way, is counted.
//! - Only operations that end within the measured time count for the throughput.

mod keys;
mod latency;
mod plan;
mod report;
mod run;

pub use keys::{Distribution, KeyChooser, VALUE_SIZE_MIN, ValueMaker};
pub use latency::{Latencies, LatencySummary};
pub use plan::{Kind, Plan};
pub use report::{OperationReport, Report};
pub use run::{BenchError, Progress, run};
