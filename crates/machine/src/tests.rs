//! The state machine against a naive twin, and the same log applied in different ways.

mod build;
mod determinism;
mod formats;
mod map;
mod model;
mod sessions;
mod storage;
mod twin;
mod writes;
