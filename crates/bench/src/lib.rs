//! Load generation for Quorate.

mod keys;
mod latency;
pub use keys::{Distribution, KeyChooser, VALUE_SIZE_MIN, ValueMaker};
pub use latency::{Latencies, LatencySummary};
