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
//! | `watchdog` | nothing; looks for barriers that hang | nothing |
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
//!
//! # Background work
//!
//! What runs without being asked, how often, and what it may wait for. A period is the longest pause
//! between two runs, or, where the task says *at most*, the shortest. `tests/tidy` compares the table
//! with the constants.
//!
//! | task | period | constant | may wait for |
//! |---|---|---|---|
//! | forming: asks the founders | 100 ms | `node::cluster::bootstrap::ROUND_INTERVAL` | peers |
//! | forming: says for whom it waits, at most | 2 s | `node::cluster::bootstrap::SAY_INTERVAL` | nothing |
//! | readiness: looks whether all shards are served, until they are | 20 ms | `node::background::readiness::READY_POLL_INTERVAL` | engine loops |
//! | keeper: follows and proposes maps, creates replicas | 500 ms | `node::cluster::keeper::POLL_INTERVAL` | the disk (blocking pool), group 0 |
//! | keeper: asks for a newer map, outside of group 0 | 5 s | `node::cluster::keeper::ASK_INTERVAL` | peers |
//! | leadership: leaves a slow disk and replicas that serve nothing | 100 ms | `node::cluster::leadership::POLL_INTERVAL` | engine loops |
//! | leadership: hands shards to preferred leaders | 1 s | `node::cluster::leadership::PREFER_INTERVAL` | engine loops |
//! | leadership: hands the same unserved leadership on, at most | 5 s | `node::cluster::leadership::RELIEVE_INTERVAL` | engine loops |
//! | leadership: leaves a slow disk again, at most | 10 s | `node::cluster::leadership::FLEE_INTERVAL` | engine loops |
//! | disk: measures the space, gives leaderships away at the reserve | 1 s | `node::background::disk::POLL_INTERVAL` | the disk (blocking pool), engine loops |
//! | gauges: sets them, looks at the peers' clocks | 1 s | `node::background::gauges::POLL_INTERVAL` | engine loops |
//! | health: updates the gRPC health service | 100 ms | `service::health::REPORT_INTERVAL` | nothing |
//! | engine loop: turns without input | 500 ms | `engine::event_loop::TURN_INTERVAL` | its inbox |
//! | log writer: looks after the log without input | 200 ms | `engine::log_writer::MAINTAIN_INTERVAL` | the disk |
//! | log writer: the same while dead records wait | 1 ms | `engine::log_writer::BEHIND_INTERVAL` | the disk |
//! | log writer: writes `MARK`, at most | 1 s | `storage::mark::MARK_INTERVAL` | the disk |
//! | apply thread: looks whether it may go on applying | 50 ms | `engine::apply_pool::RESUME_INTERVAL` | reads of old rows |
//! | checkpointer: looks whether a checkpoint is due | 100 ms | `engine::checkpointer::POLL_INTERVAL` | the disk |
//! | checkpointer: removes what was deleted, at the reserve, at most | 1 s | `engine::checkpointer::MAKE_ROOM_INTERVAL` | the disk |
//! | watchdog: looks for barriers that hang | 1 s | `engine::watchdog::WATCH_INTERVAL` | nothing |
//! | scrub: looks whether one is due | 30 s | `engine::scrub::POLL_INTERVAL` | nothing |
//! | scrub: reads a replica | 24 h | `engine::scrub::SCRUB_INTERVAL` | the disk (blocking pool) |
//! | transport: reports to the peers how far the log has grown | 250 ms | `transport::tell::TELL_INTERVAL` | nothing |
//! | transport: the same while it has not grown | 1 s | `transport::tell::IDLE_INTERVAL` | nothing |
//! | transport: saves what the peers have reported, at most | 1 s | `transport::memory::SAVE_INTERVAL` | the disk (`peer-memory`) |
//! | transport: acknowledges frames, at most | 250 ms | `transport::service::ACK_INTERVAL` | nothing |
//! | transport: pings an idle connection | 2 s | `transport::dial::KEEPALIVE_INTERVAL` | nothing |
//! | transport: looks whether a peer is silent | a quarter of `silence_max` | – | nothing |
//! | listener: pings an idle client | 10 s | `node::net::listener::KEEPALIVE_INTERVAL` | nothing |
//! | forwarding: pings an idle connection | 5 s | `service::forward::KEEPALIVE_INTERVAL` | nothing |

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
