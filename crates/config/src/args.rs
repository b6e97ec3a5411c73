//! Command-line flags of the settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::Key;
use super::kinds::Value;

/// The settings of a node on the command line. Each can also be given in the environment
/// (`--peer-listen` is `QUORATE_PEER_LISTEN`) and in the file of `--config` (`peer-listen`); a flag
/// wins over the environment, the environment over the file.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// TOML file with settings, each named like its flag [env: QUORATE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    given: Given,
}

impl ConfigArgs {
    /// The arguments with only a configuration file.
    #[must_use]
    pub fn from_file(config: Option<PathBuf>) -> Self {
        Self { config, given: Given::default() }
    }

    /// The layer of the settings that were given as flags.
    #[must_use]
    pub fn into_layer(self) -> BTreeMap<Key, String> {
        self.given.0
    }
}

/// The flags that were given, as text.
#[derive(Debug, Clone, Default)]
struct Given(BTreeMap<Key, String>);

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command.args(Key::ALL.map(Key::flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: Key| Some((key, matches.get_one::<String>(key.name())?.clone()));
        Ok(Self(Key::ALL.into_iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// The flag of one row of the table. Its help is the first paragraph of the row's `doc` and, if the
/// row has a plain one, its `default`.
pub(super) fn flag<T: Value>(name: &'static str, doc: &[&str], default: &[T]) -> Arg {
    let paragraph = doc.iter().map(|line| line.trim()).take_while(|line| !line.is_empty());
    let default = default.iter().map(|value| format!("[default: {}]", value.written()));
    let help: Vec<_> = paragraph.map(str::to_owned).chain(default).collect();
    let flag = Arg::new(name).long(name).value_name(T::NAME).help(help.join(" "));
    match T::BARE {
        Some(bare) => flag.num_args(0..=1).default_missing_value(bare).require_equals(true),
        None => flag,
    }
}
