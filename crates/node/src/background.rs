//! What runs beside the calls for as long as the node does: the disk is watched, gauges are set, and at
//! the start the node waits until it is ready. `lib.rs` has the table of all background work.

pub(crate) mod disk;
pub(crate) mod gauges;
pub(crate) mod readiness;
