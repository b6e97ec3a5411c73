//! Exactly-once counter: each event is counted once, whatever happens to the nodes. If the outcome
//! of an increment is unknown after its timeout, `cancel` settles it before the next event.

use quorate_client::{Client, ClientConfig, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let endpoints = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];
    let client = Client::connect(ClientConfig::new(endpoints)?).await?;
    let mut counted = 0;
    for _ in 0..100 {
        match client.increment("visits", 1).await {
            Ok(_) => counted += 1,
            // The client has retried the write with the same session and sequence until its
            // timeout.
            // `cancel` finds out whether it was applied; if it was not, it never will be.
            Err(Error::Unknown { write: Some(id), .. }) => {
                let settled = client.cancel("visits", &id).await?;
                println!("settled: {:?}", settled.result());
            }
            Err(error) => return Err(error),
        }
    }
    let total = client.get("visits").await?;
    println!("counted {counted}, stored {}", String::from_utf8_lossy(&total.value));
    Ok(())
}
