//! Operations on keys: carried out alike whether each is a call of its own or one of many in a
//! Pipeline.

use std::sync::Arc;

use quorate_machine::WriteAnswer;
use quorate_proto::limits::BATCH_ANSWER_BYTES_MAX;
use quorate_proto::v1::batch_operation::Action;
use quorate_proto::v1::{
    BatchRequest, BatchResponse, CompareAndSetRequest, CompareAndSetResponse, DeleteRequest,
    DeleteResponse, Failure, GetRequest, GetResponse, IncrementRequest, IncrementResponse,
    PutRequest, PutResponse, ReadLevel, ReadOptions, Reason,
};

use super::context::Context;
use super::outcome::HasOutcome;
use super::read;
use super::write::{Written, write};
use crate::draft::CommandDraft;
use crate::metrics::Method;
use crate::reply;
use crate::shared::{Shared, retry_after};

/// The kind of a call, known before its request is read.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The method.
    pub method: Method,
    /// The read level; `None` for a call that reads nothing.
    pub level: Option<ReadLevel>,
}

impl Kind {
    /// A call of this method that reads nothing.
    #[must_use]
    pub fn of(method: Method) -> Self {
        Self { method, level: None }
    }

    /// A call that reads at a level.
    #[must_use]
    pub fn reads(method: Method, level: ReadLevel) -> Self {
        Self { method, level: Some(level) }
    }
}

/// A request that Pipeline carries too.
pub trait Operation: HasOutcome + Send + Sized + 'static {
    /// The answer.
    type Response: Send + 'static;

    /// What kind of a call it is.
    fn kind(&self) -> Kind;

    /// The most bytes of values that its answer may have, where a value has up to
    /// `value_bytes_max`. A read takes room for its value itself, as late as it can.
    fn answer_bytes_max(&self, value_bytes_max: usize) -> usize;

    /// Answers it, here or by another node.
    ///
    /// # Errors
    /// The failure, which says of a write what is known of its outcome.
    fn carry_out(
        self,
        shared: Arc<Shared>,
        context: Context,
    ) -> impl Future<Output = Result<Self::Response, Failure>> + Send;
}

impl Operation for GetRequest {
    type Response = GetResponse;

    fn kind(&self) -> Kind {
        Kind::reads(Method::Get, level(self.read.as_ref()))
    }

    fn answer_bytes_max(&self, _value_bytes_max: usize) -> usize {
        0
    }

    async fn carry_out(
        self,
        shared: Arc<Shared>,
        context: Context,
    ) -> Result<GetResponse, Failure> {
        read::get(&shared, &context, self).await
    }
}

/// The operations that write and answer with their result.
macro_rules! writes {
    ($(
        $request:ty => $response:ty, $method:ident, $name:ident, delete: $is_delete:literal,
        |$it:ident, $value_bytes_max:ident| $answer_bytes_max:expr;
    )*) => {$(
        impl Operation for $request {
            type Response = $response;

            fn kind(&self) -> Kind {
                Kind::of(Method::$method)
            }

            fn answer_bytes_max(&self, $value_bytes_max: usize) -> usize {
                let $it = self;
                $answer_bytes_max
            }

            async fn carry_out(
                self,
                shared: Arc<Shared>,
                context: Context,
            ) -> Result<$response, Failure> {
                let draft = CommandDraft::$name(&self, &shared.rules)
                    .map_err(|invalid| room_later(invalid.failure()))?;
                let hint = self.route.clone();
                let operations = draft.operations().len();
                match write(&shared, &context, &self, hint.as_ref(), draft, $is_delete).await? {
                    Written::Elsewhere(answer) => Ok(answer),
                    Written::Here(receipt, WriteAnswer::Done(done)) => {
                        let mut answer = reply::$name(reply::of_write(done, operations)?)?;
                        answer.token = Some(shared.token(&receipt));
                        answer.receipt = Some(receipt);
                        Ok(answer)
                    }
                    Written::Here(_, other) => Err(refused(other, operations > 1)),
                }
            }
        }
    )*};
}

writes! {
    PutRequest => PutResponse, Put, put, delete: false,
        |write, value| if write.return_previous { value } else { 0 };
    DeleteRequest => DeleteResponse, Delete, delete, delete: true,
        |write, value| if write.return_previous { value } else { 0 };
    CompareAndSetRequest => CompareAndSetResponse, CompareAndSet, compare_and_set, delete: false,
        |write, value| if write.return_previous { value } else { 0 };
    IncrementRequest => IncrementResponse, Increment, increment, delete: false,
        |write, value| if write.return_previous { value } else { 0 };
    BatchRequest => BatchResponse, Batch, batch, delete: false,
        |batch, _value| batch_answer_bytes_max(batch);
}

/// The most bytes of values in the answer to a Batch.
fn batch_answer_bytes_max(request: &BatchRequest) -> usize {
    let answers_with_value = request.operations.iter().any(|operation| {
        operation.return_previous || matches!(operation.action, Some(Action::Get(_)))
    });
    if answers_with_value { BATCH_ANSWER_BYTES_MAX } else { 0 }
}

/// The level that a read asks for.
pub fn level(options: Option<&ReadOptions>) -> ReadLevel {
    options.map_or(ReadLevel::Linearizable, ReadOptions::level)
}

/// The failure of a refused command; of `several` operations it names the one.
pub fn refused(answer: WriteAnswer, several: bool) -> Failure {
    match answer {
        WriteAnswer::Refused(refusal) => room_later(reply::failure(&refusal, several)),
        other => {
            let message = format!("the state machine answered a write with {other:?}");
            Failure::of(Reason::Internal, message)
        }
    }
}

/// The failure, with the time to wait where sessions are full: answers and expiry make room.
fn room_later(failure: Failure) -> Failure {
    match failure.reason() {
        Reason::SessionsFull => retry_after(failure, 1_000),
        _ => failure,
    }
}
