//! The services of a node: they convert, check and route; what a call means is decided below them.

pub mod cluster;
pub mod context;
pub mod forward;
pub mod kv;
mod merge;
pub mod outcome;
pub mod page_token;
pub mod read;
pub mod route;
pub mod scan;
pub mod write;

#[cfg(test)]
mod tests;
