//! Background work of the node: the watch over the disk, the gauges, and the check at startup
//! whether the node is ready. `lib.rs` has the table of all background work.

pub(crate) mod disk;
pub(crate) mod gauges;
pub(crate) mod readiness;
