//! The text of `IDENTITY`: lines `key=value` in a fixed order, the last one a CRC32C of all lines
//! before it.

use std::collections::BTreeMap;
use std::fmt::Write;

use quorate_raft::NodeId;

use super::{ClusterId, FORMAT, Formed, Incarnation};

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number given by `--node-id`.
    pub node_id: NodeId,
    /// The random number drawn when the directory was new.
    pub incarnation: Incarnation,
    /// Number of process starts on this directory.
    pub boot_counter: u64,
    /// Whether the storage was created here.
    pub storage_created: bool,
    /// The agreement of the cluster; `None` before it.
    pub formed: Option<Formed>,
}

/// Error type: the text is not a record of this version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    NewerFormat(u64),
    Damaged(String),
}

fn damaged(why: impl Into<String>) -> RecordError {
    RecordError::Damaged(why.into())
}

impl Record {
    pub(super) fn to_text(&self) -> String {
        let mut lines = vec![
            format!("format={FORMAT}"),
            format!("node_id={}", self.node_id.0),
            format!("incarnation={}", self.incarnation),
            format!("boot_counter={}", self.boot_counter),
            format!("storage_created={}", self.storage_created),
            format!("formed={}", self.formed.is_some()),
        ];
        if let Some(formed) = &self.formed {
            let members: Vec<String> = formed
                .members
                .iter()
                .map(|(node, incarnation)| format!("{}:{incarnation}", node.0))
                .collect();
            lines.push(format!("cluster_id={}", formed.cluster_id));
            lines.push(format!("cluster_name={}", escape(&formed.cluster_name)));
            lines.push(format!("members={}", members.join(",")));
            lines.push(format!("shards={}", formed.shards));
            lines.push(format!("replicas={}", formed.replicas));
        }
        let mut text = lines.join("\n");
        text.push('\n');
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc32c={crc:08x}\n"));
        text
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
        // The format is checked before the checksum: a newer format may have another checksum.
        let first = text.lines().next().unwrap_or_default();
        if let Some(found) = first.strip_prefix("format=").and_then(|v| v.parse::<u64>().ok())
            && found > u64::from(FORMAT)
        {
            return Err(RecordError::NewerFormat(found));
        }
        let body = checked_body(text)?;
        let mut fields = Fields::parse(body)?;
        if fields.number("format")? != u64::from(FORMAT) {
            return Err(damaged("its format is unknown"));
        }
        let node_id = NodeId(fields.number("node_id")?);
        let incarnation = Incarnation(fields.id("incarnation")?);
        let boot_counter = fields.number("boot_counter")?;
        let storage_created = fields.flag("storage_created")?;
        let formed = match fields.flag("formed")? {
            false => None,
            true => Some(Formed {
                cluster_id: ClusterId(fields.id("cluster_id")?),
                cluster_name: unescape(&fields.take("cluster_name")?)?,
                members: parse_members(&fields.take("members")?)?,
                shards: fields.small("shards")?,
                replicas: fields.small("replicas")?,
            }),
        };
        fields.finish()?;
        if let Some(formed) = &formed
            && formed.members.get(&node_id) != Some(&incarnation)
        {
            return Err(damaged("its members do not name this node"));
        }
        Ok(Self { node_id, incarnation, boot_counter, storage_created, formed })
    }
}

/// The text above the checksum line, if the checksum matches.
fn checked_body(text: &str) -> Result<&str, RecordError> {
    let without_newline =
        text.strip_suffix('\n').ok_or_else(|| damaged("its last line is cut off"))?;
    let start = without_newline.rfind('\n').map_or(0, |at| at + 1);
    let (body, last) = without_newline.split_at(start);
    let crc =
        last.strip_prefix("crc32c=").ok_or_else(|| damaged("its checksum line is missing"))?;
    // The exact spelling is compared, so that every byte of the file is checked.
    if crc != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("its checksum does not match"));
    }
    Ok(body)
}

/// The fields that are not yet read.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn parse(body: &str) -> Result<Self, RecordError> {
        let mut fields = BTreeMap::new();
        for line in body.lines() {
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| damaged(format!("expected KEY=VALUE, found {line:?}")))?;
            if fields.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(damaged(format!("{key} occurs twice")));
            }
        }
        Ok(Self(fields))
    }

    fn take(&mut self, key: &str) -> Result<String, RecordError> {
        self.0.remove(key).ok_or_else(|| damaged(format!("{key} is missing")))
    }

    fn number(&mut self, key: &str) -> Result<u64, RecordError> {
        let value = self.take(key)?;
        value.parse().map_err(|_| damaged(format!("{key} is {value:?}; expected a number")))
    }

    fn small(&mut self, key: &str) -> Result<u32, RecordError> {
        let value = self.take(key)?;
        value.parse().map_err(|_| damaged(format!("{key} is {value:?}; expected a number")))
    }

    fn flag(&mut self, key: &str) -> Result<bool, RecordError> {
        let value = self.take(key)?;
        value.parse().map_err(|_| damaged(format!("{key} is {value:?}; expected true or false")))
    }

    fn id(&mut self, key: &str) -> Result<u128, RecordError> {
        let value = self.take(key)?;
        parse_id(&value)
            .ok_or_else(|| damaged(format!("{key} is {value:?}; expected 32 hex digits")))
    }

    fn finish(self) -> Result<(), RecordError> {
        match self.0.into_keys().next() {
            Some(key) => Err(damaged(format!("unknown field {key}"))),
            None => Ok(()),
        }
    }
}

fn parse_id(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn parse_members(text: &str) -> Result<BTreeMap<NodeId, Incarnation>, RecordError> {
    let mut members = BTreeMap::new();
    for part in text.split(',') {
        let member = part.split_once(':').and_then(|(node, incarnation)| {
            Some((NodeId(node.parse().ok()?), Incarnation(parse_id(incarnation)?)))
        });
        let (node, incarnation) =
            member.ok_or_else(|| damaged(format!("expected NODE:INCARNATION, found {part:?}")))?;
        if members.insert(node, incarnation).is_some() {
            return Err(damaged(format!("member {} occurs twice", node.0)));
        }
    }
    Ok(members)
}

/// Keeps a value on its line: writes control characters and `%` as `%` and two hex digits.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_control() || character == '%' {
            // Both are single bytes.
            let _ = write!(escaped, "%{:02x}", character as u32);
        } else {
            escaped.push(character);
        }
    }
    escaped
}

fn unescape(text: &str) -> Result<String, RecordError> {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte {
            Some(byte) if byte.is_ascii() => plain.push(char::from(byte)),
            _ => return Err(damaged(format!("%{part} is not a valid escape"))),
        }
        plain.push_str(&part[2..]);
    }
    Ok(plain)
}
