//! Read levels and receipts: the guarantee of each answer, with the node and the index it was read
//! at.

use quorate_client::api::ReadLevel;
use quorate_client::{Client, ClientConfig, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoints = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
    let client = Client::connect(ClientConfig::new(endpoints)?).await?;
    client.put("colour", "green").await?;

    for level in [ReadLevel::Linearizable, ReadLevel::Session, ReadLevel::Stale] {
        let got = client.get("colour").level(level).await?;
        let value = String::from_utf8_lossy(&got.value).into_owned();
        if let Some(receipt) = got.receipt {
            let (node, index) = (receipt.node_id, receipt.index);
            println!("{level:?}: {value:?} from node {node}, at index {index} of its shard");
        }
    }
    Ok(())
}
