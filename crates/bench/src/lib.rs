//! Load generation for Quorate: as many clients as asked for, each with one operation under way,
//! over a few connections, for a bounded time.
//!
//! What makes the figures mean something:
//! - No value is ever written twice ([`ValueMaker`]).
//! - Each worker counts for itself; histograms are merged at the end ([`Latencies`]).
//! - With a rate, latency is counted from when an operation *should* have begun, so that a store
//!   which stalls is not asked less meanwhile and flattered by it (coordinated omission).
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
