//! The messages of the API, by the names that the rest of kvctl uses.

use std::time::Duration;

pub use quorate_client::api::*;

/// A duration of the wire; what is negative or out of range there is none.
pub fn std_duration<D: Copy>(duration: &D) -> Duration
where
    Duration: TryFrom<D>,
{
    Duration::try_from(*duration).unwrap_or_default()
}
