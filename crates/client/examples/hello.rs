//! A first program: put, get, scan. Start a cluster with `cargo run --release --bin kvnode -- dev`,
//! then
//! `cargo run -p quorate-client --example hello`.

use quorate_client::{Client, ClientConfig, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoints = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
    let client = Client::connect(ClientConfig::new(endpoints)?).await?;

    let put = client.put("user:1", "Ada").await?;
    println!("written at revision {}", put.revision);

    let got = client.get("user:1").await?;
    println!("found {}: {}", got.found, String::from_utf8_lossy(&got.value));

    let mut rows = client.scan().prefix("user:").rows();
    while let Some(row) = rows.next().await? {
        println!("{} = {}", String::from_utf8_lossy(&row.key), String::from_utf8_lossy(&row.value));
    }
    Ok(())
}
