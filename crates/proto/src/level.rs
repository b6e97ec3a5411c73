//! Read levels: one row for each, with the name that people type and what this version offers.

use crate::v1::ReadLevel;

/// A read level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRow {
    /// Its number on the wire.
    pub level: ReadLevel,
    /// Its name in the command line, in metrics and in messages.
    pub name: &'static str,
    /// Whether this version serves it.
    pub offered: bool,
    /// Whether only what the leader confirms can be answered; any replica may serve the others.
    pub needs_leader: bool,
}

/// Every level, the strongest first.
pub const LEVELS: [LevelRow; 5] = [
    LevelRow {
        level: ReadLevel::Linearizable,
        name: "linearizable",
        offered: true,
        needs_leader: true,
    },
    LevelRow { level: ReadLevel::Lease, name: "lease", offered: false, needs_leader: true },
    LevelRow { level: ReadLevel::Session, name: "session", offered: true, needs_leader: false },
    LevelRow { level: ReadLevel::Bounded, name: "bounded", offered: false, needs_leader: false },
    LevelRow { level: ReadLevel::Stale, name: "stale", offered: true, needs_leader: false },
];

impl ReadLevel {
    /// The row of this level; that of linearizable reads where none was named.
    #[must_use]
    pub const fn row(self) -> &'static LevelRow {
        &LEVELS[match self {
            Self::Unspecified | Self::Linearizable => 0,
            Self::Lease => 1,
            Self::Session => 2,
            Self::Bounded => 3,
            Self::Stale => 4,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_has_its_own_row() {
        for row in &LEVELS {
            assert_eq!(row.level.row(), row);
        }
        assert_eq!(ReadLevel::Unspecified.row().level, ReadLevel::Linearizable);
    }
}
