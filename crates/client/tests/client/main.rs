//! Tests of the client against scripted nodes.
#![allow(clippy::unwrap_used)]

mod many;
mod outcomes;
mod pipelined;
mod routing;
mod scans;
mod sessions;

use quorate_client::{Client, ClientConfig};
use quorate_testkit::FakeCluster;

/// A configuration with every node of the cluster as an endpoint.
fn config(fake: &FakeCluster) -> ClientConfig {
    ClientConfig::new(&fake.addresses).unwrap()
}

/// A connected client.
async fn client(fake: &FakeCluster) -> Client {
    Client::connect(config(fake)).await.unwrap()
}
