//! A naive twin of the state machine: it remembers everything forever and looks rules up in plain
//! lists.

use std::collections::BTreeMap;

use quorate_proto::{
    content::content_digest,
    raft::v1::{Command, CommandOperation, command::Action, command_operation::Kind},
    v1::condition::Expect,
};

use super::build::{OWNERSHIP, START_MS};
use crate::{
    Done, Full, LogTime, NotANumber, OperationResult, Previous, ReadValue, Refusal, SessionId,
    SessionLimits, WriteAnswer, execute::parse_number,
};

#[derive(Clone, Debug)]
pub struct Cell {
    pub value: Vec<u8>,
    pub create_revision: u64,
    pub revision: u64,
    pub log_time: u64,
}

#[derive(Debug)]
struct Said {
    session: SessionId,
    sequence: u64,
    /// Of whichever level the command was: to compare by the contents is the rule of both.
    hash: [u8; 16],
    answer: WriteAnswer,
    /// Forgotten because the client reported it as answered.
    gone: bool,
}

#[derive(Debug)]
pub struct Model {
    pub cells: BTreeMap<Vec<u8>, Cell>,
    limits: SessionLimits,
    said: Vec<Said>,
    floors: BTreeMap<SessionId, u64>,
    ended: Vec<SessionId>,
    pub index: u64,
    pub now_ms: u64,
}

impl Model {
    pub fn new(limits: SessionLimits) -> Self {
        Self {
            cells: BTreeMap::new(),
            limits,
            said: Vec::new(),
            floors: BTreeMap::new(),
            ended: Vec::new(),
            index: 0,
            now_ms: START_MS,
        }
    }

    /// The answer to a command, with the sentences of WRONG_SHARD left empty.
    pub fn apply(&mut self, command: &Command) -> WriteAnswer {
        let wrong_shard = WriteAnswer::Refused(Refusal::WrongShard { detail: String::new() });
        if command.shard != OWNERSHIP.shard {
            return wrong_shard;
        }
        let right_epoch = command.shard_epoch == OWNERSHIP.shard_epoch;
        let Some(session) = &command.session else {
            return match &command.action {
                Some(Action::Cancel(_)) => WriteAnswer::Refused(Refusal::Malformed {
                    detail: "a Cancel names no session".to_owned(),
                }),
                _ if !right_epoch => wrong_shard,
                Some(Action::Write(write)) => self.write(&write.operations),
                other => panic!("{other:?}"),
            };
        };
        let id = SessionId::from_slice(&session.id).unwrap();
        let floor = session.answered_below.min(session.sequence);
        let hash = match &command.action {
            Some(Action::Write(write)) => Some(content_digest(&write.operations, None)),
            _ => None,
        };
        match self.lookup(id, session.sequence, hash) {
            // A decision, remembered like any other answer.
            Some(answer @ WriteAnswer::Refused(Refusal::NotANumber(_))) => {
                self.forget(id, floor);
                answer
            }
            Some(WriteAnswer::Refused(_)) if !right_epoch => wrong_shard,
            Some(refused @ WriteAnswer::Refused(_)) => refused,
            Some(answer) => {
                self.forget(id, floor);
                answer
            }
            None if !right_epoch => wrong_shard,
            None => {
                let kept =
                    |said: &&Said| said.session == id && !said.gone && said.sequence >= floor;
                if self.said.iter().filter(kept).count() >= self.limits.unanswered_max {
                    let full = Full::Session { sequences: self.limits.unanswered_max };
                    return WriteAnswer::Refused(Refusal::SessionsFull(full));
                }
                let answer = match &command.action {
                    Some(Action::Write(write)) => self.write(&write.operations),
                    _ => WriteAnswer::Barred,
                };
                let remembered = remembered(answer.clone());
                if session.last {
                    self.said
                        .iter_mut()
                        .filter(|said| said.session == id)
                        .for_each(|said| said.gone = true);
                    self.ended.push(id);
                }
                self.said.push(Said {
                    session: id,
                    sequence: session.sequence,
                    hash: hash.unwrap_or_default(),
                    answer: remembered,
                    gone: false,
                });
                self.forget(id, if session.last { session.sequence } else { floor });
                answer
            }
        }
    }

    /// The answer to a session's sequence that needs no new decision.
    fn lookup(&self, id: SessionId, sequence: u64, hash: Option<[u8; 16]>) -> Option<WriteAnswer> {
        let log_time = LogTime::from_millis(self.now_ms);
        let born_ms = id.birth().millis();
        let refused = |refusal| Some(WriteAnswer::Refused(refusal));
        if born_ms > self.now_ms + self.limits.future_ms {
            return refused(Refusal::SessionFromFuture { log_time });
        }
        if born_ms + self.limits.ttl_ms <= self.now_ms {
            return refused(Refusal::SessionExpired { log_time });
        }
        if sequence == 0 {
            return refused(Refusal::SequencePast { sequence, answered_below: 1 });
        }
        let same = |said: &&Said| (said.session, said.sequence, said.gone) == (id, sequence, false);
        if let Some(said) = self.said.iter().find(same) {
            return match hash {
                Some(_) if said.answer == WriteAnswer::Barred => {
                    refused(Refusal::SequenceBarred { sequence })
                }
                Some(hash) if hash != said.hash => refused(Refusal::SequenceReused { sequence }),
                _ => Some(said.answer.clone()),
            };
        }
        if self.ended.contains(&id) {
            return refused(Refusal::SessionEnded { sequence });
        }
        let floor = self.floors.get(&id).copied().unwrap_or(0);
        if sequence < floor {
            return refused(Refusal::SequencePast { sequence, answered_below: floor });
        }
        None
    }

