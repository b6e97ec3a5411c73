//! Service names of a node in the standard gRPC health service.

/// The service that is healthy while the node's threads make progress.
pub const LIVE_SERVICE: &str = "quorate.live";
/// The service that is healthy while the node accepts requests.
pub const READY_SERVICE: &str = "";
