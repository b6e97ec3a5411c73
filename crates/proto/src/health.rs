//! The names that a node has in the standard gRPC health service.

/// The health service's name for "the node's threads move".
pub const LIVE_SERVICE: &str = "quorate.live";
/// The health service's name for "the node takes requests".
pub const READY_SERVICE: &str = "";