    fn forget(&mut self, id: SessionId, below: u64) {
        let floor = self.floors.entry(id).or_default();
        *floor = below.max(*floor);
        for said in &mut self.said {
            said.gone |= said.session == id && said.sequence < *floor;
        }
    }

    fn write(&mut self, operations: &[CommandOperation]) -> WriteAnswer {
        let before = self.cells.clone();
        let holds = |operation: &CommandOperation| {
            let cell = before.get(&operation.key[..]);
            match operation.condition.as_ref().map(|condition| condition.expect.as_ref().unwrap()) {
                None => true,
                Some(Expect::Absent(_)) => cell.is_none(),
                Some(Expect::Revision(revision)) => {
                    cell.map_or(0, |cell| cell.revision) == *revision
                }
                Some(Expect::Value(value)) => cell.is_some_and(|cell| cell.value == *value),
            }
        };
        let applied = operations.iter().all(holds);
        let log_time = LogTime::from_millis(self.now_ms);
        let mut results = Vec::new();
        for (at, operation) in operations.iter().enumerate() {
            let cell = before.get(&operation.key[..]);
            let mut result = OperationResult {
                condition_held: holds(operation),
                found: cell.is_some(),
                revision: cell.map_or(0, |cell| cell.revision),
                create_revision: cell.map_or(0, |cell| cell.create_revision),
                log_time: LogTime(cell.map_or(0, |cell| cell.log_time)),
                ..OperationResult::default()
            };
            let is_get = matches!(operation.kind, Some(Kind::Get(_)));
            if let Some(cell) = cell.filter(|_| operation.return_previous && !is_get) {
                result.previous = Some(Previous {
                    value: Some(cell.value.clone().into()),
                    revision: cell.revision,
                    create_revision: cell.create_revision,
                    log_time: LogTime(cell.log_time),
                });
            }
            if is_get && cell.is_some() {
                result.read = ReadValue::Omitted;
            }
            if applied && let Err(overflow) = self.carry_out(operation, cell, &mut result) {
                self.cells = before;
                return WriteAnswer::Refused(Refusal::NotANumber(NotANumber {
                    operation: at,
                    overflow,
                }));
            }
            results.push(result);
        }
        WriteAnswer::Done(Done { applied, replayed: false, index: self.index, log_time, results })
    }

    fn carry_out(
        &mut self,
        operation: &CommandOperation,
        cell: Option<&Cell>,
        result: &mut OperationResult,
    ) -> Result<(), bool> {
        let log_time = LogTime::from_millis(self.now_ms);
        let value = match operation.kind.as_ref().unwrap() {
            Kind::Put(value) => value.to_vec(),
            Kind::Increment(delta) => {
                let number = cell.map_or(Some(0), |cell| parse_number(&cell.value)).ok_or(false)?;
                let sum = number.checked_add(*delta).ok_or(true)?;
                result.number = Some(sum);
                sum.to_string().into_bytes()
            }
            Kind::Delete(_) => {
                result.create_revision = 0;
                if self.cells.remove(&operation.key[..]).is_some() {
                    (result.revision, result.log_time) = (self.index, log_time);
                }
                return Ok(());
            }
            Kind::Get(_) => {
                if let Some(cell) = cell {
                    result.read = ReadValue::Value(cell.value.clone().into());
                }
                return Ok(());
            }
            Kind::Check(_) => return Ok(()),
        };
        let create_revision = cell.map_or(self.index, |cell| cell.create_revision);
        let new = Cell { value, create_revision, revision: self.index, log_time: log_time.0 };
        self.cells.insert(operation.key.to_vec(), new);
        (result.revision, result.create_revision) = (self.index, create_revision);
        result.log_time = log_time;
        Ok(())
    }
}

/// The remembered form of an answer.
fn remembered(answer: WriteAnswer) -> WriteAnswer {
    let WriteAnswer::Done(mut done) = answer else { return answer };
    done.replayed = true;
    let mut room = 1_024;
    for result in &mut done.results {
        if result.read != ReadValue::None {
            result.read = ReadValue::Omitted;
        }
        if let Some(previous) = &mut result.previous {
            match &previous.value {
                Some(value) if value.len() <= room => room -= value.len(),
                _ => previous.value = None,
            }
        }
    }
    WriteAnswer::Done(done)
}
