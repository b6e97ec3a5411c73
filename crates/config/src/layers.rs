//! Layers of settings as text: flags, environment and file, before values are parsed.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::source::Source;
use super::{ConfigError, Key};

/// The environment variables of this program.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// The prefix of all variables of this program.
const PREFIX: &str = "QUORATE_";

/// Variables with the prefix that are not settings: those of the tests and the fault switches.
const FOREIGN: [&str; 6] = [
    "QUORATE_BIN_DIR",
    "QUORATE_KILLS",
    "QUORATE_REQUIRE",
    "QUORATE_SEED",
    "QUORATE_SEEDED_BUG",
    "QUORATE_SKIPPED",
];

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "QUORATE_CONFIG";

impl Environment {
    /// The environment of this process. In variables that are not UTF-8 the invalid bytes are
    /// replaced, so that they cause an error where they are used and are not silently ignored.
    #[must_use]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os();
        Self::from_pairs(variables.map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        }))
    }

    /// An environment of these variables.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }

    /// The value of a variable. An empty one counts as not set, because compose files set empty
    /// variables.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A sentence for each variable that has the prefix but is not known.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let known: Vec<String> = Key::ALL.iter().map(|key| key.env()).collect();
        let is_known = |name: &str| {
            known.iter().any(|known| known == name)
                || name == CONFIG_VARIABLE
                || FOREIGN.contains(&name)
        };
        let unknown = self.0.keys().filter(|name| !is_known(name));
        let candidates = known.iter().map(String::as_str).chain([CONFIG_VARIABLE]);
        unknown
            .map(|name| {
                let hint = nearest(name, candidates.clone())
                    .map_or_else(String::new, |near| format!("; did you mean {near}?"));
                format!("the environment variable {name} is unknown and ignored{hint}")
            })
            .collect()
    }
}

/// The settings of the three layers above the defaults, as text.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<Key, (String, Source)>,
}

impl Layers {
    /// Merges the layers. `file` is the path and the text of the configuration file.
    ///
    /// # Errors
    /// The file is not TOML, or contains an unknown key or a value of an unsupported type.
    pub fn new(
        flags: BTreeMap<Key, String>,
        environment: &Environment,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigError> {
        let mut values = match file {
            Some((path, text)) => read_file(path, text)?,
            None => BTreeMap::new(),
        };
        for key in Key::ALL {
            if let Some(value) = environment.get(&key.env()) {
                values.insert(key, (value.to_owned(), Source::Environment(key.env())));
            }
        }
        values.extend(flags.into_iter().map(|(key, value)| (key, (value, Source::Flag))));
        Ok(Self { values })
    }

    /// The text and the source of a setting; none if it has its default.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&(String, Source)> {
        self.values.get(&key)
    }
}

/// The text of a configuration file, which may begin with a byte order mark.
///
/// # Errors
/// A sentence, if it is not UTF-8.
pub fn utf8_text(bytes: Vec<u8>) -> Result<String, String> {
    let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    String::from_utf8(bytes).map_err(|error| match is_utf16 {
        true => "it begins with the byte order mark of UTF-16; it must be UTF-8".to_owned(),
        false => format!("it is not UTF-8: {error}"),
    })
}

fn read_file(path: &Path, text: &str) -> Result<BTreeMap<Key, (String, Source)>, ConfigError> {
    let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
    let at = |line: usize| format!("{}:{line}", path.display());
    let table = DeTable::parse(text).map_err(|error| {
        let line = line_at(error.span().map_or(0, |span| span.start));
        ConfigError::File(format!("{}: {}", at(line), error.message()))
    })?;
    let mut values = BTreeMap::new();
    for (name, value) in table.get_ref() {
        let line = line_at(name.span().start);
        let name = name.get_ref();
        let Some(key) = Key::from_name(name) else {
            let hint = nearest(name, Key::ALL.iter().map(|key| key.name()))
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(ConfigError::File(format!("{}: unknown key {name}{hint}", at(line))));
        };
        let value = scalar_text(value.get_ref()).ok_or_else(|| {
            let kind = value.get_ref().type_str();
            ConfigError::File(format!(
                "{}: {key} has the type {kind}; expected a string, a number, true or false, or a \
                 list of strings",
                at(line)
            ))
        })?;
        values.insert(key, (value, Source::File(path.to_owned(), line)));
    }
    Ok(values)
}

/// A TOML value as the text of the same setting on the command line, where a list of strings is
/// separated by commas.
fn scalar_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().replace('_', "")),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            Some(texts?.join(","))
        }
        _ => None,
    }
}

/// The candidate that is most similar to `name`, if one is similar enough.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The common prefix says nothing about which variable was meant.
    let plain = |name: &str| name.trim_start_matches(PREFIX).to_lowercase().replace('_', "-");
    let written = plain(name);
    let scored =
        candidates.map(|candidate| (strsim::jaro_winkler(&written, &plain(candidate)), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.8).then_some(best.1)
}
