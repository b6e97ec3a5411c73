//! The Quorate server as a library: what the binary `kvnode` runs.
//!
//! # Who runs where
//!
//! | thread | owns | blocks on |
//! |---|---|---|
//! | tokio workers | listeners, services, transport, keeper | nothing |
//! | `engine-N` | the Raft cores of its groups | its inbox |
//! | `log-writer` | the record log | the disk |
//! | `apply-N` | the states of its groups | reads of old rows |
//! | `checkpointer` | nothing; writes frozen deltas | the disk |
//! | `peer-memory` | what peers have told of their disks | the disk |
//! | blocking pool (16) | nothing; tree reads, scans, snapshots | the disk |
//!
//! # Queues
//!
//! Every queue has a bound. Completions are counters in the shape of messages: there are never more of
//! them than tokens that are outstanding, so they are never refused, and a ring of full queues cannot
//! come to a stop.
//!
//! | queue | unit | bound | full |
//! |---|---|---|---|
//! | engine inbox, offers | bytes | the share `request queues` | a request is refused (OVERLOADED), a peer's message is dropped |
//! | engine inbox, completions | tokens | what is outstanding | – |
//! | log writer | entries of the core | `max_uncommitted_bytes` per group | – |
//! | apply pool | entries of the core | `max_committed_bytes` per group | committed entries wait in the log |
//! | delta | bytes | the share `delta` | writes are refused (OVERLOADED); at twice that, apply pauses |
//! | control lane, per peer | messages | one per group, replica and kind | the latest wins |
//! | bulk lane, per peer | bytes | the share `transport queues` over the peers | the append is dropped, the core probes |
//! | snapshot orders | orders | 4,096 | the core asks again later |
//! | snapshot chunks | chunks | 2 per transfer | the sender waits |
//! | scan answers | messages | 2 per scan | the scan waits for its reader, and ends its page when the time of its pins is up |
//! | disk work of scans | scans | 8 at once, of the pool of 16 | the scan waits, then OVERLOADED |
//! | clients, per listener | connections | `--max-connections` | refused (OVERLOADED) |
//! | peers, per listener | connections | 256 | refused (OVERLOADED) |
//! | connections that asked nothing yet | connections | 256, each for 10 s | the oldest is closed |
//! | calls, per connection | streams | `--max-calls-per-connection` | HTTP/2 makes the client wait |

mod background;
mod cluster;
mod exit;
mod limits;
mod metrics;
mod net;
mod node;
mod peers;
mod replicas;

pub use exit::{Fatal, install_panic_hook};
pub use metrics::Metrics;
pub use net::http::serve as serve_metrics;
pub use node::run;
pub use quorate_engine::clock::make_wall_clock_wrong;
