//! Nodes over loopback, each on a runtime of its own, so that dropping the runtime is a kill.

mod caller;
mod links;
mod partitions;
mod processes;
mod refusals;
mod snapshots;
mod strangers;
mod support;
