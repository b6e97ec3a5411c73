//! What every command works with: the client, the outputs, the flags that all commands share.

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

/// How long a command may take that says nothing else.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long one request of a long command may take: longer than any election.
const TIMEOUT_EACH: Duration = Duration::from_secs(30);

/// What a command works with.
pub struct Context {
    /// The client; it connects when it is first used.
    pub client: Client,
    /// Where data goes.
    pub output: Output,
    /// Ctrl-C.
    pub interrupt: Interrupt,
    /// The flags of all commands.
    pub global: Global,
    /// The time for the whole command; `None` where it holds for each request.
    pub time_for_all: Option<Duration>,
    token_file: Option<TokenFile>,
    /// Set when a write was applied: which one, where there is but one.
    applied: OnceCell<Option<WriteId>>,
}

impl Context {
    /// For one command.
    pub fn new(global: &Global, command: &Command, interrupt: Interrupt) -> Result<Context> {
        check(global, command)?;
        let long = takes_long(command);
        let timeout = global.timeout.unwrap_or(if long { TIMEOUT_EACH } else { TIMEOUT });
        let config = ClientConfig::new(&global.endpoints)?
            .timeout(timeout)
            .connect_timeout(global.connect_timeout)
            .level(global.consistency.level());
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

    /// The answer of `future`; people who wait long for it are told for what.
    pub async fn wait_for<T>(
        &self,
        what: impl std::fmt::Display,
        future: impl Future<Output = T>,
    ) -> T {
        let of = self.global.endpoints.join(", ");
        waiting::notify_if_slow(|| format!("{what} from {of}"), future).await
    }

    /// The level that reads ask for.
    pub fn level(&self) -> ReadLevel {
        self.global.consistency.level()
    }

    /// The write that is asked again, if one is.
    pub fn write_again(&self) -> Option<WriteId> {
        self.global.write_id.clone()
    }

    /// Notes that a write was applied, from when on nothing may be called a wrong command line any more;
    /// its identity if it is the only one.
    pub fn note_applied(&self, write: Option<WriteId>) {
        // The first of many is enough.
        let _ = self.applied.set(write);
    }

    /// The failure to tell: one of printing or keeping the answer says if a write was applied before.
    pub fn after_writes(&self, failure: Failure) -> Failure {
        match self.applied.get() {
            Some(write) => failure.though_applied(write.clone()),
            None => failure,
        }
    }

    /// Tells what was guaranteed, to those who asked and, of reads that may be old, to people.
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

    /// A line for people on standard error; with `-o json` an object with this message.
    pub fn remark(&self, message: impl AsRef<str>) {
        output::remark(self.global.output, message.as_ref());
    }

    /// A line for people about what is printed; nothing with `-o json`, where the result says it itself.
    pub fn explain(&self, message: impl AsRef<str>) {
        if self.global.output != Some(Format::Json) {
            note(message);
        }
    }

    /// Tells that calls took the longer way, through the given endpoints, because advertised addresses
    /// cannot be reached from here. For the end of a command, so that it is told once.
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

    /// Keeps what this call has seen for the next one.
    pub fn keep_token(&self) -> Result<()> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let token = self.client.token();
        if let Some(map) = self.client.known_map()
            && !token.cluster_id.is_empty()
            && (token.cluster_id != map.cluster_id || token.history != map.history)
        {
            self.remark(
                "the session file holds the token of another cluster, or of this one before a \
                 restore; it was not used and not changed",
            );
            return Ok(());
        }
        if token.parts.is_empty() { Ok(()) } else { file.merge(&token) }
    }
}

/// Flags that do not go together, or not with this version.
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
        return Err(Failure::usage("--max-staleness goes with --consistency bounded"));
    }
    if global.write_id.is_some() && !command.is_single_write() {
        let name = command.name();
        return Err(Failure::usage(format!(
            "--write-id asks one write again; this {name} is not one write"
        )));
    }
    Ok(())
}

/// Whether the time given holds for each request and not for the whole command.
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
