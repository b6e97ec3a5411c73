//! Execution of one call: routing, sessions, retries, and the outcome at the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_proto::limits::{
    DECODE_BYTES_MAX, REQUEST_BYTES_MAX, SESSION_TTL, SESSION_UNANSWERED_MAX,
};
use quorate_proto::v1::{OpenSessionRequest, OpenSessionResponse, Outcome, Reason, WriteSession};
use tonic::metadata::{Ascii, MetadataValue};

use crate::attempt::{AttemptError, Effect};
use crate::error::{Detail, Error, Result};
use crate::flow::Place;
use crate::inner::Inner;
use crate::pool::{Connection, Fitness};
use crate::retry::{self, Backoff, Next, RetryClass};
use crate::router::Route;
use crate::rpc::{Answer, Rpc};
use crate::sending::Sending;
use crate::session::{Session, Ticket};
use crate::write_id::{WriteId, WriteIdSlot};

/// Minimum remaining time for another attempt.
const REPEAT_MIN: Duration = Duration::from_millis(100);

/// How often an attempt that lasts longer than its patience looks for a better way.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Maximum size of a request that this client sends. It is less than what nodes decode, because
/// route and session are added. A node rejects a request below this and above its own limit.
const SENDABLE_BYTES_MAX: usize = DECODE_BYTES_MAX - (1 << 10);

/// Maximum number of sessions that one call opens to replace rejected ones. Each rejection is an
/// entry in the log of the shard; a session created at the time that the shard reports is not
/// rejected.
const SESSIONS_REPLACED_MAX: u32 = 8;

/// How a write is made exactly-once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionMode {
    /// No session: a read, or a write that is sent once.
    None,
    /// The next sequence number of the client's own session.
    Own,
    /// A session for this write only, which ends with it.
    OneShot,
    /// The session and sequence that the caller has from an earlier unknown outcome.
    Given(WriteId),
}

/// Options of the execution of a call.
#[derive(Debug)]
pub(crate) struct CallOptions {
    pub route: Route,
    pub class: RetryClass,
    pub session: SessionMode,
    /// The slot that receives the id of the write, for the caller.
    pub slot: Option<WriteIdSlot>,
    pub deadline: Instant,
}

/// A session that a shard rejected.
struct Refused {
    /// Whether it was created in the shard's future; otherwise it has expired.
    from_future: bool,
    /// The shard's log time; 0 = not reported.
    log_time: u64,
    /// The node that opened it, whose clock may be wrong.
    opened_by: Option<Arc<Connection>>,
}

/// The state of one call.
struct Call<'a> {
    inner: &'a Inner,
    options: CallOptions,
    shard: Option<usize>,
    ticket: Option<Ticket>,
    /// Nodes that were asked in this round. After all of them, a new round begins after a wait.
    tried: Vec<Arc<Connection>>,
    /// Whether an earlier attempt may have been applied and its outcome is still unknown.
    maybe: bool,
    /// Number of sessions that replaced rejected ones.
    sessions_replaced: u32,
    /// Whether the call ended its wait for a place at an overloaded node.
    held_back: bool,
    backoff: Backoff,
    request_id: String,
    header: MetadataValue<Ascii>,
    last: Option<AttemptError>,
}

impl Inner {
    /// Sends a request until it is answered or rejected, or its deadline has passed.
    pub(crate) async fn execute<R: Rpc>(
        &self,
        request: R,
        options: CallOptions,
    ) -> Result<R::Answer> {
        self.execute_elsewhere(request, options, None).await.map(|(answer, _)| answer)
    }

    /// As `execute`, but prefers other nodes to `not_at`. Returns the node that answered too.
    async fn execute_elsewhere<R: Rpc>(
        &self,
        mut request: R,
        options: CallOptions,
        not_at: Option<Arc<Connection>>,
    ) -> Result<(R::Answer, Option<Arc<Connection>>)> {
        self.retries.called();
        let (request_id, header) = self.request_ids.next();
        let mut call = Call {
            inner: self,
            options,
            shard: None,
            ticket: None,
            tried: not_at.into_iter().collect(),
            maybe: false,
            sessions_replaced: 0,
            held_back: false,
            backoff: Backoff::default(),
            request_id,
            header,
            last: None,
        };
        let bytes = request.encoded_len();
        if bytes > SENDABLE_BYTES_MAX {
            let message = format!(
                "the request is {bytes} bytes long; the limit is {REQUEST_BYTES_MAX} bytes"
            );
            return Err(call.give_up(AttemptError::local(Reason::TooLarge, message)));
        }
        loop {
            if call.remaining() < call.least() {
                return Err(call.out_of_time());
            }
            if let Err(error) = call.prepare(&mut request).await {
                call.after(error).await?;
                continue;
            }
            match call.attempt(&request).await {
                Ok(answer) => {
                    self.learn(&answer);
                    return Ok((answer, call.tried.pop()));
                }
                Err(error) => call.after(error).await?,
            }
        }
    }

