//! Concurrent clients on registers, each of whose operations is recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_client::api::StoredValue;
use quorate_client::{Client, Error};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::history::{Action, History, Operation, Outcome};
use crate::plain::Plain;

/// Keys that all clients read, write and swap.
const REGISTERS: u64 = 48;

/// Keys that are filled with large values when the load is heavy.
const LARGE: u64 = 1024;

/// The bytes of a large value: 128 of them are half of the least budget of uncheckpointed state.
const LARGE_BYTES: usize = 32 << 10;

/// How long a client thinks between two operations while the load is light.
const THINK: Duration = Duration::from_millis(10);

/// Clients under way.
#[derive(Debug)]
pub struct Registers {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Operation>>>,
    plain: Vec<JoinHandle<Vec<Operation>>>,
    /// One more, for the reads at the end.
    last: Client,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    heavy: AtomicBool,
    answered: AtomicU64,
    /// Numbers the large writes.
    large: AtomicU64,
}

impl Registers {
    /// Starts one task for each client, and one for each of `plain`: the channels to all nodes,
    /// over which it works without the native client. The seed decides what they do, not when.
    #[must_use]
    pub fn start(clients: Vec<Client>, plain: Vec<Vec<Channel>>, seed: u64) -> Registers {
        let shared = Arc::new(Shared::default());
        let last = clients.first().expect("there is a client").clone();
        let mut number = 0;
        let mut begin = |sender: Sender| {
            let recorder = Recorder {
                sender,
                number,
                values: 0,
                random: StdRng::seed_from_u64(seed ^ number << 32),
                seen: vec![0; REGISTERS as usize],
                shared: shared.clone(),
                operations: Vec::new(),
            };
            number += 1;
            tokio::spawn(recorder.run())
        };
        let clients = clients.into_iter().map(|client| begin(Sender::Native(client))).collect();
        let plain = (seed..)
            .zip(plain)
            .map(|(seed, nodes)| begin(Sender::Plain(Box::new(Plain::new(nodes, seed)))));
        let plain = plain.collect();
        Registers { clients, plain, shared, last }
    }

    /// Whether large values are written as fast as they go, besides.
    pub fn set_heavy(&self, heavy: bool) {
        self.shared.heavy.store(heavy, Ordering::SeqCst);
    }

    /// Operations answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Ends the clients; each finishes the operation it is at. Returns what all have seen.
    pub async fn stop(self) -> Recorded {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut history = History::default();
        for client in self.clients {
            history.operations.extend(client.await.expect("a client does not panic"));
        }
        let mut plain = History::default();
        for client in self.plain {
            plain.operations.extend(client.await.expect("a client does not panic"));
        }
        history.operations.extend(plain.operations.iter().cloned());
        let large = self.shared.large.load(Ordering::SeqCst).min(LARGE);
        Recorded { history, plain, large, client: self.last }
    }
}

/// What the clients have seen, to which reads can be added.
#[derive(Debug)]
pub struct Recorded {
    /// Everything so far.
    pub history: History,
    /// The part of those that worked without the native client: some of it has no answer.
    pub plain: History,
    large: u64,
    client: Client,
}

impl Recorded {
    /// Every key that was ever written.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let registers = (0..REGISTERS).map(register);
        registers.chain((0..self.large).map(large)).collect()
    }

    /// Reads every key, linearizably, as part of the history.
    ///
    /// # Panics
    /// If a key cannot be read: by now the cluster is whole.
    pub async fn read_all(&mut self) {
        let begun = Instant::now();
        let keys = self.keys();
        for some in keys.chunks(64) {
            let answers = self.client.multi_get(some.iter().cloned()).await;
            for (key, answer) in some.iter().zip(answers) {
                let got = answer.unwrap_or_else(|error| panic!("{key}: {error}"));
                let value = got.found.then(|| decode(&got.value));
                self.history.operations.push(Operation {
                    key: key.clone(),
                    begun,
                    ended: Instant::now(),
                    action: Action::Get,
                    outcome: Outcome::Seen { revision: got.revision, value },
                });
            }
        }
    }
}

fn register(number: u64) -> String {
    format!("register-{number}")
}

fn large(number: u64) -> String {
    format!("large-{number}")
}

/// How a client reaches the nodes.
enum Sender {
    Native(Client),
    Plain(Box<Plain>),
}

/// One client at its work.
struct Recorder {
    sender: Sender,
    number: u64,
    /// Values written so far.
    values: u64,
    random: StdRng,
    /// The revision at which this client last saw each register.
    seen: Vec<u64>,
    shared: Arc<Shared>,
    operations: Vec<Operation>,
}

