//! Our nodes over the native client, as its users have it: routed to the leader, writes in a
//! session, retried.

use bytes::Bytes;
use quorate_client::Client;

use super::{Refusal, Rotation, Store, absent};

/// Native clients, each with one connection to every node.
#[derive(Clone)]
pub(crate) struct Native(Rotation<Client>);

impl Native {
    /// Over these clients, at least one.
    pub(crate) fn new(clients: Vec<Client>) -> Native {
        Native(Rotation::new(clients))
    }
}

impl Store for Native {
    fn begin_at(&mut self, client: usize) {
        self.0.begin_at(client);
    }

    async fn put(&mut self, key: Bytes, value: Bytes) -> Result<(), Refusal> {
        let answer = self.0.next().put(key, value).await;
        answer.map(drop).map_err(|error| Refusal(error.to_string()))
    }

    async fn get(&mut self, key: Bytes) -> Result<Bytes, Refusal> {
        let answer = self.0.next().get(key.clone()).await;
        let answer = answer.map_err(|error| Refusal(error.to_string()))?;
        if answer.found { Ok(answer.value) } else { Err(absent(&key)) }
    }
}
