//! Keys with a common name and a number, each with a value that contains both: written, and found
//! again.

use quorate_client::Client;

/// Writes the first `count` keys of this name.
///
/// # Panics
/// If a write is not acknowledged.
pub async fn fill(client: &Client, name: &str, count: u32) {
    for number in 0..count {
        let put = client.put(format!("{name}-{number}"), format!("{name} {number}")).await;
        put.unwrap_or_else(|error| panic!("{name}-{number} is acknowledged: {error}"));
    }
}

/// Reads the first `count` keys of this name, linearizably.
///
/// # Panics
/// If one cannot be read, or has not the value that [`fill`] writes.
pub async fn check(client: &Client, name: &str, count: u32) {
    for number in 0..count {
        let got = client.get(format!("{name}-{number}")).await.expect("a linearizable read");
        assert_eq!(got.value, format!("{name} {number}"), "{name}-{number}");
    }
}
