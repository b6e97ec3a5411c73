//! The messages of the API, by the names that the rest of kvctl uses.

use std::time::Duration;

pub use quorate_proto::v1::*;

/// A duration of the wire; what is negative or out of range there is none.
pub fn std_duration(duration: &prost_types::Duration) -> Duration {
    Duration::try_from(*duration).unwrap_or_default()
}
