//! The client against scripted nodes.
#![allow(clippy::unwrap_used)]

mod fake;
mod outcomes;
mod routing;
mod scans;
mod sessions;
