//! The Quorate server as a library: the parts that the binary `kvnode` runs.
//!
//! # Threads
//!
//! | thread | owns | blocks on |
//! |---|---|---|
//! | tokio workers | listeners, services, transport, keeper | nothing |
//! | `engine-N` | the Raft cores of its groups | its inbox |
//! | `log-writer` | the record log | the disk |
//! | `apply-N` | the states of its groups | reads of old rows, the barrier of an installed header |
//! | `checkpointer` | nothing; writes frozen deltas | the disk |
//! | `peer-memory` | the positions that peers have reported | the disk |
//! | `watchdog` | nothing; checks for barriers that hang | nothing |
//! | `log` | nothing; writes the lines of the log | the reader of standard error |
//! | blocking pool | nothing; 16 tree reads, 8 scans, snapshots, names | the disk, DNS |
//!
//! # Queues
//!
//! Every queue has a bound. Completions are counters in the form of messages: there are never more
//! of them than outstanding tokens, so they are never rejected, and a ring of full queues cannot
//! block itself. *Rejected* means with OVERLOADED.
//!
//! Of every bound in bytes between a client and the delta, and of the places of writes, large ones
//! (more than [`quorate_raft::SMALL_BYTES`]) may take three quarters: the rest is for small ones.
//!
//! | queue | unit | bound | full |
//! |---|---|---|---|
//! | writes, and reads of single keys, under way | calls | 256 to 4,096 each, by delay | rejected |
//! | requests of writes under way | bytes | half of the share `request queues` | rejected |
//! | engine inbox, offers | bytes | the other half | rejected; from a peer: dropped |
//! | engine inbox, completions | tokens | outstanding tokens | – |
//! | log writer | entries of the core | `max_uncommitted_bytes` per group | – |
//! | apply pool | entries of the core | `max_committed_bytes` per group | they wait in the log |
//! | delta | bytes | the share `delta` | writes are rejected; at twice that, apply pauses |
//! | control lane, per peer | messages | one per group, replica, kind | the latest wins |
//! | bulk lane, per peer | bytes | share `transport queues` / peers | dropped; the core probes |
//! | snapshot orders | orders | 4,096 | the core asks again later |
//! | snapshot chunks | chunks | 2 per transfer | the sender waits |
//! | transfers that a leader prepares | calls | 16 | they wait, until their deadlines |
//! | scan answers | messages | 2 per scan | it waits; ends at its time or if `delta` is half full |
//! | disk work of reads | reads | 16 threads | the read waits, until its deadline |
//! | disk work of scans | scans | 8 threads | the scan waits, then is rejected |
//! | clients, per listener | connections | `--max-connections` | rejected |
//! | peers, per listener | connections | 192 | rejected |
//! | new connections, per listener | connections | 256, each for 10 s | the oldest is closed |
//! | log lines | bytes | 1 MiB, and 64 KiB for errors | lost, counted and reported |
//! | bodies of requests and answers | bytes | the share `bodies`, 10 s and 30 s | rejected |
//! | calls, per connection | streams | `--max-calls-per-connection` | the client waits |
//!
//! # Background work
//!
//! Work that starts without a request, its period, and what it may wait for. A period is the
//! longest pause between two runs, or, for a task with *at most*, the shortest. A constant is named
//! with its module. `tests/tidy` compares the table with the constants.
//!
//! | task | period | constant | may wait for |
//! |---|---|---|---|
//! | forming: asks the founders | 100 ms | `bootstrap::ROUND_INTERVAL` | peers |
//! | forming: logs the peers it waits for, at most | 2 s | `bootstrap::SAY_INTERVAL` | nothing |
//! | readiness: polls until it is ready | 20 ms | `readiness::READY_POLL_INTERVAL` | engine loops |
//! | keeper: follows and proposes maps | 500 ms | `keeper::POLL_INTERVAL` | the disk, group 0 |
//! | keeper: asks for a newer map, outside group 0 | 5 s | `keeper::ASK_INTERVAL` | peers |
//! | leadership: checks disk and replicas | 100 ms | `leadership::POLL_INTERVAL` | engine loops |
//! | leadership: moves to preferred leaders | 1 s | `leadership::PREFER_INTERVAL` | engine loops |
//! | leadership: leaves a replica, at most | 5 s | `leadership::RELIEVE_INTERVAL` | engine loops |
//! | leadership: leaves a slow disk, at most | 10 s | `leadership::FLEE_INTERVAL` | engine loops |
//! | transfer on request: looks at its target | 50 ms | `transfer::LOOK_INTERVAL` | engine loops |
//! | disk: measures the space | 1 s | `disk::POLL_INTERVAL` | the disk, engine loops |
//! | gauges: sets them, checks the peers' clocks | 1 s | `gauges::POLL_INTERVAL` | engine loops |
//! | health: updates the gRPC health service | 100 ms | `health::REPORT_INTERVAL` | nothing |
//! | service manager: notified of changes | 100 ms | `notify::LOOK_INTERVAL` | nothing |
//! | engine loop: runs without input | 500 ms | `event_loop::TURN_INTERVAL` | its inbox |
//! | log writer: maintains an idle log | 200 ms | `log_writer::MAINTAIN_INTERVAL` | the disk |
//! | log writer: the same, with dead records | 1 ms | `log_writer::BEHIND_INTERVAL` | the disk |
//! | log writer: writes `MARK`, at most | 1 s | `mark::MARK_INTERVAL` | the disk |
//! | apply: checks whether it may resume | 50 ms | `apply_pool::RESUME_INTERVAL` | the disk |
//! | checkpointer: checks for due checkpoints | 100 ms | `checkpointer::POLL_INTERVAL` | the disk |
//! | checkpointer: frees space, at most | 1 s | `checkpointer::MAKE_ROOM_INTERVAL` | the disk |
//! | watchdog: checks for barriers that hang | 250 ms | `watchdog::WATCH_INTERVAL` | nothing |
//! | scrub: checks whether one is due | 30 s | `scrub::POLL_INTERVAL` | nothing |
//! | scrub: reads a replica | 24 h | `scrub::SCRUB_INTERVAL` | the disk (blocking pool) |
//! | transport: reports growth of the log | 250 ms | `announce::ANNOUNCE_INTERVAL` | nothing |
//! | transport: the same while it has not grown | 1 s | `announce::IDLE_INTERVAL` | nothing |
//! | transport: saves reports of peers, at most | 1 s | `memory::SAVE_INTERVAL` | the disk |
//! | transport: logs callers without proof, at most | 10 s | `proof::WARN_INTERVAL` | nothing |
//! | transport: acknowledges frames, at most | 250 ms | `service::ACK_INTERVAL` | nothing |
//! | transport: pings an idle connection | 2 s | `dial::KEEPALIVE_INTERVAL` | nothing |
//! | transport: checks for silent peers | a quarter of `silence_max` | – | nothing |
//! | listener: pings an idle client | 10 s | `listener::KEEPALIVE_INTERVAL` | nothing |
//! | log: reports lines that were left out | 1 s | `log::REPORT_INTERVAL` | nothing |
//! | scan, unread: checks the room of writes | 20 ms | `merge::ROOM_INTERVAL` | nothing |
//! | forwarding: pings an idle connection | 5 s | `forward::KEEPALIVE_INTERVAL` | nothing |

mod background;
mod cluster;
mod exit;
pub mod inspect;
mod limits;
pub mod log;
mod metrics;
mod net;
mod node;
mod notify;
mod peers;
mod replicas;
pub mod secret;

pub use exit::{Fatal, install_panic_hook};
pub use metrics::Metrics;
pub use net::http::serve as serve_metrics;
pub use node::run;
pub use quorate_engine::clock::make_wall_clock_wrong;
