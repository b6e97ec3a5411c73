//! Exit codes. The meaning of each is fixed forever.

use std::process::ExitCode;

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// Negative answer: an absent key, a false condition, an unhealthy cluster.
    No = 1,
    /// Invalid usage: the command line, its input or an argument of the request is wrong.
    Usage = 2,
    /// Unavailable or overloaded, and certainly not applied: a retry is safe.
    Unavailable = 3,
    /// The outcome of a write is unknown.
    Unknown = 4,
    /// Rejected: the same request will be rejected again.
    Refused = 5,
    /// Internal error: a bug of kvctl or of a node.
    Bug = 70,
    /// Interrupted with Ctrl-C while no write was in flight.
    Interrupted = 130,
}

impl Exit {
    /// The codes, weightiest first: a command on many items ends with the first of these that
    /// occurred. Only an unknown outcome and a bug outweigh an interruption, because the items that
    /// were never reached have no outcome at all.
    const BY_WEIGHT: [Exit; 8] = [
        Exit::Bug,
        Exit::Unknown,
        Exit::Interrupted,
        Exit::Unavailable,
        Exit::Refused,
        Exit::Usage,
        Exit::No,
        Exit::Done,
    ];

    /// The weightier of two codes: the code of two items together.
    #[must_use]
    pub fn and(self, other: Exit) -> Exit {
        let weight = |exit| Exit::BY_WEIGHT.iter().position(|candidate| *candidate == exit);
        if weight(other) < weight(self) { other } else { self }
    }

    /// The code as the process returns it.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_documented_ones() {
        let codes = Exit::BY_WEIGHT.map(Exit::code);
        assert_eq!(codes, [70, 4, 130, 3, 5, 2, 1, 0]);
    }

    #[test]
    fn many_items_end_with_the_weightiest_code() {
        let documented = [Exit::Bug, Exit::Unknown, Exit::Unavailable, Exit::Refused, Exit::Usage];
        for (place, heavy) in documented.into_iter().enumerate() {
            for light in documented[place..].iter().copied().chain([Exit::No, Exit::Done]) {
                assert_eq!(heavy.and(light), heavy);
                assert_eq!(light.and(heavy), heavy);
            }
        }
    }
}
