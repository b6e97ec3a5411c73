//! A client without the native client: it sends one write of a session several times, to any node
//! and with little patience, and takes each node at its word about the outcome.
//!
//! The native client believes a refusal of an attempt no more than it has to, so that with it alone
//! a node's untrue word would never be noticed.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1::condition::Expect;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::v1::{
    CompareAndSetRequest, Condition, Failure, GetRequest, OpenSessionRequest, Outcome as Told,
    PutRequest, Reason, StoredValue, WriteSession,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tonic::Status;
use tonic::transport::Channel;

use crate::history::{Action, Outcome};
use crate::raw::within;

/// How long an attempt is waited for, in milliseconds: often less than an election takes.
const PATIENCE_MS: std::ops::Range<u64> = 30..400;

/// So often a write is sent at most.
const ATTEMPTS: u32 = 12;

/// How long it rests between two attempts.
const REST: Duration = Duration::from_millis(40);

/// One such client.
#[derive(Debug)]
pub(crate) struct Plain {
    nodes: Vec<KvClient<Channel>>,
    session: Option<Bytes>,
    sequence: u64,
    random: StdRng,
}

/// What an attempt without an answer says of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is not applied and never will be, whatever was sent before.
    NeverApplied,
    /// This attempt changed nothing.
    Nothing,
    /// It may have been applied.
    Maybe,
}

/// The verdict of the node; without one, anything may have happened.
fn verdict(status: &Status) -> Verdict {
    match Failure::from_details(status.details()).map(|(failure, _)| failure.outcome()) {
        Some(Told::NotApplied) => Verdict::NeverApplied,
        Some(Told::AttemptNotApplied) => Verdict::Nothing,
        Some(Told::Unknown | Told::Unspecified) | None => Verdict::Maybe,
    }
}

/// What is known of a write after one more attempt without an answer; none = it is sent again.
fn outcome_after(verdict: Verdict, maybe: &mut bool, last: bool) -> Option<Outcome> {
    match verdict {
        Verdict::NeverApplied => return Some(Outcome::NotApplied),
        Verdict::Maybe => *maybe = true,
        Verdict::Nothing => {}
    }
    let known = if *maybe { Outcome::Unknown } else { Outcome::NotApplied };
    last.then_some(known)
}

impl Plain {
    /// Over a channel to each node.
    pub(crate) fn new(nodes: Vec<Channel>, seed: u64) -> Plain {
        let nodes = nodes.into_iter().map(KvClient::new).collect();
        Plain { nodes, session: None, sequence: 0, random: StdRng::seed_from_u64(seed) }
    }

    fn any_node(&mut self) -> KvClient<Channel> {
        self.nodes.choose(&mut self.random).expect("there are nodes").clone()
    }

    fn patience(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(PATIENCE_MS))
    }

    /// Does what is asked; `value` stands for the action's value.
    pub(crate) async fn act(&mut self, key: &str, action: Action, value: Vec<u8>) -> Outcome {
        if action == Action::Get {
            return self.get(key).await;
        }
        let Some(session) = self.next_write().await else { return Outcome::NotApplied };
        let mut maybe = false;
        for attempt in 1.. {
            let mut node = self.any_node();
            let (session, patience) = (Some(session.clone()), self.patience());
            let (key, value) =
                (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(&value));
            let answered = match action {
                Action::Swap { expected, .. } => {
                    let expect = Some(Condition { expect: Some(Expect::Revision(expected)) });
                    let swap = CompareAndSetRequest {
                        key,
                        value,
                        expect,
                        session,
                        return_previous: true,
                        ..CompareAndSetRequest::default()
                    };
                    let answer = node.compare_and_set(within(patience, swap)).await;
                    answer.map(|answer| {
                        let answer = answer.into_inner();
                        (answer.applied, answer.revision, answer.previous)
                    })
                }
                _ => {
                    let put = PutRequest { key, value, session, ..PutRequest::default() };
                    let answer = node.put(within(patience, put)).await;
                    answer.map(|answer| (true, answer.into_inner().revision, None))
                }
            };
            match answered {
                Ok((applied, revision, previous)) => {
                    return seen(applied, revision, previous.as_ref());
                }
                Err(status) => {
                    self.mind(&status);
                    let last = attempt == ATTEMPTS;
                    if let Some(outcome) = outcome_after(verdict(&status), &mut maybe, last) {
                        return outcome;
                    }
                }
            }
            tokio::time::sleep(REST).await;
        }
        unreachable!("the last attempt has an outcome")
    }

    async fn get(&mut self, key: &str) -> Outcome {
        let (mut node, patience) = (self.any_node(), self.patience());
        let get =
            GetRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..GetRequest::default() };
        match node.get(within(patience, get)).await {
            Ok(answer) => {
                let got = answer.into_inner();
                let value = got.found.then(|| crate::registers::decode(&got.value));
                Outcome::Seen { revision: got.revision, value }
            }
            Err(_) => Outcome::NotApplied,
        }
    }

    /// The next write of the session; none while no session can be had.
    async fn next_write(&mut self) -> Option<WriteSession> {
        if self.session.is_none() {
            let (mut node, patience) = (self.any_node(), self.patience());
            let opened = node.open_session(within(patience, OpenSessionRequest::default())).await;
            self.session = Some(opened.ok()?.into_inner().session_id);
            self.sequence = 0;
        }
        self.sequence += 1;
        let (id, sequence) = (self.session.clone()?, self.sequence);
        // Of earlier ones nothing is asked any more.
        Some(WriteSession { id, sequence, answered_below: sequence, last: false })
    }

    /// Takes another session for the next write where this one is not taken any more.
    fn mind(&mut self, status: &Status) {
        let reason = Failure::from_details(status.details()).map(|(failure, _)| failure.reason());
        if matches!(reason, Some(Reason::SessionExpired | Reason::SessionFromFuture)) {
            self.session = None;
        }
    }
}

fn seen(applied: bool, revision: u64, previous: Option<&StoredValue>) -> Outcome {
    match applied {
        true => Outcome::Written { revision },
        false => Outcome::Seen { revision, value: previous.map(crate::registers::previous) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(outcome: Told) -> Status {
        let failure = Failure { outcome: outcome as i32, ..Failure::of(Reason::NoLeader, "no") };
        Status::with_details(tonic::Code::Unavailable, "no", failure.to_details(""))
    }

    #[test]
    fn a_node_is_taken_at_its_word() {
        let after = |statuses: &[Status]| {
            let mut maybe = false;
            let (last, earlier) = statuses.split_last().expect("an attempt");
            for status in earlier {
                if let Some(outcome) = outcome_after(verdict(status), &mut maybe, false) {
                    return outcome;
                }
            }
            outcome_after(verdict(last), &mut maybe, true).expect("the last one ends it")
        };
        let nobody = || Status::unavailable("a connection broke");
        let attempt = || refused(Told::AttemptNotApplied);
        assert_eq!(after(&[attempt(), attempt()]), Outcome::NotApplied);
        assert_eq!(after(&[nobody(), attempt()]), Outcome::Unknown);
        assert_eq!(after(&[attempt(), refused(Told::Unknown)]), Outcome::Unknown);
        // "Never will be" is said of the earlier attempt as well.
        assert_eq!(after(&[nobody(), refused(Told::NotApplied)]), Outcome::NotApplied);
    }
}
