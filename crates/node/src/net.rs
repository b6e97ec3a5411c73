//! The listeners: gRPC for clients and peers, HTTP for metrics and probes.

pub(crate) mod bodies;
mod bounded;
mod calls;
pub(crate) mod http;
pub(crate) mod listener;
pub(crate) mod places;
