//! The gRPC services of a node, Kv and Cluster: they check, convert and route requests. What a
//! command does to the data is decided below them.
//!
//! | module | what it is |
//! |---|---|
//! | [`call`] | the wrapper of every call: lifecycle, count, slow log, status |
//! | [`admission`] | which calls are taken when there are more than the node can do |
//! | [`kv`] | the Kv service |
//! | [`cluster`] | the Cluster service: each node's facts about itself |
//! | [`operation`] | what a call and an operation of a Pipeline have in common |
//! | `pipeline`, `in_stream` | many operations over one stream, in their order |
//! | [`context`] | a call's deadline, request id and hops |
//! | [`outcome`] | the outcome that a failure states for a write |
//! | [`draft`] | a checked request that becomes a command |
//! | [`write`](mod@write) | writes: to the leader, proposed at most once |
//! | [`read`] | reads at the requested level |
//! | `multi_get` | many keys of any shards, in one answer |
//! | [`scan`] | scans over all shards, merged in one order |
//! | [`route`], [`forward`] | the location of the leader, and calls that another node answers |
//! | [`transfer`](mod@transfer) | leaderships that clients place |
//! | [`kept`] | which of them this node keeps |
//! | [`reply`] | the answers to writes |
//! | [`shared`] | the state that all services of a node share |
//! | [`health`] | whether the node is live and ready |
//! | [`metrics`] | the metrics of the services |
//!
//! **Boundary.** Nothing here knows the command line, the listeners or the connections between
//! nodes; a gRPC status is made here and nowhere below.

pub mod admission;
pub mod call;
pub mod cluster;
pub mod context;
pub mod draft;
pub mod forward;
pub mod health;
mod in_stream;
pub mod kept;
mod known;
pub mod kv;
pub mod metrics;
mod multi_get;
pub mod operation;
pub mod outcome;
mod pipeline;
pub mod read;
pub mod reply;
pub mod route;
pub mod scan;
pub mod shared;
pub mod transfer;
pub mod write;

#[cfg(test)]
mod tests;
