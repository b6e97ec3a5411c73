//! The ways to reach a store, behind one trait: the loop that measures does not know which it
//! drives.

mod bare;
mod etcd;
mod native;

use bytes::Bytes;

pub(super) use bare::Bare;
pub(super) use etcd::Etcd;
pub(super) use native::Native;

/// Why an operation has no answer, as a sentence.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) String);

/// A way to reach a store, of one client of the closed loop. A clone shares its connections.
pub(super) trait Store: Clone + Send + 'static {
    /// Puts this client's first operation on another connection than those of its neighbours.
    fn begin_at(&mut self, client: usize);

    /// Writes a key.
    fn put(&mut self, key: Bytes, value: Bytes)
    -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Reads a key, linearizably.
    fn get(&mut self, key: Bytes) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
}

/// Connections that are used in turn, one operation each: what the routing of a bare client is.
#[derive(Clone, Debug)]
struct Rotation<C> {
    connections: Vec<C>,
    next: usize,
}

impl<C> Rotation<C> {
    /// Over at least one connection.
    fn new(connections: Vec<C>) -> Rotation<C> {
        assert!(!connections.is_empty(), "no connection to use");
        Rotation { connections, next: 0 }
    }

    fn begin_at(&mut self, client: usize) {
        self.next = client % self.connections.len();
    }

    fn next(&mut self) -> &mut C {
        let at = self.next;
        self.next = (at + 1) % self.connections.len();
        &mut self.connections[at]
    }
}

/// A refusal for an absent key: every key was written before the first read.
fn absent(key: &Bytes) -> Refusal {
    Refusal(format!("the key {} is absent", String::from_utf8_lossy(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_used_in_turn() {
        let mut rotation = Rotation::new(vec!['a', 'b', 'c']);
        let mut turn = |client, count| {
            rotation.begin_at(client);
            (0..count).map(|_| *rotation.next()).collect::<String>()
        };
        assert_eq!(turn(0, 4), "abca");
        assert_eq!(turn(4, 5), "bcabc");
    }
}
