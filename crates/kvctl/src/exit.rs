//! The exit codes: one meaning each, for ever.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// The answer is no: an absent key, a false condition, an unhealthy cluster.
    No = 1,
    /// The command line, its input or an argument of the request is wrong.
    Usage = 2,
    /// Unavailable or overloaded, and certainly not applied: asking again is safe.
    Unavailable = 3,
    /// A write was sent and its outcome is not known.
    Unknown = 4,
    /// Refused: it will not succeed by asking again as it stands.
    Refused = 5,
    /// A defect of kvctl or of a node.
    Bug = 70,
    /// Interrupted with Ctrl-C while no write was out.
    Interrupted = 130,
}

impl Exit {
    /// What weighs most comes first: the code of a command on many items is the first of these
    /// that occurred. An interruption outweighs all of them but an unknown outcome and a bug,
    /// because the items that were never reached have no outcome at all.
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

    /// The code of two items together.
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
    fn many_items_give_the_weightiest() {
        let documented = [Exit::Bug, Exit::Unknown, Exit::Unavailable, Exit::Refused, Exit::Usage];
        for (place, heavy) in documented.into_iter().enumerate() {
            for light in documented[place..].iter().copied().chain([Exit::No, Exit::Done]) {
                assert_eq!(heavy.and(light), heavy);
                assert_eq!(light.and(heavy), heavy);
            }
        }
    }
}
