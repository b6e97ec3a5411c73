//! The messages of the API, re-exported for the rest of kvctl.

use std::time::Duration;

pub use quorate_client::api::*;

/// Converts a duration of the wire; a negative one or one out of range becomes zero.
pub fn std_duration<D: Copy>(duration: &D) -> Duration
where
    Duration: TryFrom<D>,
{
    Duration::try_from(*duration).unwrap_or_default()
}
