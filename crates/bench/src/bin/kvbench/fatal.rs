//! Why a run ends without figures.

use std::io;
use std::time::Duration;

/// Why a run ends without figures. Each is a sentence for people.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fatal {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// A signal asked this process to end.
    #[error("interrupted; the servers are ended and their data is removed")]
    Interrupted,
    /// Something on this machine failed: `what` was to be done.
    #[error("{what}: {error}")]
    Machine {
        /// What was to be done, as "cannot …".
        what: String,
        /// Why it failed.
        error: io::Error,
    },
    /// A server ended by itself.
    #[error("node {node} of {store} ended by itself ({how}); the end of its log:\n{log}")]
    Ended {
        /// The name of the store.
        store: &'static str,
        /// The number of the node, from 1.
        node: usize,
        /// Its exit status.
        how: String,
        /// The end of its log.
        log: String,
    },
    /// A cluster did not become ready.
    #[error(
        "{store} is not ready after {} s: node {node} {why}; the end of its log:\n{log}",
        patience.as_secs()
    )]
    NotReady {
        /// The name of the store.
        store: &'static str,
        /// The number of a node that is not ready, from 1.
        node: usize,
        /// What it lacks.
        why: String,
        /// How long it was waited for.
        patience: Duration,
        /// The end of its log.
        log: String,
    },
    /// A slice has no figures.
    #[error("{slice}: {why}")]
    Slice {
        /// What was measured: the store, the operation, the clients.
        slice: String,
        /// Why there is nothing to report.
        why: String,
    },
}

impl Fatal {
    /// A failure of the machine, for `map_err`.
    pub(super) fn machine(what: impl Into<String>) -> impl FnOnce(io::Error) -> Fatal {
        let what = what.into();
        move |error| Fatal::Machine { what, error }
    }

    /// The exit code: 2 bad usage, 130 interrupted, else 1.
    pub(super) fn code(&self) -> u8 {
        match self {
            Fatal::Usage(_) => 2,
            Fatal::Interrupted => 130,
            _ => 1,
        }
    }
}