    fn learn(&self, answer: &impl Answer) {
        if let Some(receipt) = answer.receipt() {
            self.router.learn_leader(receipt.shard, receipt.leader_node_id);
            self.heard_epoch(receipt.map_epoch);
        }
        if let Some(token) = answer.token() {
            self.tokens.note(token);
        }
    }

    /// Opens a session and returns the node that opened it; prefers other nodes to `not_at`. Boxed,
    /// because a call opens a session inside a call.
    pub(crate) fn open_session(
        &self,
        request: OpenSessionRequest,
        not_at: Option<Arc<Connection>>,
        deadline: Instant,
    ) -> Pin<Box<dyn Future<Output = Result<Opened>> + Send + '_>> {
        let options = CallOptions {
            route: Route::Any,
            class: RetryClass::Read,
            session: SessionMode::None,
            slot: None,
            deadline,
        };
        Box::pin(self.execute_elsewhere(request, options, not_at))
    }
}

/// The error of a write for which no session could be opened. It was not sent, so a reason that
/// speaks of reads or of a lost answer says nothing of it.
fn not_opened(detail: &Detail) -> AttemptError {
    let reason = match detail.reason {
        None | Some(Reason::ReadTimeout | Reason::OutcomeUnknown) => Reason::NoLeader,
        Some(reason) => reason,
    };
    let message = format!("no session could be opened for the write: {}", detail.message);
    AttemptError::local(reason, message)
}

/// The error of an attempt, after noting what it shows of the node.
fn noted(
    error: AttemptError,
    connection: &Connection,
    (begun, generation): (Instant, u64),
) -> AttemptError {
    if error.is_silence() {
        if connection.is_silent_since(begun) {
            connection.pass_over();
        }
        return error;
    }
    match error.broken {
        true => connection.broken(generation),
        false if error.is_of_node() => connection.turned_away(generation),
        false => connection.answered(),
    }
    match error.reason() {
        Some(Reason::Overloaded) if !error.is_of_node() => connection.flow().refused(),
        _ => connection.flow().answered(),
    }
    error
}

/// A new session, and the node that opened it.
pub(crate) type Opened = (OpenSessionResponse, Option<Arc<Connection>>);