impl Recorder {
    async fn run(mut self) -> Vec<Operation> {
        while !self.shared.stop.load(Ordering::SeqCst) {
            // Half of the clients stay at the registers, so that these are in use at every kill.
            let fills = self.number % 2 == 1 && matches!(self.sender, Sender::Native(_));
            if fills && self.shared.heavy.load(Ordering::SeqCst) {
                let key = large(self.shared.large.fetch_add(1, Ordering::SeqCst) % LARGE);
                let action = Action::Put { value: self.next_value() };
                self.act(key, action, LARGE_BYTES).await;
            } else {
                let register_number = self.random.random_range(0..REGISTERS);
                let action = match self.random.random_range(0..4) {
                    0 | 1 => Action::Put { value: self.next_value() },
                    2 => {
                        let expected = self.seen[register_number as usize];
                        Action::Swap { expected, value: self.next_value() }
                    }
                    _ => Action::Get,
                };
                let bytes = self.random.random_range(20..200);
                let outcome = self.act(register(register_number), action, bytes).await;
                if let Outcome::Written { revision } | Outcome::Seen { revision, .. } = outcome {
                    self.seen[register_number as usize] = revision;
                }
                tokio::time::sleep(THINK).await;
            }
        }
        self.operations
    }

    fn next_value(&mut self) -> u64 {
        self.values += 1;
        self.number << 32 | self.values
    }

    async fn act(&mut self, key: String, action: Action, bytes: usize) -> Outcome {
        let begun = Instant::now();
        let value = action.value().map_or_else(Vec::new, |value| encode(value, bytes));
        let outcome = match &mut self.sender {
            Sender::Native(client) => native(client, &key, action, value).await,
            Sender::Plain(plain) => plain.act(&key, action, value).await,
        };
        let ended = Instant::now();
        self.operations.push(Operation { key, begun, ended, action, outcome });
        if !matches!(outcome, Outcome::NotApplied | Outcome::Unknown) {
            self.shared.answered.fetch_add(1, Ordering::SeqCst);
        }
        outcome
    }
}

/// Does what is asked with the native client; `value` stands for the action's value.
async fn native(client: &Client, key: &str, action: Action, value: Vec<u8>) -> Outcome {
    let key = key.to_owned();
    let outcome = match action {
        Action::Put { .. } => client.put(key.clone(), value).await.map(|put| {
            assert!(put.applied, "{key}: a put without a condition is applied");
            Outcome::Written { revision: put.revision }
        }),
        Action::Swap { expected, .. } => {
            let swap = client.compare_and_set(key.clone(), value);
            let swap = swap.if_revision(expected).return_previous();
            swap.await.map(|swapped| match swapped.applied {
                true => Outcome::Written { revision: swapped.revision },
                false => Outcome::Seen {
                    revision: swapped.revision,
                    value: swapped.previous.as_ref().map(previous),
                },
            })
        }
        Action::Get => client.get(key.clone()).await.map(|got| Outcome::Seen {
            revision: got.revision,
            value: got.found.then(|| decode(&got.value)),
        }),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{key}: {action:?}: {error}");
        match error {
            Error::Unknown { .. } => Outcome::Unknown,
            Error::NotApplied(_) | Error::Refused(_) | Error::Invalid(_) => Outcome::NotApplied,
        }
    })
}

pub(crate) fn previous(stored: &StoredValue) -> u64 {
    assert!(!stored.value_omitted, "values of registers are short");
    decode(&stored.value)
}

/// A value as bytes: its number and its length, then bytes that follow from them.
fn encode(value: u64, bytes: usize) -> Vec<u8> {
    let mut out = format!("{value}.{bytes}.").into_bytes();
    let begin = out.len();
    out.resize(bytes.max(begin), 0);
    for (at, byte) in out[begin..].iter_mut().enumerate() {
        *byte = (value as usize).wrapping_mul(31).wrapping_add(at) as u8;
    }
    out
}

/// The number of a value.
///
/// # Panics
/// If the bytes are not those of a value, whole and unchanged.
pub(crate) fn decode(stored: &[u8]) -> u64 {
    let mut parts = stored.split(|byte| *byte == b'.');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let (Some(value), Some(bytes)) = (number(), number()) else {
        panic!("not a value of these tests: {stored:?}");
    };
    assert!(encode(value, bytes as usize) == stored, "the value {value} is not whole");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_they_were() {
        for (value, bytes) in [(1, 0), (7, 20), (3 << 32 | 9, LARGE_BYTES)] {
            assert_eq!(decode(&encode(value, bytes)), value);
        }
        let mut broken = encode(7, 40);
        broken[30] ^= 1;
        assert!(std::panic::catch_unwind(|| decode(&broken)).is_err());
        assert!(std::panic::catch_unwind(|| decode(&encode(7, 40)[..39])).is_err());
    }
}
