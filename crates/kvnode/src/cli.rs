//! The command line of `kvnode`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use quorate_config::{
    self as config, ConfigArgs, ConfigError, Environment, HostPort, Layers, Resolved,
};
use quorate_node::{Fatal, secret};
use quorate_proto::version::VERSION;

use crate::allocator;
use crate::dev::{self, DevArgs};
use crate::health_probe::{self, Question};
use crate::inspect::{self, InspectArgs};
use crate::telemetry;

/// The Quorate server: a sharded, Raft-replicated key-value store
#[derive(Debug, Parser)]
#[command(name = "kvnode", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, to try things out
    Dev(DevArgs),
    /// Run one node
    Start(Box<StartArgs>),
    /// Ask a node for its health; the answer is the exit code
    Health(HealthArgs),
    /// Show what is in the data directory of a node that is stopped; exit code 1 names damage
    Inspect(InspectArgs),
    /// Make the secret that the nodes of a cluster prove to each other
    Secret(SecretArgs),
    /// Show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
struct StartArgs {
    #[command(flatten)]
    settings: ConfigArgs,
    /// End as soon as standard input is closed: the process that holds its other end is gone
    #[arg(long, hide = true)]
    exit_with_parent: bool,
    /// For tests only: milliseconds by which the wall clock of this node is made wrong
    #[arg(long, hide = true, default_value_t = 0, allow_negative_numbers = true)]
    clock_offset_ms: i64,
}

#[derive(Debug, Args)]
struct SecretArgs {
    /// File to write it to; an existing one is never overwritten [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep the file if there is one with a secret
    #[arg(long, requires = "out")]
    if_absent: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every effective setting and where it came from, and how the memory is divided
    Show(Box<ConfigArgs>),
}

#[derive(Debug, Args)]
struct HealthArgs {
    /// Ask whether the node takes requests [default]
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Ask whether the node's threads make progress, even if it does not take requests yet
    #[arg(long)]
    live: bool,
    /// Client address of the node [default: --listen of a node started with the same environment
    /// and --config]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,
    /// TOML file with the settings of the node [env: QUORATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long to wait for the answer: 2s, 500ms, or a number of seconds [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    timeout: Option<Duration>,
}

/// Runs the command line of this process and says how it ends.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => {
            quorate_node::log::flush();
            ExitCode::from(code)
        }
        Err(fatal) => {
            fatal.report();
            ExitCode::from(fatal.code())
        }
    }
}

