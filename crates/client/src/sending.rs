//! The way of one attempt to a node: as an operation of the connection's stream, or as a call of
//! its own.

use std::sync::Arc;
use std::time::Instant;

use quorate_pipeline::{Answer, Unanswered};
use quorate_proto::v1::PipelineOperation;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::attempt::{AttemptError, Effect};
use crate::pool::Connection;
use crate::rpc::{self, Rpc};

/// What is the same for every attempt of a call.
pub(crate) struct Sending<'a> {
    /// Whether operations go over the connection's stream.
    pub pipelined: bool,
    pub request_id: &'a str,
    /// The same as a header.
    pub header: &'a MetadataValue<Ascii>,
    pub deadline: Instant,
}

impl Sending<'_> {
    /// Sends a request over an open channel and waits for its answer.
    ///
    /// The node has all the time of the call: while it may still do what was asked, it is not asked
    /// again unless it is silent or the budget allows it.
    pub async fn send<R: Rpc>(
        &self,
        connection: &Arc<Connection>,
        channel: (Channel, u64),
        request: &R,
    ) -> Result<R::Answer, AttemptError> {
        let (channel, generation) = channel;
        if self.pipelined
            && let Some(operation) = request.operation()
            && let Some(lane) = connection.lane(&channel, generation)
        {
            let operation = PipelineOperation {
                request_id: self.request_id.to_owned(),
                operation: Some(operation),
                ..PipelineOperation::default()
            };
            match lane.send(operation, self.deadline).await {
                Ok(Answer::Failure(failure)) => {
                    return Err(AttemptError::of_failure(failure, self.request_id));
                }
                Ok(answer) => return R::in_answer(answer).ok_or_else(other_kind),
                Err(Unanswered::NotSent(status)) if status.code() == Code::Unimplemented => {
                    connection.serves_no_lanes();
                }
                Err(Unanswered::NotSent(status)) => {
                    let error = AttemptError::of_status(&status);
                    return Err(AttemptError { effect: Effect::None, ..error });
                }
                Err(Unanswered::Lost(status)) => return Err(lost(&status)),
            }
        }
        let mut envelope = tonic::Request::new(request.clone());
        envelope.metadata_mut().insert("x-request-id", self.header.clone());
        envelope.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        match R::send(rpc::kv(channel), envelope).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(AttemptError::of_status(&status)),
        }
    }
}

/// The error of an operation whose stream ended with this status. That is of the stream: of the
/// operation it says nothing.
fn lost(status: &Status) -> AttemptError {
    AttemptError {
        code: Code::Unknown,
        failure: None,
        effect: Effect::Maybe,
        ..AttemptError::of_status(status)
    }
}

fn other_kind() -> AttemptError {
    lost(&Status::unknown("the answer is of another kind than the operation"))
}
