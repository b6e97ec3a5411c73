//! JSON lines: one JSON object per line, with `key` and `value`, or `key_base64` and `value_base64`
//! for bytes that are not UTF-8. Every JSON output of kvctl has these names.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{from_base64, to_base64};

/// Other fields are ignored, so that `scan -o json` can be loaded too.
#[derive(Default, Deserialize, Serialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

pub fn parse(text: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let line: Line = serde_json::from_slice(text)
        .map_err(|error| format!("is not a JSON object with a key and a value: {}", why(&error)))?;
    let key = one_of("key", line.key, line.key_base64)?;
    let value = one_of("value", line.value, line.value_base64)?;
    Ok((key, value))
}

/// The message of a JSON error without the parser's line number: the parser sees only one line.
pub fn why(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

/// The bytes of a field that is given either as text or in base64.
pub fn one_of(name: &str, text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => {
            from_base64(&base64).map_err(|error| format!("{name}_base64 is not base64: {error}"))
        }
        (None, None) => Err(format!("expected {name} or {name}_base64")),
        (Some(_), Some(_)) => Err(format!("expected only one of {name} and {name}_base64")),
    }
}

pub fn write(output: &mut impl Write, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut line = Line::default();
    match str::from_utf8(key) {
        Ok(text) => line.key = Some(text.to_owned()),
        Err(_) => line.key_base64 = Some(to_base64(key)),
    }
    match str::from_utf8(value) {
        Ok(text) => line.value = Some(text.to_owned()),
        Err(_) => line.value_base64 = Some(to_base64(value)),
    }
    serde_json::to_writer(&mut *output, &line)?;
    output.write_all(b"\n")
}