fn run(cli: Cli) -> Result<u8, Fatal> {
    match cli.command {
        Command::Dev(args) => dev::run(&args),
        Command::Start(args) => {
            allocator::give_back_large();
            start(*args).map(|()| 0)
        }
        Command::Health(args) => health(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Secret(args) => secret(&args).map(|()| 0),
        Command::Config(ConfigCommand::Show(args)) => show(*args),
        Command::Version => {
            print(&format!("kvnode {VERSION}\n"));
            Ok(0)
        }
    }
}

fn start(args: StartArgs) -> Result<(), Fatal> {
    let environment = Environment::of_process();
    let resolved = resolve(args.settings, &environment)?;
    resolved.config.validate().map_err(usage)?;
    telemetry::init(&resolved.config.log_filter, resolved.config.log_format)
        .map_err(Fatal::Usage)?;
    for warning in environment.warnings() {
        tracing::warn!("{warning}");
    }
    if args.clock_offset_ms != 0 {
        tracing::warn!(
            offset_ms = args.clock_offset_ms,
            "clock: made wrong on purpose by --clock-offset-ms, which is for tests; never start a \
             node that holds data you want to keep like this"
        );
        quorate_node::make_wall_clock_wrong(args.clock_offset_ms);
    }
    if args.exit_with_parent {
        dev::exit_with_parent();
    }
    quorate_node::run(resolved.config)
}

fn secret(args: &SecretArgs) -> Result<(), Fatal> {
    match &args.out {
        Some(path) => secret::create(path, args.if_absent),
        None => {
            print(&secret::draw());
            Ok(())
        }
    }
}

fn show(args: ConfigArgs) -> Result<u8, Fatal> {
    let environment = Environment::of_process();
    let resolved = resolve(args, &environment)?;
    print(&config::table(&resolved));
    for warning in environment.warnings() {
        eprintln!("kvnode: {warning}");
    }
    // The table comes first, because it shows where a refused value came from.
    resolved.config.validate_shown().map_err(usage)?;
    Ok(0)
}

fn health(args: HealthArgs) -> Result<u8, Fatal> {
    let question = if args.live { Question::Live } else { Question::Ready };
    let endpoint = match args.endpoint {
        // Not by the parser of the command line: that repeats what it refuses, a password too.
        Some(endpoint) => endpoint
            .parse::<HostPort>()
            .map_err(|reason| Fatal::Usage(format!("--endpoint: {reason}")))?,
        None => {
            let settings = ConfigArgs::from_file(args.config);
            let resolved = resolve(settings, &Environment::of_process())?;
            health_probe::reachable(resolved.config.listen)
        }
    };
    let timeout = args.timeout.unwrap_or(Duration::from_secs(2));
    let answer = health_probe::ask(&endpoint, question, timeout);
    let (well, sentence) = match answer {
        Ok(sentence) => (true, sentence),
        Err(sentence) => (false, sentence),
    };
    print(&format!("{sentence}\n"));
    Ok(u8::from(!well))
}

/// A duration as the settings take it, or plain seconds.
fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => config::parse_duration(text)?,
    };
    if timeout.is_zero() {
        return Err("the timeout must not be zero; expected a duration such as 2s".to_owned());
    }
    Ok(timeout)
}

/// Reads the configuration file, if there is one, and puts all layers together.
fn resolve(args: ConfigArgs, environment: &Environment) -> Result<Resolved, Fatal> {
    let path = match &args.config {
        Some(path) => Some(path.clone()),
        None => environment.get(config::CONFIG_VARIABLE).map(PathBuf::from),
    };
    let file = match path {
        Some(path) => {
            let read = std::fs::read(&path).map_err(|error| error.to_string());
            let text = read.and_then(config::utf8_text).map_err(|reason| {
                Fatal::Usage(format!(
                    "cannot read the configuration file {}: {reason} (--config or {})",
                    path.display(),
                    config::CONFIG_VARIABLE
                ))
            })?;
            Some((path, text))
        }
        None => None,
    };
    let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
    let layers = Layers::new(args.into_layer(), environment, file).map_err(usage)?;
    config::resolve(&layers, config::default_memory()).map_err(usage)
}

#[expect(clippy::needless_pass_by_value, reason = "it is the function of map_err")]
fn usage(error: ConfigError) -> Fatal {
    Fatal::Usage(error.to_string())
}

/// Prints to standard output. A reader that went away is not a reason to fail.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use quorate_config::Key;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_start_in_the_same_order() {
        let command = Cli::command();
        let start = command.find_subcommand("start").unwrap();
        let no_settings = ["config", "exit-with-parent", "clock-offset-ms", "help"];
        let flags: Vec<_> = start
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .filter(|name| !no_settings.contains(name))
            .collect();
        let keys: Vec<_> = Key::ALL.iter().map(|key| key.name()).collect();
        assert_eq!(flags, keys);
    }

    #[test]
    fn each_flag_reaches_its_own_key() {
        for key in Key::ALL {
            let flag = format!("--{key}=x-{key}");
            let cli = Cli::try_parse_from(["kvnode", "start", &flag]).unwrap();
            let Command::Start(args) = cli.command else { panic!("{key}") };
            let layer: Vec<_> = args.settings.into_layer().into_iter().collect();
            assert_eq!(layer, [(key, format!("x-{key}"))]);
        }
    }
}
