//! From what apply answered to what the client is told. Receipt and token are the service's to fill in.

use quorate_proto::v1::{
    BatchResponse, BatchResult, CancelResponse, CancelResult, CompareAndSetResponse,
    DeleteResponse, Failure, IncrementResponse, PutResponse, StoredValue,
};

use crate::apply::{Done, LogTime, OperationResult, Previous, ReadValue, Refusal};

/// The failure that tells a client of a refusal; the service adds shard, leader and epochs.
pub fn failure(refusal: &Refusal) -> Failure {
    Failure {
        outcome: refusal.outcome() as i32,
        log_time: refusal.log_time().unwrap_or_default().0,
        ..Failure::of(refusal.reason(), refusal.to_string())
    }
}

/// The one result of a write of one operation.
///
/// # Panics
/// When the answer has another number of results than one: it would be the answer to another command.
fn single(done: Done) -> (bool, bool, OperationResult) {
    let Done { applied, replayed, results, .. } = done;
    let [result] = <[OperationResult; 1]>::try_from(results)
        .unwrap_or_else(|results| panic!("a write of one operation has {} results", results.len()));
    (applied, replayed, result)
}

fn stored_value(previous: Previous) -> StoredValue {
    let Previous { value, revision, create_revision, log_time } = previous;
    let value_omitted = value.is_none();
    let value = value.unwrap_or_default();
    StoredValue { value, value_omitted, revision, create_revision, log_time: log_time.0 }
}

/// The answer to a Put; panics when `done` has not exactly one result.
pub fn put(done: Done) -> PutResponse {
    let (applied, replayed, result) = single(done);
    PutResponse {
        applied,
        found: result.found,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time.0,
        previous: result.previous.map(stored_value),
        replayed,
        receipt: None,
        token: None,
    }
}

/// The answer to a Delete; panics when `done` has not exactly one result.
pub fn delete(done: Done) -> DeleteResponse {
    let (applied, replayed, result) = single(done);
    DeleteResponse {
        applied,
        found: result.found,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time.0,
        previous: result.previous.map(stored_value),
        replayed,
        receipt: None,
        token: None,
    }
}

/// The answer to a CompareAndSet; panics when `done` has not exactly one result.
pub fn compare_and_set(done: Done) -> CompareAndSetResponse {
    let (applied, replayed, result) = single(done);
    CompareAndSetResponse {
        applied,
        found: result.found,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time.0,
        previous: result.previous.map(stored_value),
        replayed,
        receipt: None,
        token: None,
    }
}

/// The answer to an Increment; panics when `done` has not exactly one result.
pub fn increment(done: Done) -> IncrementResponse {
    let (applied, replayed, result) = single(done);
    IncrementResponse {
        applied,
        found: result.found,
        revision: result.revision,
        create_revision: result.create_revision,
        log_time: result.log_time.0,
        previous: result.previous.map(stored_value),
        number: result.number.unwrap_or_default(),
        replayed,
        receipt: None,
        token: None,
    }
}

/// The answer to a Batch.
pub fn batch(done: Done) -> BatchResponse {
    let Done { applied, replayed, index, log_time, results } = done;
    let (revision, log_time) = if applied { (index, log_time) } else { (0, LogTime(0)) };
    let results = results.into_iter().map(batch_result).collect();
    BatchResponse {
        applied,
        results,
        revision,
        log_time: log_time.0,
        replayed,
        receipt: None,
        token: None,
    }
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

/// The answer to a Cancel that found the write decided. Of a Batch of several operations it says whether
/// and at which revision it was applied; its results are had by sending the Batch again.
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
