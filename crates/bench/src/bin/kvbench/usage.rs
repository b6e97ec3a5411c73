//! What processes and directories take, as Linux counts it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// What a process has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time of all its threads, also of those that ended, in user and kernel mode.
    pub(super) cpu: Duration,
    /// Resident memory in bytes; mapped files count with the pages that are in memory.
    pub(super) resident: u64,
}

/// What the process with this id takes.
///
/// # Errors
/// There is no such process, or `/proc` has another form than Linux documents.
pub(super) fn of_process(pid: u32) -> io::Result<Usage> {
    let malformed = |file: &str| {
        let message = format!("/proc/{pid}/{file} has a form that is not known here");
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = cpu_ticks(&stat).ok_or_else(|| malformed("stat"))?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let cpu = Duration::from_secs_f64(ticks as f64 / per_second as f64);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = resident_bytes(&status).ok_or_else(|| malformed("status"))?;
    Ok(Usage { cpu, resident })
}

/// `utime` + `stime` of the text of `/proc/PID/stat`, in clock ticks.
///
/// The second field is the program's name in parentheses, which may hold spaces and parentheses
/// itself: the fields are counted from the last one.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    // Field 3, the state, is the first here; `utime` is field 14 and `stime` field 15.
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    user.checked_add(kernel)
}

/// `VmRSS` of the text of `/proc/PID/status`, in bytes; a zombie has none, which is 0.
fn resident_bytes(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let Some(line) = lines.find_map(|line| line.strip_prefix("VmRSS:")) else {
        return status.contains("State:").then_some(0);
    };
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Bytes of all files below a directory, as allocated on the disk. What vanishes meanwhile is not
/// counted.
///
/// # Errors
/// A directory or file cannot be read.
pub(super) fn of_directory(directory: &Path) -> io::Result<u64> {
    /// The unit of `st_blocks`, whatever the file system's blocks are.
    const BLOCK: u64 = 512;
    let mut bytes = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => open.push(path),
                Ok(metadata) => bytes += metadata.blocks() * BLOCK,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_odd_names() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 250 40 11 12 20 0 9 0 8117 0 0";
        for name in ["etcd", "a b", "a) b (c", ") S 1 2 3", "(", "tokio-runtime-w"] {
            assert_eq!(cpu_ticks(&format!("77 ({name}) {rest}")), Some(290), "{name}");
        }
        for malformed in ["", "77 (etcd", "77 (etcd) S 1 2", "77 (e) S 1 2 3 4 5 6 7 8 9 10 x 1"] {
            assert_eq!(cpu_ticks(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        let status = "Name:\tVmRSS:\nState:\tS (sleeping)\nVmHWM:\t  90 kB\nVmRSS:\t   12 kB\n";
        assert_eq!(resident_bytes(status), Some(12 * 1024));
        assert_eq!(resident_bytes("Name:\tx\nState:\tZ (zombie)\n"), Some(0));
        assert_eq!(resident_bytes("State:\tS\nVmRSS:\t12 pages\n"), None);
        assert_eq!(resident_bytes(""), None);
    }

    #[test]
    fn this_process_takes_something() {
        let begun = std::time::Instant::now();
        let before = of_process(std::process::id()).unwrap();
        assert!(before.resident > 100_000, "{before:?}");
        let mut sum = 0u64;
        while of_process(std::process::id()).unwrap().cpu == before.cpu {
            sum = (0..100_000).fold(sum, |sum, n| sum.wrapping_mul(31).wrapping_add(n));
            assert!(begun.elapsed() < Duration::from_secs(60), "no time is counted: {sum}");
        }
    }

    #[test]
    fn a_directory_counts_with_all_below_it() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(of_directory(home.path()).unwrap(), 0);
        fs::create_dir_all(home.path().join("a/b")).unwrap();
        fs::write(home.path().join("a/b/c"), vec![1; 100_000]).unwrap();
        fs::File::open(home.path().join("a/b/c")).unwrap().sync_all().unwrap();
        let used = of_directory(home.path()).unwrap();
        assert!((98_304..=200_000).contains(&used), "{used}");
        assert_eq!(of_directory(&home.path().join("none")).unwrap(), 0);
    }
}
