//! Small files: reading them, and replacing them so that a crash leaves the old one or the new one
//! whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::record::{Record, RecordError};
use super::{IDENTITY_FILE, IdentityError};

/// The longest `IDENTITY` that is read; a cluster of 1,000 members needs far less.
const IDENTITY_BYTES_MAX: u64 = 1 << 20;

/// The identity in this directory; `None` when there is none.
pub(super) fn read_identity(dir: &Path) -> Result<Option<Record>, IdentityError> {
    let path = dir.join(IDENTITY_FILE);
    let bytes = match fs::metadata(&path) {
        Ok(stat) if stat.len() > IDENTITY_BYTES_MAX => {
            let why = format!("it has {} bytes", stat.len());
            return Err(IdentityError::Damaged { path, why });
        }
        Ok(_) => fs::read(&path).map_err(IdentityError::io("read", &path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(IdentityError::io("read", &path)(error)),
    };
    match Record::from_bytes(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(RecordError::NewerFormat(found)) => {
            Err(IdentityError::NewerFormat { dir: dir.to_owned(), found })
        }
        Err(RecordError::Damaged(why)) => Err(IdentityError::Damaged { path, why }),
    }
}

/// Writes `bytes` to `dir/name`: temporary file, fsync, rename, fsync of the directory. Overwrites
/// a temporary file that an earlier crash left.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let temporary = dir.join(format!("{name}.tmp"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(IdentityError::io("write", &temporary))?;
    let target = dir.join(name);
    fs::rename(&temporary, &target).map_err(IdentityError::io("replace", &target))?;
    sync_dir(dir)
}

/// Makes the names in this directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), IdentityError> {
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .map_err(IdentityError::io("sync the directory", dir))
}
