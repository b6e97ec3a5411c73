//! Scripted nodes for the tests of the client and of kvctl: real sockets, real gRPC, one small
//! store in memory behind all nodes, and failures as each test says.
//!
//! [`FakeCluster::start`] binds the nodes to free ports and serves them from a thread of their own,
//! so that tests with and without a runtime can use it. They answer from [`State`]: the map as it
//! is there, rows with revisions, sessions that apply each write once. What a test wants otherwise
//! it writes into the script ([`Step`]), and what came it finds in the same state.
//!
//! | file | what |
//! |---|---|
//! | `store.rs` | rows, sessions, scans: what a call does when nothing is scripted |
//! | `state.rs` | what a test can look at and set: map, script, calls seen |
//! | `node.rs` | the services Kv and Cluster; a new method of the API is added here |
//! | `cluster.rs` | starting, and the handle that tests hold |
//!
//! It is for dev-dependencies only: no product code may use it, and it uses only `quorate-proto`.

mod cluster;
mod node;
mod pipeline;
mod state;
mod store;

pub use cluster::FakeCluster;
pub use node::NOT_SERVED;
pub use state::{CLUSTER, Calls, HISTORY, REQUEST_ID, SeenWrite, State, Step, VERSION, failure};
pub use store::{Row, Store};
