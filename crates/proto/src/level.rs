//! Read levels: one row for each, with its name, its guarantee and whether this version offers it.
//! The server, the client, the metrics and kvctl read this table.

use crate::v1::ReadLevel;

/// A read level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRow {
    /// Its number on the wire.
    pub level: ReadLevel,
    /// Its name in the command line, in metrics and in messages.
    pub name: &'static str,
    /// What a read sees, in a few words for people.
    pub guarantee: &'static str,
    /// Whether this version serves it.
    pub offered: bool,
    /// Whether the leader must confirm a read at this level; any replica may serve the others.
    pub needs_leader: bool,
}

/// Every level, the strongest first.
pub const LEVELS: [LevelRow; 5] = [
    LevelRow {
        level: ReadLevel::Linearizable,
        name: "linearizable",
        guarantee: "Sees every write acknowledged before it began",
        offered: true,
        needs_leader: true,
    },
    LevelRow {
        level: ReadLevel::Lease,
        name: "lease",
        guarantee: "As linearizable, by the leader's clock alone",
        offered: false,
        needs_leader: true,
    },
    LevelRow {
        level: ReadLevel::Session,
        name: "session",
        guarantee: "Sees what this session has seen and written",
        offered: true,
        needs_leader: false,
    },
    LevelRow {
        level: ReadLevel::Bounded,
        name: "bounded",
        guarantee: "Sees what is at most as old as the request allows",
        offered: false,
        needs_leader: false,
    },
    LevelRow {
        level: ReadLevel::Stale,
        name: "stale",
        guarantee: "Sees whatever the asked node has applied",
        offered: true,
        needs_leader: false,
    },
];

impl ReadLevel {
    /// The row of this level; the row of linearizable reads for an unspecified level.
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

impl LevelRow {
    /// The row of a number on the wire; none for 0 and for levels that this version does not know.
    #[must_use]
    pub fn of_number(number: i32) -> Option<&'static LevelRow> {
        LEVELS.iter().find(|row| row.level as i32 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_has_its_own_row() {
        for row in &LEVELS {
            assert_eq!(row.level.row(), row);
            assert_eq!(LevelRow::of_number(row.level as i32), Some(row));
        }
        assert_eq!(LevelRow::of_number(0), None);
        assert_eq!(LevelRow::of_number(99), None);
        assert_eq!(ReadLevel::Unspecified.row().level, ReadLevel::Linearizable);
    }
}
