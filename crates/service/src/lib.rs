//! The services of a node, Kv and Cluster: they check, convert and route; what a call means is decided
//! below them.
//!
//! | module | what it is |
//! |---|---|
//! | [`call`] | the wrapper of every call: life, count, slow log, status |
//! | [`kv`] | the Kv service |
//! | [`cluster`] | the Cluster service: what each node says of itself |
//! | [`context`] | a call's deadline, request id and hops |
//! | [`outcome`] | what a failure says of a write, by what the call carries |
//! | [`draft`] | a request that was checked, on its way to a command |
//! | [`write`](mod@write) | writes: to the leader, proposed at most once |
//! | [`read`] | reads at the level that the caller chose |
//! | [`scan`] | scans over all shards, merged in one order |
//! | [`route`], [`forward`] | where the leader is, and calls that another node answers |
//! | [`reply`] | the answers to writes |
//! | [`shared`] | what all services of a node share |
//! | [`health`] | whether the node is live and ready |
//! | [`metrics`] | what the services count |
//!
//! **Boundary.** Nothing here knows the command line, the listeners or the connections between nodes; a
//! gRPC status is made here and nowhere below.

pub mod call;
pub mod cluster;
pub mod context;
pub mod draft;
pub mod forward;
pub mod health;
pub mod kv;
pub mod metrics;
pub mod outcome;
pub mod read;
pub mod reply;
pub mod route;
pub mod scan;
pub mod shared;
pub mod write;

#[cfg(test)]
mod tests;
