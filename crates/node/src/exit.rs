//! End of the process: one exit code per reason, and the panic hook.
//!
//! A panic means that an invariant does not hold, and later results of the process cannot be
//! trusted: a panic of any thread therefore ends the whole process immediately with code 70, and
//! the other replicas continue. Exempt are operations on bytes that may be damaged, whose result
//! can be discarded as a whole: opening the storage, from the engine to the last replica, and the
//! quarantined apply of one shard, which run inside [`quorate_engine::quarantine::guarded`]; and
//! each call of the storage engine, which turns a panic into an error itself.

use std::panic::PanicHookInfo;

use quorate_engine::quarantine::{is_guarded, payload_text};
use quorate_storage::StorageError;

use crate::log;

/// Reasons for which the process ends without a request. Each has one exit code, which never
/// changes; the text is a sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The command line, the environment or the configuration file cannot be used (exit 2).
    #[error("{0}")]
    Usage(String),
    /// The data directory belongs to another node, cluster or incarnation, or the cluster does not
    /// know this node (exit 10).
    #[error("{0}")]
    Identity(String),
    /// Another process uses the data directory (exit 11).
    #[error("{0}")]
    InUse(String),
    /// The data directory was written in a format newer than this program knows (exit 12).
    #[error("{0}")]
    NewerFormat(String),
    /// An address to listen on is in use, or cannot be bound for another reason (exit 13).
    #[error("{0}")]
    AddressTaken(String),
    /// The storage failed while the node was running (exit 20).
    #[error("{0}")]
    Storage(String),
    /// A barrier failed: it is unknown which of its writes are durable (exit 21).
    #[error("{0}")]
    Fsync(String),
    /// A panic, or an internal inconsistency found without one (exit 70).
    #[error("{0}")]
    Bug(String),
}

impl Fatal {
    /// The exit code of this reason.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Identity(_) => 10,
            Self::InUse(_) => 11,
            Self::NewerFormat(_) => 12,
            Self::AddressTaken(_) => 13,
            Self::Storage(_) => 20,
            Self::Fsync(_) => 21,
            Self::Bug(_) => 70,
        }
    }

    /// Logs the reason and ends the process, from any thread: no destructor runs, nothing but the
    /// log is flushed. Data that must survive is already durable.
    pub fn end_process(&self) -> ! {
        self.report();
        std::process::exit(i32::from(self.code()))
    }

    /// Reports the reason once: in the log if it accepts errors, otherwise as text on stderr. Waits
    /// at most a second for its reader.
    pub fn report(&self) {
        if tracing::dispatcher::has_been_set() && tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!(exit_code = self.code(), "{self}");
        } else {
            log::line(&format!("kvnode: {self}"));
        }
        log::flush();
    }
}

impl From<&StorageError> for Fatal {
    /// The exit reason of a storage failure in a running node.
    fn from(error: &StorageError) -> Self {
        if error.is_barrier_failure() {
            Self::Fsync(error.to_string())
        } else {
            Self::Storage(error.to_string())
        }
    }
}

/// Ends the process for a storage failure: it is unknown which writes are durable.
pub fn end_for_storage(error: &StorageError) -> ! {
    Fatal::from(error).end_process()
}

/// Makes every panic outside a guarded section end the process with code 70.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let fatal = Fatal::Bug(panic_sentence(info));
        if is_guarded() {
            tracing::warn!("panic: caught in a guarded section; {fatal}");
        } else {
            // The hook runs before unwinding begins, so no destructor sees the broken state.
            fatal.end_process();
        }
    }));
}

