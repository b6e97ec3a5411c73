//! Replies: conversion of the state machine's answers to the messages of the API. The service adds
//! receipt and token.

use quorate_proto::v1::{
    BatchResponse, BatchResult, CancelResponse, CancelResult, CompareAndSetResponse,
    DeleteResponse, Failure, IncrementResponse, Outcome, PutResponse, Reason, StoredValue,
};

use quorate_machine::{Done, LogTime, NotANumber, OperationResult, Previous, ReadValue, Refusal};

/// The failure of a refused command; of `several` operations it names the one.
/// The service adds shard, leader and epochs.
pub fn failure(refusal: &Refusal, several: bool) -> Failure {
    let (field, message) = match refusal {
        Refusal::NotANumber(why) if several => {
            let field = format!("operations[{}]", why.operation);
            let message = format!("{field}: {refusal}");
            (field, message)
        }
        refusal => (String::new(), refusal.to_string()),
    };
    Failure {
        outcome: refusal.outcome() as i32,
        log_time: refusal.log_time().unwrap_or_default().0,
        limit: refusal.limit().unwrap_or_default(),
        field,
        ..Failure::of(refusal.reason(), message)
    }
}

/// The failure of a write whose sequence has a remembered answer that cannot be its own: the client
/// used the sequence for another write whose content hash is the same.
fn of_another_write() -> Failure {
    let message = "this sequence of the session was used by another write";
    Failure {
        outcome: Outcome::AttemptNotApplied as i32,
        ..Failure::of(Reason::SequenceReused, message)
    }
}

/// The answer to a write of this number of operations.
///
/// # Errors
/// SEQUENCE_REUSED when it has another number of results: it is the answer to another write.
pub fn of_write(done: Done, operations: usize) -> Result<Done, Failure> {
    if done.results.len() == operations { Ok(done) } else { Err(of_another_write()) }
}

/// The one result of a write of one operation.
fn single(done: Done) -> Result<(bool, bool, OperationResult), Failure> {
    let Done { applied, replayed, results, .. } = done;
    let [result] = <[OperationResult; 1]>::try_from(results).map_err(|_| of_another_write())?;
    Ok((applied, replayed, result))
}

fn stored_value(previous: Previous) -> StoredValue {
    let Previous { value, revision, create_revision, log_time } = previous;
    let value_omitted = value.is_none();
    let value = value.unwrap_or_default();
    StoredValue { value, value_omitted, revision, create_revision, log_time: log_time.0 }
}

/// The answer to a write of one operation: what all of these answers tell, and one more field of
/// the result where it is named.
macro_rules! single_answer {
    ($done:ident => $response:ident { $($more:ident)? }) => {{
        let (applied, replayed, result) = single($done)?;
        Ok($response {
            applied,
            found: result.found,
            revision: result.revision,
            create_revision: result.create_revision,
            log_time: result.log_time.0,
            previous: result.previous.map(stored_value),
            $($more: result.$more.ok_or_else(of_another_write)?,)?
            replayed,
            receipt: None,
            token: None,
        })
    }};
}

/// The answer to a Put.
///
/// # Errors
/// SEQUENCE_REUSED when it is not the answer to one.
pub fn put(done: Done) -> Result<PutResponse, Failure> {
    single_answer!(done => PutResponse {})
}

/// The answer to a Delete.
///
/// # Errors
/// SEQUENCE_REUSED when it is not the answer to one.
pub fn delete(done: Done) -> Result<DeleteResponse, Failure> {
    single_answer!(done => DeleteResponse {})
}

/// The answer to a CompareAndSet.
///
/// # Errors
/// SEQUENCE_REUSED when it is not the answer to one.
pub fn compare_and_set(done: Done) -> Result<CompareAndSetResponse, Failure> {
    single_answer!(done => CompareAndSetResponse {})
}

/// The answer to an Increment.
///
/// # Errors
/// SEQUENCE_REUSED when it is not the answer to one.
pub fn increment(done: Done) -> Result<IncrementResponse, Failure> {
    single_answer!(done => IncrementResponse { number })
}

/// The answer to a Batch.
///
/// # Errors
/// None: a Batch may have any operations.
pub fn batch(done: Done) -> Result<BatchResponse, Failure> {
    let Done { applied, replayed, index, log_time, results } = done;
    let (revision, log_time) = if applied { (index, log_time) } else { (0, LogTime(0)) };
    let results = results.into_iter().map(batch_result).collect();
    Ok(BatchResponse {
        applied,
        results,
        revision,
        log_time: log_time.0,
        replayed,
        receipt: None,
        token: None,
    })
}

