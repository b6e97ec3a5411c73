//! Resolution: parses layers of text into a [`Config`].

use std::collections::BTreeMap;

use quorate_raft::NodeId;

use super::kinds::Value;
use super::layers::Layers;
use super::source::Source;
use super::value::{self, HostPort};

use super::{Config, ConfigError, Key};

/// The effective value of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The setting.
    pub key: Key,
    /// Its value, as on the command line; empty if there is none.
    pub value: String,
    /// The source of the value.
    pub source: Source,
}

/// A parsed configuration. It is not checked yet: see [`Config::validate`].
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings of the node. The data directory is empty if none was given.
    pub config: Config,
    /// Every setting with its source, in the order of [`Key::ALL`].
    pub settings: Vec<Effective>,
}

/// Parses every setting from its layer, or computes its default. `default_memory` is the result of
/// [`default_memory`](super::default_memory) on this machine.
///
/// # Errors
/// The first value that cannot be parsed.
pub fn resolve(layers: &Layers, default_memory: u64) -> Result<Resolved, ConfigError> {
    let (config, settings) = Config::read(&Reader { layers, default_memory })?;
    Ok(Resolved { config, settings })
}

/// Reader of the settings: the layers, and the facts of the machine that defaults need.
pub(super) struct Reader<'a> {
    layers: &'a Layers,
    /// The default of `--memory`, in bytes.
    pub default_memory: u64,
}

impl Reader<'_> {
    /// The value of a setting from its layer, else its default. Adds it with its source to
    /// `settings`.
    pub fn read<T: Value>(
        &self,
        key: Key,
        settings: &mut Vec<Effective>,
        default: impl FnOnce() -> (T, &'static str),
    ) -> Result<T, ConfigError> {
        let (value, source) = match self.given(key)? {
            Some(given) => given,
            None => {
                let (value, why) = default();
                (value, Source::Default(why))
            }
        };
        settings.push(Effective { key, value: value.written(), source });
        Ok(value)
    }

    /// Whether a setting is given and does not have its default.
    pub fn is_given(&self, key: Key) -> bool {
        self.layers.get(key).is_some()
    }

    fn given<T: Value>(&self, key: Key) -> Result<Option<(T, Source)>, ConfigError> {
        let Some((text, source)) = self.layers.get(key) else { return Ok(None) };
        let origin = source.clone();
        match T::parse(text) {
            Ok(value) => Ok(Some((value, origin))),
            Err(reason) if value::has_user_information(text) => {
                Err(ConfigError::Hidden { key, origin, reason })
            }
            Err(reason) => Err(ConfigError::Value { key, value: text.clone(), origin, reason }),
        }
    }

    /// The address of a node in `initial-cluster`, if that was given. An entry that cannot be
    /// parsed is reported when `initial-cluster` itself is read.
    pub fn initial_address(&self, node: NodeId) -> Option<HostPort> {
        self.initial_cluster()?.remove(&node)
    }

    /// The same, where `initial-cluster` has other nodes too.
    pub fn initial_among_others(&self, node: NodeId) -> Option<HostPort> {
        let mut nodes = self.initial_cluster()?;
        if nodes.len() > 1 { nodes.remove(&node) } else { None }
    }

    fn initial_cluster(&self) -> Option<BTreeMap<NodeId, HostPort>> {
        Some(self.given(Key::InitialCluster).ok()??.0)
    }
}