fn panic_sentence(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
    let backtrace = std::backtrace::Backtrace::capture();
    let mut sentence = format!("thread {name} panicked{place}: {}", payload_text(info.payload()));
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        sentence.push_str(&format!("\n{backtrace}"));
    }
    sentence
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use quorate_engine::FatalHook;
    use quorate_engine::quarantine::{Panicked, guarded, guarded_open};
    use quorate_engine::testing::{GROUP, Node, TEST_LIMITS, put};
    use quorate_storage::{DatabaseOptions, LogBackend};

    use super::*;

    #[test]
    fn every_reason_has_its_own_code() {
        let text = String::new;
        let codes = [
            Fatal::Usage(text()),
            Fatal::Identity(text()),
            Fatal::InUse(text()),
            Fatal::NewerFormat(text()),
            Fatal::AddressTaken(text()),
            Fatal::Storage(text()),
            Fatal::Fsync(text()),
            Fatal::Bug(text()),
        ]
        .map(|fatal| fatal.code());
        assert_eq!(codes, [2, 10, 11, 12, 13, 20, 21, 70]);
    }

    /// Writes on a node whose syncs all end like this once it leads.
    fn write_on(disk: fn() -> io::Result<()>) {
        let is_bad = Arc::new(AtomicBool::new(false));
        let is_bad_now = is_bad.clone();
        let before_sync = Arc::new(move |_: &Path| match is_bad_now.load(Ordering::SeqCst) {
            true => disk(),
            false => Ok(()),
        });
        let options = DatabaseOptions { before_sync, ..DatabaseOptions::default() };
        let ends = (FatalHook(end_for_storage), Duration::from_secs(2));
        let node = Node::with_parts(TEST_LIMITS, 8 << 20, options, LogBackend::Sled, ends);
        node.lead(GROUP, 1);
        is_bad.store(true, Ordering::SeqCst);
        let _ = node.propose(GROUP, put(GROUP, "key", 10)).blocking_recv();
    }

    /// Chooses what [`a_process_to_watch`] does.
    const SCENE: &str = "EXIT_TEST_SCENE";

    /// Not a test of its own: the process that the tests below start, because the end of a process
    /// can only be observed from outside.
    #[test]
    fn a_process_to_watch() {
        let Ok(scene) = std::env::var(SCENE) else { return };
        install_panic_hook();
        let quietly = |name: &str, f: fn()| {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(f).unwrap();
            let _ = thread.join();
        };
        match scene.as_str() {
            "thread" => quietly("worker", || panic!("the invariant {} does not hold", 7)),
            "guarded" => {
                let result = guarded(|| -> u8 { panic!("damaged") });
                assert_eq!(result, Err(Panicked { message: "damaged".to_owned() }));
            }
            "after guarded" => {
                let _ = guarded(|| panic!("damaged"));
                panic!("and then for real");
            }
            "engine thread while opening" => {
                let result = guarded_open(|| quietly("sled-io-1", || panic!("damaged")));
                assert_eq!(result, Ok(()));
            }
            "engine thread later" => {
                let _ = guarded_open(|| ());
                quietly("sled-io-1", || panic!("damaged"));
            }
            "another thread while opening" => {
                let _ = guarded_open(|| quietly("worker", || panic!("unrelated")));
            }
            "disk that fails" => write_on(|| Err(io::Error::other("no medium"))),
            "disk that hangs" => write_on(|| {
                loop {
                    std::thread::park();
                }
            }),
            other => unreachable!("{other}"),
        }
        std::process::exit(33);
    }

    fn watch(scene: &str) -> (Option<i32>, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "exit::tests::a_process_to_watch", "--nocapture"])
            .env(SCENE, scene)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn a_process_ends_with_the_code_of_its_reason_and_continues_after_a_guarded_panic() {
        for (scene, code) in [
            ("thread", 70),
            ("guarded", 33),
            ("after guarded", 70),
            ("engine thread while opening", 33),
            ("engine thread later", 70),
            ("another thread while opening", 70),
            ("disk that fails", 21),
            ("disk that hangs", 21),
        ] {
            let (ended, said) = watch(scene);
            assert_eq!(ended, Some(code), "{scene}: {said}");
        }
    }

    #[test]
    fn a_barrier_that_fails_or_hangs_is_reported_in_a_sentence() {
        let endings =
            [("disk that fails", "): no medium"), ("disk that hangs", "not returned for 2 s")];
        for (scene, ending) in endings {
            let (_, said) = watch(scene);
            let begin = "kvnode: a write could not be made durable (fdatasync of ";
            let line = said.lines().find(|line| line.starts_with(begin));
            let line = line.unwrap_or_else(|| panic!("{scene}: {said}"));
            assert!(line.contains("/sled/db") && line.ends_with(ending), "{line}");
        }
    }

    #[test]
    fn a_panic_names_its_thread_and_reason() {
        let (_, said) = watch("thread");
        assert!(
            said.contains("kvnode: thread worker panicked at crates/node/src/exit.rs:"),
            "{said}"
        );
        assert!(said.contains("the invariant 7 does not hold"), "{said}");
    }
}
