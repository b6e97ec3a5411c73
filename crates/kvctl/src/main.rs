//! Entry point of `kvctl`, the command-line tool of Quorate.
//!
//! Data goes to standard output, everything else to standard error, and the exit code says how the
//! command ended ([`exit`]). Each command is one function in [`command`], which works with a
//! [`context::Context`].

mod again;
mod cli;
mod command;
mod context;
mod duration;
mod encoding;
mod exit;
mod failure;
mod interrupt;
mod output;
mod records;
mod token_file;
mod view;
mod wire;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::cli::{Cli, Format};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::note;

/// Extra time for the whole command beyond `--timeout`, so that the client's own timeout error,
/// which is more exact, is reported first.
const GRACE: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let mut cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && asks_for_json(&words) => {
            let text = error.to_string();
            let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
            note(Failure::usage(message).json(None).to_string());
            return Exit::Usage.into();
        }
        Err(error) => {
            // Help and version go to standard output, which may be closed; neither is an error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done });
        }
    };
    cli.global.settle();
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note(format!("kvctl: cannot start the runtime: {error}"));
            return Exit::Bug.into();
        }
    };
    let format = cli.global.output;
    let exit = match runtime.block_on(run(cli)) {
        Ok(exit) => exit,
        Err(failure) => {
            report(&failure, format, &words);
            failure.exit
        }
    };
    // Tasks that wait for a node, or for standard input, must not delay the exit.
    runtime.shutdown_background();
    exit.into()
}

/// Runs the command within its timeout, unless Ctrl-C ends it.
async fn run(cli: Cli) -> Result<Exit> {
    let interrupt = Interrupt::listen();
    let mut context = Context::new(&cli.global, &cli.command, interrupt.clone())?;
    let time = context.time_for_all;
    let reports_nodes = cli.command.reports_nodes();
    let done = async {
        let done = command::run(&mut context, cli.command).await;
        // Output and session token are kept even after a failure; the failure of the command itself
        // is the one that is reported.
        let flushed = context.output.flush();
        let kept = context.keep_token();
        if !reports_nodes {
            context.report_fallback();
        }
        let ended = done.and_then(|exit| {
            flushed?;
            kept?;
            Ok(exit)
        });
        match ended {
            Ok(exit) => Ok(exit),
            Err(failure) => {
                let failure = context.name_levels(failure).await;
                Err(context.after_writes(failure))
            }
        }
    };
    // Writes in flight are looked up inside these branches: `select!` drops the command before it
    // runs a handler.
    let interrupted = async {
        interrupt.last().await;
        ended(&interrupt, Exit::Interrupted, "interrupted")
    };
    let out_of_time = async {
        match time {
            Some(time) => tokio::time::sleep(time + GRACE).await,
            None => std::future::pending().await,
        }
        ended(&interrupt, Exit::Unavailable, "the timeout (--timeout) has passed")
    };
    tokio::select! {
        biased;
        exit = done => exit,
        failure = interrupted => Err(failure),
        failure = out_of_time => Err(failure),
    }
}

/// The failure of a command that was interrupted or timed out.
fn ended(interrupt: &Interrupt, otherwise: Exit, what: &str) -> Failure {
    let (exit, write) = interrupt.exit();
    if exit != Exit::Unknown {
        return Failure::of(otherwise, what);
    }
    let message = match &write {
        Some(_) => format!("{what} while a write was in flight; its outcome is unknown"),
        // A command on many keys: running it twice is safe.
        None => format!(
            "{what} while writes were in flight; their outcomes are unknown until the same command \
             is run again and succeeds"
        ),
    };
    Failure::unknown(message, write)
}

/// Reports a failure on standard error, with the command that retries the write if its outcome is
/// unknown.
fn report(failure: &Failure, format: Option<Format>, words: &[OsString]) {
    if failure.reader_gone {
        return;
    }
    let again = failure.write().map(|write| again::command_line(words, write));
    if format == Some(Format::Json) {
        note(failure.json(again.as_deref()).to_string());
        return;
    }
    note(format!("kvctl: {failure}"));
    if let Some(again) = again {
        note(again::INTRODUCTION);
        note(format!("  {again}"));
    }
}

/// Whether a command line that could not be parsed asks for JSON.
fn asks_for_json(words: &[OsString]) -> bool {
    let pairs = words.iter().zip(words.iter().skip(1));
    let apart = |(flag, format): (&OsString, &OsString)| {
        (flag == "-o" || flag == "--output") && format == "json"
    };
    pairs.into_iter().any(apart)
        || words.iter().any(|word| word == "-ojson" || word == "-o=json" || word == "--output=json")
}

/// Writes the client's log to standard error if `KVCTL_LOG` is set (for example to `debug`).
fn log_to_stderr() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("KVCTL_LOG") else { return };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
