//! The other nodes: messages between the transport and the engine, the log positions that they have
//! reported, and their clocks.

mod bridge;
mod clock_watch;
mod memory;
mod targets;

pub(crate) use bridge::{Connections, Incoming, Outgoing, Peers, send_snapshots};
pub(crate) use clock_watch::{ClockWatch, Finding};
pub(crate) use memory::{load as load_memories, recollection};
pub(crate) use targets::{founders, targets, transport_config};
