//! The listeners: gRPC for clients and peers, HTTP for metrics and probes.

mod bounded;
mod calls;
pub(crate) mod http;
pub(crate) mod listener;
mod places;
