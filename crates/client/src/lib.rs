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
//!     // Any replica may serve this one; it sees the write above all the same.
//!     let own = client.get("greeting").level(ReadLevel::Session).await?;
//!     if let Some(receipt) = own.receipt {
//!         println!("node {} at index {}", receipt.node_id, receipt.index);
//!     }
//!
//!     // A false condition is an answer, not an error.
//!     let again = client.put("greeting", "hi").if_absent().return_previous().await?;
//!     assert!(!again.applied);
//!
//!     // Keys with one hash tag share a shard, and can be written as one.
//!     let batch = client.batch().put("{42}name", "Ada").increment("{42}visits", 1);
//!     println!("the sum is {}", batch.await?.results[1].number);
//!
//!     let mut rows = client.scan().prefix("{42}").rows();
//!     while let Some(row) = rows.next().await? {
//!         println!("{:?} is {:?}", row.key, row.value);
//!     }
//!
//!     match client.delete("greeting").await {
//!         Ok(deleted) => println!("there was one: {}", deleted.found),
//!         // Not lost, not done: unknown, until somebody asks.
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
//! **Routing.** The client learns the cluster map from any endpoint, sends writes and linearizable reads to
//! the leader of the key's shard and other reads to any of its replicas, and learns new leaders from
//! receipts and failures. Every node answers every call, so that all this only shortens the way: a node
//! whose advertised address cannot be reached is passed over, the others forward, and it is tried again
//! in the background.
//!
//! **Retries.** A call is repeated until it is answered, is refused for good, or its time is over. Writes go
//! through sessions, opened at the first write: repeated with the same session and sequence, a write is
//! applied once. So a dropped answer is no unknown outcome yet; only when the time is over it is, and
//! [`Error::Unknown`] then carries the [`WriteId`] with which one can ask again at leisure. Without a
//! session a write is sent once.
//!
//! **Answers** are the messages of the API itself ([`api`]), with the receipt that says what was guaranteed.
//! An absent key and a false condition are answers; [`Error`] tells the rest apart by what is known of
//! the effect.

#![warn(clippy::must_use_candidate)]

mod attempt;
mod call;
mod client;
mod cluster;
mod clusters;
mod config;
mod error;
mod inner;
mod pool;
mod request;
mod request_id;
mod retry;
mod router;
mod rpc;
mod scan;
mod session;
mod token;
mod write_id;

pub use client::Client;
pub use cluster::{Location, NodeStatus, ReplicaLocation};
pub use config::{ClientConfig, Endpoint};
pub use error::{Detail, Error, Result};
pub use request::{Batch, CompareAndSet, Delete, Get, Increment, Put, ResponseFuture};
pub use scan::{Rows, Scan};
pub use write_id::{InvalidWriteId, WriteId, WriteIdSlot};

/// The messages of the API, as answers carry them.
pub use quorate_proto::v1 as api;

/// The read levels: names, guarantees, and which of them this version offers.
pub use quorate_proto::level;

/// The gRPC codes, as [`Detail`] has them, and their names.
pub use quorate_proto::code::code_name;
pub use tonic::Code;

/// How keys are hashed and where hashes fall: the rules that clients and nodes share.
pub use quorate_proto::hash;
