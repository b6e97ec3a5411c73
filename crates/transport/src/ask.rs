//! Questions of formation, between nodes that prove the secret to each other first.

use quorate_proto::raft::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::dial;
use super::gate::{Entrance, Gate};
use super::proof::{Claim, ProofKey, nonce};

/// The largest answer; a list of 1,000 members needs far less.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Messages of a question in either direction: the claim and the proof, the challenge and the
/// answer.
pub(super) const MESSAGES: usize = 2;

/// Asks the node at `address` (`host:port`), which must know the secret; its nonce is set here.
///
/// # Errors
/// Why there is no answer, in a sentence.
pub async fn ask(
    address: &str,
    request: wire::AskRequest,
    key: &ProofKey,
) -> Result<wire::AskResponse, String> {
    let request = wire::AskRequest { nonce: nonce(), proof: None, ..request };
    let claim = Claim::of_ask(&request);
    let channel = dial::connect(address).await.map_err(|error| error.sentence)?;
    let mut client =
        wire::peer_client::PeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let (questions, stream) = mpsc::channel(MESSAGES);
    // The channel has room for both.
    let _ = questions.try_send(request);
    let status = |status: Status| dial::status_sentence(&status);
    let mut answers = client.ask(ReceiverStream::new(stream)).await.map_err(status)?.into_inner();
    let first = answers.message().await.map_err(status)?;
    let challenge = first.and_then(|first| first.challenge).ok_or("it did not answer the claim")?;
    let proof = Some(claim.answer(key, &challenge)?);
    let _ = questions.try_send(wire::AskRequest { proof, ..wire::AskRequest::default() });
    answers.message().await.map_err(status)?.ok_or_else(|| "it did not answer".to_owned())
}

/// Answers a question, once the asker has proved the secret.
pub(super) async fn answer(
    request: Request<Streaming<wire::AskRequest>>,
    answers: &mpsc::Sender<Result<wire::AskResponse, Status>>,
    gate: &Gate,
    answer: impl FnOnce() -> wire::AskResponse,
) -> Result<(), Status> {
    let entrance = Entrance::of(&request);
    let mut questions = request.into_inner();
    let Some(question) = questions.message().await? else { return Ok(()) };
    let (node, claim) = (question.from_node, Claim::of_ask(&question));
    if !claim.has_nonce() {
        let sentence = format!(
            "node {node} asks in wire version 1, which proves nothing; start a newer version there"
        );
        gate.stranger(&sentence);
        return Err(Status::failed_precondition(sentence));
    }
    let (challenge, pending) = claim.challenge(gate.key());
    let challenge = Some(challenge);
    // The channel has room for both.
    let _ = answers.try_send(Ok(wire::AskResponse { challenge, ..Default::default() }));
    let proof = questions.message().await.ok().flatten().and_then(|second| second.proof);
    gate.prove(node, &pending, proof).map_err(Status::unauthenticated)?;
    entrance.enter().map_err(Status::resource_exhausted)?;
    let _ = answers.try_send(Ok(answer()));
    Ok(())
}