impl Call<'_> {
    fn remaining(&self) -> Duration {
        self.options.deadline.saturating_duration_since(Instant::now())
    }

    /// Minimum time for the next attempt. A retry with less time would only turn "not applied" into
    /// "unknown".
    fn least(&self) -> Duration {
        match self.last {
            None => Duration::from_nanos(1),
            Some(_) => REPEAT_MIN,
        }
    }

    /// Sets route and session for the next attempt.
    async fn prepare<R: Rpc>(&mut self, request: &mut R) -> Result<(), AttemptError> {
        self.inner.need_map(self.options.deadline).await;
        self.inner.clusters.check()?;
        let table = self.inner.router.table();
        self.shard = request.key().and_then(|k| table.shard_of(k));
        request.set_route(table.hint(self.shard));
        if self.options.class == RetryClass::Read {
            return Ok(());
        }
        let session = match &self.options.session {
            SessionMode::None => None,
            SessionMode::Given(id) => Some(WriteSession {
                id: id.session.clone(),
                sequence: id.sequence,
                // Only this is known here: every sequence at least one window below this one was
                // answered.
                answered_below: id.sequence.saturating_sub(SESSION_UNANSWERED_MAX - 1).max(1),
                last: false,
            }),
            SessionMode::Own | SessionMode::OneShot => {
                let last = self.options.session == SessionMode::OneShot;
                if self.ticket.is_none() {
                    self.ticket = Some(self.new_ticket(last, None).await?);
                }
                self.ticket.as_ref().map(|t| t.wire(last))
            }
        };
        if let (Some(slot), Some(session)) = (&self.options.slot, &session) {
            slot.set(WriteId { session: session.id.clone(), sequence: session.sequence });
        }
        request.set_session(session);
        Ok(())
    }

    /// Takes a sequence number in the session of this call's shard, or, if `one_shot`, in a new
    /// session for this write only. `refused` is the session that it replaces.
    async fn new_ticket(
        &self,
        one_shot: bool,
        refused: Option<&Refused>,
    ) -> Result<Ticket, AttemptError> {
        let inner = self.inner;
        let shard = match self.shard {
            Some(position) => inner.router.table().shard(position).id,
            None => 0,
        };
        loop {
            let current = match one_shot {
                true => None,
                false => inner.sessions.current(shard),
            };
            let session = match current {
                Some(session) => session,
                None if one_shot => self.open(shard, refused).await?,
                None => {
                    let opening = inner.sessions.opening(shard);
                    let waits = "no session was opened until the deadline";
                    let _one = self.in_time(opening.lock(), waits).await?;
                    match inner.sessions.current(shard) {
                        Some(opened_meanwhile) => opened_meanwhile,
                        None => {
                            let session = self.open(shard, refused).await?;
                            inner.sessions.replace(shard, Arc::clone(&session));
                            session
                        }
                    }
                }
            };
            let waits = "the session had too many unanswered writes until the deadline";
            if let Some(ticket) = self.in_time(session.next(), waits).await? {
                return Ok(ticket);
            }
        }
    }

    async fn open(
        &self,
        shard: u64,
        refused: Option<&Refused>,
    ) -> Result<Arc<Session>, AttemptError> {
        let begun = Instant::now();
        let deadline = self.options.deadline;
        let mut request = OpenSessionRequest { shard, ..OpenSessionRequest::default() };
        match refused {
            Some(refused) if refused.from_future => request.not_after = refused.log_time,
            Some(refused) => request.not_before = refused.log_time,
            None => {}
        }
        let not_at = refused.and_then(|refused| refused.opened_by.clone());
        let opened = self.inner.open_session(request, not_at, deadline).await;
        let (answer, opened_by) = opened.map_err(|error| not_opened(error.detail()))?;
        let ttl = answer.ttl.and_then(|t| Duration::try_from(t).ok());
        let ttl = ttl.unwrap_or(SESSION_TTL);
        Ok(Session::new(answer.session_id, begun + ttl / 2, opened_by))
    }

    /// Waits for something inside this client, until the deadline; `sentence` says what did not
    /// come.
    async fn in_time<T>(
        &self,
        what: impl Future<Output = T>,
        sentence: &str,
    ) -> Result<T, AttemptError> {
        let waited = tokio::time::timeout(self.remaining(), what).await;
        waited.map_err(|_| AttemptError::local(Reason::Overloaded, sentence))
    }

    /// Makes one attempt at the best node that was not tried yet.
    async fn attempt<R: Rpc>(&mut self, request: &R) -> Result<R::Answer, AttemptError> {
        let inner = self.inner;
        let table = inner.router.table();
        let picked = inner.router.pick(&table, self.shard, self.options.route, &self.tried);
        let Some(connection) = picked else {
            // All nodes were asked in this round.
            self.tried.clear();
            let last = self.last.take();
            return Err(AttemptError {
                broken: false,
                effect: Effect::None,
                ..last.unwrap_or_else(|| AttemptError::unreachable("no node is known".into()))
            });
        };
        self.tried.push(Arc::clone(&connection));
        // After this time the attempt may be given up. A bare write has one attempt.
        let patience = match self.options.class {
            RetryClass::Read | RetryClass::Sessioned if inner.config.retries => {
                self.backoff.patience()
            }
            RetryClass::Read | RetryClass::Sessioned | RetryClass::Bare => self.remaining(),
        };
        let _place = match R::IS_WORK {
            true => Some(self.place_at(&connection).await?),
            false => None,
        };
        let timeout = patience.min(self.remaining());
        let channel = match tokio::time::timeout(timeout, connection.channel()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(AttemptError::unreachable(error)),
            Err(_) => {
                let address = connection.address();
                let message = format!("{address} did not accept a connection within {timeout:.1?}");
                return Err(AttemptError::unreachable(message));
            }
        };
        let generation = channel.1;
        let sending = Sending {
            pipelined: inner.config.pipelined,
            request_id: &self.request_id,
            header: &self.header,
            deadline: self.options.deadline,
        };
        let (begun, mut wait) = (Instant::now(), patience);
        let mut sent = std::pin::pin!(sending.send(&connection, channel, request));
        loop {
            let remaining = self.remaining();
            let answer = tokio::time::timeout(wait.min(remaining), &mut sent).await;
            match answer {
                Ok(Ok(answer)) => {
                    connection.answered();
                    connection.flow().answered();
                    return Ok(answer);
                }
                Ok(Err(error)) => return Err(noted(error, &connection, (begun, generation))),
                Err(_) => {}
            }
            let silent = connection.is_silent_since(begun);
            // An attempt is not given up for a place in the queue of another node. A last resort
            // may be out of reach; whether it is costs nothing.
            let other = inner.router.pick(&table, self.shard, self.options.route, &self.tried);
            let takes = other.is_some_and(|other| other.flow().has_room());
            let in_time = wait < remaining;
            if in_time && !(takes && (silent || inner.retries.take())) {
                wait = LOOK_AGAIN;
                continue;
            }
            if silent {
                connection.pass_over();
            }
            return Err(AttemptError::silent(connection.address(), begun.elapsed()));
        }
    }

    /// Waits for a place among the calls under way at a node, for half of the time: with less, the
    /// attempt would end as unknown rather than in time.
    async fn place_at<'a>(&mut self, node: &'a Arc<Connection>) -> Result<Place<'a>, AttemptError> {
        let address = node.address();
        if let Some(place) = node.flow().try_enter() {
            return Ok(place);
        }
        let (fitness, at_most) = (node.fitness(), self.remaining() / 2);
        let Some(place) = node.flow().enter(at_most).await else {
            self.held_back = true;
            let message = format!(
                "{address} has as many calls of this client under way as it takes; this one \
                 waited {at_most:.1?} for its turn and was not sent"
            );
            return Err(AttemptError::local(Reason::Overloaded, message));
        };
        // Those that were under way have shown meanwhile that the node is silent.
        if fitness == Fitness::Good && node.fitness() == Fitness::Poor {
            let message = format!("{address} does not answer the calls before this one");
            return Err(AttemptError::unreachable(message));
        }
        Ok(place)
    }

    /// Handles a failed attempt: learns from it and waits before the next one.
    ///
    /// # Errors
    /// The error of the call, if there is no further attempt.
    async fn after(&mut self, error: AttemptError) -> Result<()> {
        self.maybe |= error.effect == Effect::Maybe && self.options.class != RetryClass::Read;
        let mut known_leader = false;
        if let Some(failure) = &error.failure {
            self.inner.heard_epoch(failure.map_epoch);
            if failure.leader_node_id != 0 {
                let before = self.shard.map(|p| self.inner.router.table().leader(p));
                self.inner.router.learn_leader(failure.shard, failure.leader_node_id);
                let after = self.shard.map(|p| self.inner.router.table().leader(p));
                known_leader = before != after;
            }
        }
        tracing::debug!(
            request_id = self.request_id,
            reason = error.reason().map(Reason::name),
            error = error.message,
            "attempt: failed"
        );
        let wait = match retry::next(self.options.class, &error) {
            _ if !self.inner.config.retries || self.held_back => {
                return Err(self.give_up(error));
            }
            Next::GiveUp => return Err(self.give_up(error)),
            Next::Elsewhere if self.tried.is_empty() => Some(self.backoff.wait(None)),
            Next::Elsewhere => None,
            // The failure names another leader: ask it immediately, the first time.
            Next::Wait if known_leader => None,
            Next::Wait => {
                self.tried.clear();
                Some(self.backoff.wait(error.retry_after()))
            }
            Next::RefreshMap => {
                self.tried.clear();
                self.inner.refresh_map(self.options.deadline).await;
                Some(self.backoff.wait(None))
            }
            Next::NewSession => {
                self.tried.clear();
                let earlier = self.maybe || matches!(self.options.session, SessionMode::Given(_));
                let from_future = error.reason() == Some(Reason::SessionFromFuture);
                match earlier {
                    // The shard's time will reach the session, which may contain the answer.
                    true if from_future => Some(self.backoff.wait(None)),
                    true => return Err(self.give_up(error)),
                    false if self.sessions_replaced >= SESSIONS_REPLACED_MAX => {
                        return Err(self.give_up(error));
                    }
                    false => self.take_new_session(&error).await?,
                }
            }
        };
        let (costs, asked) = (retry::costs(&error), error.retry_after());
        self.last = Some(error);
        self.pause(wait, costs, asked).await
    }

    /// Waits before the next attempt, and until the budget has a retry if it costs one.
    ///
    /// # Errors
    /// The error of the call, if its time would end before.
    async fn pause(
        &mut self,
        wait: Option<Duration>,
        costs: bool,
        asked: Option<Duration>,
    ) -> Result<()> {
        let mut wait = wait;
        loop {
            if let Some(wait) = wait {
                if wait + self.least() >= self.remaining() {
                    return Err(self.out_of_time());
                }
                tokio::time::sleep(wait).await;
            }
            if !costs || self.inner.retries.take() {
                return Ok(());
            }
            wait = Some(self.backoff.wait(asked));
        }
    }

    /// Replaces a session that the shard considers expired, or created in its future, by a session
    /// of another node, created at the time that the shard reports.
    async fn take_new_session(&mut self, error: &AttemptError) -> Result<Option<Duration>> {
        let mut refused = Refused {
            from_future: error.reason() == Some(Reason::SessionFromFuture),
            log_time: error.failure.as_ref().map_or(0, |f| f.log_time),
            opened_by: None,
        };
        if let Some(ticket) = self.ticket.take() {
            ticket.session().retire();
            refused.opened_by = ticket.session().opened_by().cloned();
        }
        self.sessions_replaced += 1;
        let one_shot = self.options.session == SessionMode::OneShot;
        match self.new_ticket(one_shot, Some(&refused)).await {
            Ok(ticket) => self.ticket = Some(ticket),
            Err(error) => return Err(self.give_up(error)),
        }
        Ok(Some(self.backoff.wait(None)))
    }

    /// The error of a call that ends with this attempt.
    fn give_up(&mut self, error: AttemptError) -> Error {
        if self.options.class == RetryClass::Read {
            let error = match error.is_silence() {
                true => AttemptError::local(Reason::ReadTimeout, error.message),
                false => error,
            };
            return error.into_error(&self.request_id);
        }
        if error.effect == Effect::Final || !(self.maybe || self.leaves_unknown(&error)) {
            let outcome = self.outcome_of_write(&error);
            return error.into_error(&self.request_id).with_outcome(outcome);
        }
        let write = match &self.options.session {
            SessionMode::None => None,
            SessionMode::Given(id) => Some(id.clone()),
            SessionMode::Own | SessionMode::OneShot => self.ticket.as_ref().map(Ticket::id),
        };
        if let Some(ticket) = self.ticket.take() {
            ticket.keep_open();
        }
        // Even if the last attempt was certainly not applied, the write as a whole may be.
        let earlier = match error.effect {
            Effect::None | Effect::Final if self.maybe => {
                "an earlier attempt may have been applied; then: "
            }
            Effect::Maybe | Effect::None | Effect::Final => "",
        };
        let detail = error.detail(&self.request_id);
        Error::Unknown {
            detail: Box::new(Detail {
                reason: Some(Reason::OutcomeUnknown),
                outcome: Outcome::Unknown,
                message: format!("{earlier}{}", detail.message),
                ..detail
            }),
            write,
        }
    }

    /// Whether the write stays unknown although this attempt changed nothing, because an earlier
    /// call has sent it. An invalid request says nothing about that write.
    fn leaves_unknown(&self, error: &AttemptError) -> bool {
        matches!(self.options.session, SessionMode::Given(_)) && !error.is_invalid()
    }

    /// The outcome of a write that this call did not leave unknown. If an earlier call may have
    /// sent the write, only this attempt is known not to be applied.
    fn outcome_of_write(&self, error: &AttemptError) -> Outcome {
        match &self.options.session {
            SessionMode::Given(_) if error.effect != Effect::Final => Outcome::AttemptNotApplied,
            _ => Outcome::NotApplied,
        }
    }

    fn out_of_time(&mut self) -> Error {
        let last = self.last.take();
        let error = last.unwrap_or_else(|| {
            let reason = match self.options.class {
                RetryClass::Read => Reason::ReadTimeout,
                RetryClass::Sessioned | RetryClass::Bare => Reason::NoLeader,
            };
            AttemptError::local(reason, "the deadline passed before a node could be asked")
        });
        self.give_up(error)
    }
}
