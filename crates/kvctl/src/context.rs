//! Context of a command: the client, the outputs, and the flags that all commands share.

use std::cell::OnceCell;
use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use quorate_client::{Client, ClientConfig, WriteId};

use crate::cli::{Command, Format, Global};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{self, Output, describe, json, note, waiting};
use crate::token_file::TokenFile;
use crate::view::node_names;
use crate::wire::{ReadLevel, Receipt};

/// Default timeout of a whole command.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of one node's answer to the question which levels it serves.
const TIMEOUT_INFO: Duration = Duration::from_secs(1);

/// Default timeout of each request of a long command: longer than any election.
const TIMEOUT_EACH: Duration = Duration::from_secs(30);

/// Context of a command.
pub struct Context {
    /// The client; connects at its first use.
    pub client: Client,
    /// The output for data.
    pub output: Output,
    /// State of Ctrl-C and of the writes in flight.
    pub interrupt: Interrupt,
    /// The flags that all commands share.
    pub global: Global,
    /// Timeout of the whole command; `None` if the timeout applies to each request.
    pub time_for_all: Option<Duration>,
    token_file: Option<TokenFile>,
    /// Set once a write was applied; holds its id if it is the only write of the command.
    applied: OnceCell<Option<WriteId>>,
}

impl Context {
    /// Creates the context of a command.
    pub fn new(global: &Global, command: &Command, interrupt: Interrupt) -> Result<Context> {
        check(global, command)?;
        let long = takes_long(command);
        let timeout = global.timeout.unwrap_or(if long { TIMEOUT_EACH } else { TIMEOUT });
        let mut config = ClientConfig::new(&global.endpoints)?
            .timeout(timeout)
            .connect_timeout(global.connect_timeout)
            .level(global.consistency.level());
        if !long {
            config = config.unary();
        }
        let client = Client::new(config);
        let token_file = global.token_file.as_deref().map(TokenFile::new);
        if let Some(file) = &token_file {
            file.check()?;
            if let Some(token) = file.read()? {
                client.absorb_token(&token);
            }
        }
        Ok(Context {
            client,
            output: Output::stdout(global.output),
            interrupt,
            global: global.clone(),
            time_for_all: (!long).then_some(timeout),
            token_file,
            applied: OnceCell::new(),
        })
    }

    /// Awaits `future`; on a terminal, says what it is waiting for.
    pub async fn wait_for<T>(
        &self,
        what: impl std::fmt::Display,
        future: impl Future<Output = T>,
    ) -> T {
        let of = self.global.endpoints.join(", ");
        waiting::notify_if_slow(|| format!("{what} from {of}"), future).await
    }

    /// The level to send with reads.
    pub fn level(&self) -> ReadLevel {
        self.global.consistency.level()
    }

    /// The id of the write to retry, if `--write-id` names one.
    pub fn write_again(&self) -> Option<WriteId> {
        self.global.write_id.clone()
    }

    /// Notes that a write was applied, with its id if it is the only one. From then on no failure
    /// is reported as invalid usage.
    pub fn note_applied(&self, write: Option<WriteId>) {
        // One of several writes is enough.
        let _ = self.applied.set(write);
    }

    /// The failure to report: if an answer could not be printed or kept, it says whether a write
    /// was applied before.
    pub fn after_writes(&self, failure: Failure) -> Failure {
        match self.applied.get() {
            Some(write) => failure.though_applied(write.clone()),
            None => failure,
        }
    }

    /// The failure of a read at a level that the asked node does not serve, with the levels that it
    /// serves instead; any other failure as it is.
    pub async fn name_levels(&self, mut failure: Failure) -> Failure {
        let reason = failure.answer.as_ref().map(|answer| answer.reason);
        let (level, name) = (self.level(), self.level().row().name);
        if !matches!(reason, Some("NOT_OFFERED" | "BAD_LEVEL")) || level == ReadLevel::Linearizable
        {
            return failure;
        }
        let infos = self.client.infos(TIMEOUT_INFO).await;
        let known = infos.iter().filter_map(|node| node.info.as_ref().ok());
        let Some(info) = known.into_iter().find(|info| !info.levels.contains(&(level as i32)))
        else {
            return failure;
        };
        let served: Vec<_> = info.levels.iter().map(|served| json::level(*served)).collect();
        failure.message = format!(
            "n{} serves no {name} reads, only {} ({})",
            info.node_id,
            served.join(", "),
            failure.message
        );
        failure
    }

