//! Streams of operations: each is done as the call of the same kind would be.

use prost::Message;
use quorate_proto::v1::kv_server::Kv;
use quorate_proto::v1::pipeline_answer::Result as Answered;
use quorate_proto::v1::pipeline_operation::Operation;
use quorate_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

/// What a client may send before it has an answer.
const CREDIT: PipelineCredit = PipelineCredit { operations: 1_024, bytes: 4 << 20 };

/// Answers the operations of a stream, all at once. A status that no node gives ends the stream.
pub(crate) fn serve<K: Kv + Clone>(
    node: K,
    mut frames: Streaming<PipelineRequest>,
) -> ReceiverStream<Result<PipelineResponse, Status>> {
    let (answers, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let first = PipelineResponse { credit: Some(CREDIT), ..PipelineResponse::default() };
        // The reader of the answers may have left, here and below.
        let _ = answers.send(Ok(first)).await;
        while let Ok(Some(frame)) = frames.message().await {
            for operation in frame.operations {
                let (node, answers) = (node.clone(), answers.clone());
                tokio::spawn(async move {
                    let _ = answers.send(answer(&node, operation).await).await;
                });
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The frame that answers one operation and gives its credit back.
async fn answer(node: &impl Kv, operation: PipelineOperation) -> Result<PipelineResponse, Status> {
    let credit = PipelineCredit { operations: 1, bytes: operation.encoded_len() as u64 };
    let id = operation.id;
    let result = match carry_out(node, operation).await {
        Ok(result) => result,
        Err(status) => match Failure::from_details(status.details()) {
            Some((failure, _)) => Answered::Failure(failure),
            None => return Err(status),
        },
    };
    let answers = vec![PipelineAnswer { id, result: Some(result) }];
    Ok(PipelineResponse { answers, credit: Some(credit), ..PipelineResponse::default() })
}

async fn carry_out(node: &impl Kv, operation: PipelineOperation) -> Result<Answered, Status> {
    macro_rules! carry_out {
        ($($kind:ident $method:ident),*) => {
            match &operation.operation {
                $(Some(Operation::$kind(request)) => {
                    let call = call(&operation, request.clone());
                    node.$method(call).await.map(|answer| Answered::$kind(answer.into_inner()))
                })*
                None => Err(Status::invalid_argument("the operation is of no known kind")),
            }
        };
    }
    carry_out!(
        Get get, Put put, Delete delete, CompareAndSet compare_and_set, Increment increment,
        Batch batch
    )
}

/// The operation as a call: with its id and its time in the headers.
fn call<R>(operation: &PipelineOperation, request: R) -> Request<R> {
    let mut call = Request::new(request);
    if let Ok(id) = operation.request_id.parse() {
        call.metadata_mut().insert("x-request-id", id);
    }
    if let Some(timeout) = operation.timeout.and_then(|timeout| timeout.try_into().ok()) {
        call.set_timeout(timeout);
    }
    call
}
