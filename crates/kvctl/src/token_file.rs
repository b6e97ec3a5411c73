//! Token file: a small JSON file that keeps the session token between calls and is easy to read for
//! other programs.
//!
//! ```json
//! {"cluster_id":"…","history":"…","map_epoch":3,"parts":[{"shard":1,"index":812}]}
//! ```
//!
//! The file is locked while it is read, merged and written, so that parallel calls do not overwrite
//! each other's entries.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::wire::{SessionToken, SessionTokenPart};

/// The file of `--token-file`.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    cluster_id: String,
    history: String,
    map_epoch: u64,
    parts: Vec<StoredPart>,
}

#[derive(Deserialize, Serialize)]
struct StoredPart {
    shard: u64,
    index: u64,
}

impl TokenFile {
    /// The token file at `path`. It need not exist; the first [`TokenFile::check`] creates it.
    pub fn new(path: &Path) -> TokenFile {
        TokenFile { path: path.to_owned() }
    }

    /// Reads the token of earlier calls; `None` if the file is absent or empty.
    pub fn read(&self) -> Result<Option<SessionToken>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file(&self.path, &error)),
        };
        flock(&file, FlockOperation::LockShared).map_err(|error| self.failed(&error.into()))?;
        self.parse(&mut file)
    }

    /// Checks that the file can be written. Called before the first request, so that a failure
    /// means that nothing was done.
    pub fn check(&self) -> Result<()> {
        self.open().map(drop)
    }

    fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(&self.path).map_err(|error| self.failed(&error))
    }

    /// Merges the token of this call into the file.
    pub fn merge(&self, seen: &SessionToken) -> Result<()> {
        let failed = |error| self.failed(&error);
        let mut file = self.open()?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        let mut token = self.parse(&mut file)?.unwrap_or_default();
        token.merge(seen).map_err(|_| {
            let path = self.path.display();
            Failure::of(
                Exit::Refused,
                format!(
                    "{path} holds the token of another cluster, or of this one before a restore; \
                     remove the file to start over"
                ),
            )
        })?;
        let stored = Stored {
            cluster_id: hex::encode(&token.cluster_id),
            history: hex::encode(&token.history),
            map_epoch: token.map_epoch,
            parts: (token.parts.iter())
                .map(|part| StoredPart { shard: part.shard, index: part.index })
                .collect(),
        };
        let mut text = serde_json::to_vec(&stored).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        // Written in place and in one write, because the lock is on this very file.
        file.rewind().map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.set_len(text.len() as u64).map_err(failed)
    }

    fn parse(&self, file: &mut File) -> Result<Option<SessionToken>> {
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| self.failed(&error))?;
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |what: String| {
            let path = self.path.display();
            Failure::usage(format!("{path} does not hold a session token: {what}"))
        };
        let stored: Stored =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let id = |name: &str, text: &str| match hex::decode(text) {
            Ok(id) if id.len() == 16 => Ok(bytes::Bytes::from(id)),
            _ => Err(wrong(format!("{name} is not 32 hexadecimal digits"))),
        };
        Ok(Some(SessionToken {
            cluster_id: id("cluster_id", &stored.cluster_id)?,
            history: id("history", &stored.history)?,
            map_epoch: stored.map_epoch,
            parts: (stored.parts.iter())
                .map(|part| SessionTokenPart { shard: part.shard, index: part.index })
                .collect(),
        }))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::file(&self.path, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(cluster: u8, parts: &[(u64, u64)]) -> SessionToken {
        SessionToken {
            cluster_id: vec![cluster; 16].into(),
            history: vec![7; 16].into(),
            map_epoch: 3,
            parts: (parts.iter())
                .map(|&(shard, index)| SessionTokenPart { shard, index })
                .collect(),
        }
    }

    #[test]
    fn a_merge_keeps_the_greatest_index_of_each_shard() {
        let directory = tempfile::tempdir().unwrap();
        let file = TokenFile::new(&directory.path().join("token"));
        assert_eq!(file.read().unwrap(), None);
        file.merge(&token(1, &[(1, 1_000_000), (2, 5)])).unwrap();
        file.merge(&token(1, &[(1, 9), (3, 4)])).unwrap();
        let read = file.read().unwrap().unwrap();
        assert_eq!([1, 2, 3].map(|shard| read.index_of(shard)), [1_000_000, 5, 4]);
        assert_eq!(read.cluster_id, token(1, &[]).cluster_id);
    }

    /// Scripts keep the file, and newer and older kvctls share it.
    #[test]
    fn the_text_is_fixed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let file = TokenFile::new(&path);
        file.merge(&token(1, &[(1, 812), (2, 5)])).unwrap();
        let text = concat!(
            r#"{"cluster_id":"01010101010101010101010101010101","#,
            r#""history":"07070707070707070707070707070707","map_epoch":3,"#,
            r#""parts":[{"shard":1,"index":812},{"shard":2,"index":5}]}"#,
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text}\n"));
        let newer = text.replace("\"parts\"", "\"added\":true,\"parts\"");
        std::fs::write(&path, newer).unwrap();
        assert_eq!(file.read().unwrap(), Some(token(1, &[(1, 812), (2, 5)])), "a field is added");
    }

    #[test]
    fn a_foreign_token_and_a_malformed_file_are_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let file = TokenFile::new(&path);
        file.merge(&token(1, &[(1, 1)])).unwrap();
        let before = std::fs::read(&path).unwrap();
        let foreign = file.merge(&token(2, &[(1, 2)])).unwrap_err();
        assert_eq!(foreign.exit, Exit::Refused);
        assert_eq!(std::fs::read(&path).unwrap(), before, "a refused merge left its mark");

        std::fs::write(
            &path,
            "{\"cluster_id\":\"00\",\"history\":\"\",\"map_epoch\":1,\"parts\":[]}",
        )
        .unwrap();
        let wrong = file.read().unwrap_err();
        assert_eq!(wrong.exit, Exit::Usage);
        assert!(wrong.message.ends_with("cluster_id is not 32 hexadecimal digits"), "{wrong}");
    }
}