fn batch_result(result: OperationResult) -> BatchResult {
    let (value, value_omitted) = match result.read {
        ReadValue::Value(value) => (value, false),
        ReadValue::Omitted => (Default::default(), true),
        ReadValue::None => (Default::default(), false),
    };
    BatchResult {
        condition_held: result.condition_held,
        found: result.found,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time.0,
        previous: result.previous.map(stored_value),
        number: result.number.unwrap_or_default(),
        value,
        value_omitted,
    }
}

/// The answer to a Cancel that found the sequence undecided, now or when it was cancelled before.
pub fn cancel_barred() -> CancelResponse {
    CancelResponse { result: CancelResult::Barred as i32, ..CancelResponse::default() }
}

/// The answer to a Cancel that found the write refused for good.
pub fn cancel_refused(why: NotANumber) -> CancelResponse {
    CancelResponse {
        result: CancelResult::Answered as i32,
        failure: Some(failure(&Refusal::NotANumber(why), false)),
        ..CancelResponse::default()
    }
}

/// The answer to a Cancel that found the write decided. Of a Batch of several operations it says
/// whether and at which revision it was applied; its results are had by sending the Batch again.
pub fn cancel_answered(done: Done) -> CancelResponse {
    let Done { applied, index, log_time, mut results, .. } = done;
    let answered = CancelResponse {
        result: CancelResult::Answered as i32,
        applied,
        log_time: log_time.0,
        ..CancelResponse::default()
    };
    match (results.len(), results.pop()) {
        (1, Some(result)) => CancelResponse {
            revision: result.revision,
            found: result.found,
            previous: result.previous.map(stored_value),
            number: result.number.unwrap_or_default(),
            create_revision: result.create_revision,
            ..answered
        },
        _ => CancelResponse { revision: if applied { index } else { 0 }, ..answered },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_machine::Full;

    use super::*;

    fn result() -> OperationResult {
        OperationResult {
            condition_held: true,
            found: true,
            revision: 9,
            create_revision: 3,
            log_time: LogTime(70),
            previous: Some(Previous {
                value: Some(Bytes::from_static(b"old")),
                revision: 8,
                create_revision: 3,
                log_time: LogTime(60),
            }),
            number: Some(-5),
            read: ReadValue::None,
        }
    }

    fn done(applied: bool, results: Vec<OperationResult>) -> Done {
        Done { applied, replayed: true, index: 9, log_time: LogTime(70), results }
    }

    fn old() -> StoredValue {
        StoredValue {
            value: Bytes::from_static(b"old"),
            value_omitted: false,
            revision: 8,
            create_revision: 3,
            log_time: 60,
        }
    }

    #[test]
    fn single_writes_carry_all_fields() {
        let put = put(done(true, vec![result()])).expect("an answer");
        assert_eq!(
            put,
            PutResponse {
                applied: true,
                found: true,
                revision: 9,
                create_revision: 3,
                log_time: 70,
                previous: Some(old()),
                replayed: true,
                receipt: None,
                token: None,
            }
        );
        let delete = delete(done(true, vec![result()])).expect("an answer");
        assert_eq!((delete.revision, delete.create_revision, delete.log_time), (9, 3, 70));
        assert_eq!((delete.previous, delete.replayed), (Some(old()), true));
        let cas = compare_and_set(done(false, vec![result()])).expect("an answer");
        assert_eq!(
            (cas.applied, cas.found, cas.revision, cas.previous),
            (false, true, 9, Some(old()))
        );
        assert_eq!((cas.create_revision, cas.log_time, cas.replayed), (3, 70, true));
        let increment = increment(done(true, vec![result()])).expect("an answer");
        assert_eq!(
            (increment.number, increment.revision, increment.previous),
            (-5, 9, Some(old()))
        );
    }

    #[test]
    fn an_answer_to_another_write_is_never_given() {
        let none = OperationResult { number: None, ..result() };
        let refused = [
            of_write(done(true, vec![result(), result()]), 1).map(drop),
            of_write(done(true, vec![result()]), 2).map(drop),
            of_write(done(true, vec![]), 1).map(drop),
            put(done(true, vec![result(), result()])).map(drop),
            delete(done(true, vec![])).map(drop),
            compare_and_set(done(true, vec![])).map(drop),
            increment(done(true, vec![none])).map(drop),
        ];
        for refused in refused {
            let failure = refused.expect_err("it is the answer to another write");
            assert_eq!(failure.reason(), Reason::SequenceReused);
            assert_eq!(failure.outcome(), Outcome::AttemptNotApplied);
        }
        let one = done(true, vec![result()]);
        assert_eq!(of_write(one.clone(), 1).expect("its own"), one);
    }

    #[test]
    fn a_batch_that_was_not_applied_has_no_revision() {
        let get = OperationResult { read: ReadValue::Value(Bytes::from_static(b"v")), ..result() };
        let omitted =
            OperationResult { read: ReadValue::Omitted, condition_held: false, ..result() };
        let applied = batch(done(true, vec![get.clone(), omitted.clone()])).expect("an answer");
        assert_eq!((applied.revision, applied.log_time), (9, 70));
        assert_eq!(
            (&applied.results[0].value[..], applied.results[0].value_omitted),
            (&b"v"[..], false)
        );
        assert_eq!(
            (&applied.results[1].value[..], applied.results[1].value_omitted),
            (&b""[..], true)
        );
        assert!(applied.results[0].condition_held && !applied.results[1].condition_held);
        let failed = batch(done(false, vec![get])).expect("an answer");
        assert_eq!((failed.applied, failed.revision, failed.log_time), (false, 0, 0));
        assert_eq!(failed.results[0].revision, 9);
    }

    #[test]
    fn a_value_left_out_is_said_to_be() {
        let previous =
            Some(Previous { value: None, revision: 8, create_revision: 3, log_time: LogTime(60) });
        let put = put(done(true, vec![OperationResult { previous, ..result() }]));
        let put = put.expect("an answer");
        assert_eq!(
            put.previous,
            Some(StoredValue { value: Bytes::new(), value_omitted: true, ..old() })
        );
    }

    #[test]
    fn a_cancel_is_barred_or_tells_the_answer() {
        assert_eq!(cancel_barred().result(), CancelResult::Barred);
        let single = cancel_answered(done(true, vec![result()]));
        assert_eq!(single.result(), CancelResult::Answered);
        assert_eq!((single.applied, single.found, single.revision), (true, true, 9));
        assert_eq!((single.number, single.create_revision, single.previous), (-5, 3, Some(old())));
        let batch = cancel_answered(done(true, vec![result(), result()]));
        assert_eq!((batch.applied, batch.found, batch.revision), (true, false, 9));
        assert_eq!(cancel_answered(done(false, vec![result(), result()])).revision, 0);
    }

    #[test]
    fn a_cancelled_write_that_was_refused_tells_why() {
        let answer = cancel_refused(NotANumber { operation: 0, overflow: false });
        assert_eq!((answer.result(), answer.applied), (CancelResult::Answered, false));
        assert_eq!(answer.failure.expect("why").reason(), Reason::NotANumber);
    }

    #[test]
    fn a_refusal_becomes_the_row_of_the_error_table() {
        let log_time = LogTime(5);
        let rows = [
            (
                Refusal::WrongShard { detail: "x".to_owned() },
                Reason::WrongShard,
                Outcome::NotApplied,
            ),
            (
                Refusal::SessionExpired { log_time },
                Reason::SessionExpired,
                Outcome::AttemptNotApplied,
            ),
            (
                Refusal::SessionFromFuture { log_time },
                Reason::SessionFromFuture,
                Outcome::NotApplied,
            ),
            (
                Refusal::SequencePast { sequence: 1, answered_below: 2 },
                Reason::SequencePast,
                Outcome::AttemptNotApplied,
            ),
            (
                Refusal::SessionEnded { sequence: 1 },
                Reason::SequencePast,
                Outcome::AttemptNotApplied,
            ),
            (Refusal::SequenceBarred { sequence: 1 }, Reason::SequencePast, Outcome::NotApplied),
            (
                Refusal::SequenceReused { sequence: 1 },
                Reason::SequenceReused,
                Outcome::AttemptNotApplied,
            ),
            (
                Refusal::SessionsFull(Full::Session { sequences: 5 }),
                Reason::SessionsFull,
                Outcome::NotApplied,
            ),
            (
                Refusal::SessionsFull(Full::Table { bytes: 5 }),
                Reason::SessionsFull,
                Outcome::NotApplied,
            ),
            (
                Refusal::SessionsFull(Full::Share { own: 6, free: 5 }),
                Reason::SessionsFull,
                Outcome::NotApplied,
            ),
            (
                Refusal::NotANumber(NotANumber { operation: 1, overflow: true }),
                Reason::NotANumber,
                Outcome::NotApplied,
            ),
        ];
        for (refusal, reason, outcome) in rows {
            let failure = failure(&refusal, false);
            assert_eq!((failure.reason(), failure.outcome()), (reason, outcome), "{refusal}");
            assert_eq!(failure.code, reason.code() as i32);
            assert_eq!(failure.message, refusal.to_string());
            let expected = if refusal.log_time().is_some() { 5 } else { 0 };
            assert_eq!(failure.log_time, expected, "{refusal}");
            let expected = if failure.reason() == Reason::SessionsFull { 5 } else { 0 };
            assert_eq!(failure.limit, expected, "{refusal}");
        }
        let second = Refusal::NotANumber(NotANumber { operation: 1, overflow: false });
        let failure = failure(&second, true);
        assert_eq!(failure.field, "operations[1]");
        assert_eq!(
            failure.message,
            "operations[1]: the value is not a decimal signed 64-bit number"
        );
    }
}
