//! The Rust client of Quorate.
//!
//! ```no_run
//! use quorate_client::api::ReadLevel;
//! use quorate_client::{Client, ClientConfig, Error};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     let endpoints = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
//!     let client = Client::connect(ClientConfig::new(endpoints)?).await?;
//!
//!     let put = client.put("greeting", "hello").await?;
//!     println!("written at revision {}", put.revision);
//!
//!     let got = client.get("greeting").await?;
//!     assert!(got.found);
//!     println!("{}", String::from_utf8_lossy(&got.value));
//!
//!     // Any replica may serve this read; it sees the write above nevertheless.
//!     let own = client.get("greeting").level(ReadLevel::Session).await?;
//!     if let Some(receipt) = own.receipt {
//!         println!("node {} at index {}", receipt.node_id, receipt.index);
//!     }
//!
//!     // A false condition is an answer, not an error.
//!     let again = client.put("greeting", "hi").if_absent().return_previous().await?;
//!     assert!(!again.applied);
//!
//!     // Keys with the same hash tag share a shard, and can be written atomically.
//!     let batch = client.batch().put("{42}name", "Ada").increment("{42}visits", 1);
//!     println!("the sum is {}", batch.await?.results[1].number);
//!
//!     let mut rows = client.scan().prefix("{42}").rows();
//!     while let Some(row) = rows.next().await? {
//!         println!("{:?} is {:?}", row.key, row.value);
//!     }
//!
//!     match client.delete("greeting").await {
//!         Ok(deleted) => println!("the key existed: {}", deleted.found),
//!         // The write may have been applied. `cancel` settles it.
//!         Err(Error::Unknown { write: Some(id), .. }) => {
//!             let settled = client.cancel("greeting", &id).await?;
//!             println!("{:?}", settled.result());
//!         }
//!         Err(error) => return Err(error),
//!     }
//!     Ok(())
//! }
//! ```
//!
//! **Routing.** The client learns the cluster map from any endpoint, sends writes and linearizable
//! reads to the leader of the key's shard and other reads to any of its replicas, and learns new
//! leaders from receipts and failures. Every node answers every call, so routing only saves hops: a
//! node with an unreachable advertised address is skipped, the others forward, and the client
//! retries the connection in the background.
//!
//! **Retries.** A call is retried until it is answered or rejected permanently, or its timeout has
//! passed. Writes go through sessions, opened at the first write: retried with the same session and
//! sequence, a write is applied once. So a lost answer does not make the outcome unknown yet. If
//! the timeout passes first, [`Error::Unknown`] contains the [`WriteId`] for a later retry. A write
//! without a session is sent once.
//!
//! **Answers** are the messages of the API itself ([`api`]), with the receipt that says what was
//! guaranteed. An absent key and a false condition are answers. The variants of [`Error`] differ in
//! what is known about the effect.

#![warn(clippy::must_use_candidate)]

mod attempt;
mod budget;
mod call;
mod client;
mod cluster;
mod clusters;
mod config;
mod error;
mod flow;
mod inner;
mod multi_get;
mod pool;
mod request;
mod request_id;
mod retry;
mod router;
mod rpc;
mod scan;
mod sending;
mod session;
mod token;
mod write_id;

pub use client::Client;
pub use cluster::{Location, NodeInfo, NodeStatus, ReplicaLocation};
pub use config::{ClientConfig, Endpoint};
pub use error::{Detail, Error, Result};
pub use multi_get::MultiGet;
pub use request::{Batch, CompareAndSet, Delete, Get, Increment, Put, ResponseFuture};
pub use scan::{Rows, Scan};
pub use write_id::{InvalidWriteId, WriteId, WriteIdSlot};

/// The messages of the API.
pub use quorate_proto::v1 as api;

/// The read levels: names, guarantees, and which of them this version offers.
pub use quorate_proto::level;

/// The gRPC codes, as [`Detail`] has them, and their names.
pub use quorate_proto::code::code_name;
pub use tonic::Code;

/// Hashing of keys and the mapping of hashes to shards: the rules that clients and nodes share.
pub use quorate_proto::hash;