    /// Prints receipts: all with `--verbose`, and those of reads that may be old on a terminal.
    pub fn report_receipts<'a>(&self, receipts: impl IntoIterator<Item = &'a Receipt>) {
        for receipt in receipts {
            let must = !describe::is_current(receipt) && io::stderr().is_terminal();
            if !self.global.verbose && !must {
                continue;
            }
            note(match self.global.output {
                Some(Format::Json) => json::receipt(receipt).to_string(),
                _ => describe::receipt(receipt),
            });
        }
    }

    /// Prints a line to standard error; with `-o json` an object with this message.
    pub fn remark(&self, message: impl AsRef<str>) {
        output::remark(self.global.output, message.as_ref());
    }

    /// Prints an explanation of the result to standard error; nothing with `-o json`, where the
    /// result itself contains it.
    pub fn explain(&self, message: impl AsRef<str>) {
        if self.global.output != Some(Format::Json) {
            note(message);
        }
    }

    /// Reports that calls went through the given endpoints, because advertised addresses cannot be
    /// reached from here. Called at the end of a command, so that it is reported once.
    pub fn report_fallback(&self) {
        let (nodes, addresses): (Vec<u64>, Vec<String>) =
            self.client.unreachable_nodes().into_iter().unzip();
        if !nodes.is_empty() {
            self.remark(format!(
                "{} cannot be reached from here at the address{} that the cluster advertises ({}); \
                 the given endpoints forward instead",
                node_names(&nodes),
                if nodes.len() == 1 { "" } else { "es" },
                addresses.join(", "),
            ));
        }
    }

    /// Saves the session token for the next command.
    pub fn keep_token(&self) -> Result<()> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let token = self.client.token();
        if let Some(map) = self.client.known_map()
            && !token.cluster_id.is_empty()
            && (token.cluster_id != map.cluster_id || token.history != map.history)
        {
            self.remark(
                "the token file holds the token of another cluster, or of this one before a \
                 restore; it was neither used nor changed",
            );
            return Ok(());
        }
        if token.parts.is_empty() { Ok(()) } else { file.merge(&token) }
    }
}

/// Rejects flags that cannot be combined, or that this version does not offer.
fn check(global: &Global, command: &Command) -> Result<()> {
    let tls = [&global.cacert, &global.cert, &global.tls_key].iter().any(|file| file.is_some());
    if tls || global.server_name.is_some() {
        return Err(Failure::of(Exit::Refused, "TLS is not offered yet"));
    }
    let bounded = global.consistency.level() == ReadLevel::Bounded;
    if bounded && global.max_staleness.is_none() {
        return Err(Failure::usage("--consistency bounded needs --max-staleness"));
    }
    if global.max_staleness.is_some() && !bounded {
        return Err(Failure::usage("--max-staleness needs --consistency bounded"));
    }
    if global.write_id.is_some() && !command.is_single_write() {
        let name = command.name();
        return Err(Failure::usage(format!(
            "--write-id retries a single write; this {name} is not a single write"
        )));
    }
    Ok(())
}

/// Whether the timeout applies to each request and not to the whole command.
fn takes_long(command: &Command) -> bool {
    match command {
        Command::Scan(_) | Command::Load(_) | Command::Dump(_) | Command::Bench(_) => true,
        Command::Del(args) => args.prefix.is_some(),
        Command::Status(args) | Command::Shards(args) | Command::Nodes(args) => {
            args.watch.is_some()
        }
        _ => false,
    }
}
