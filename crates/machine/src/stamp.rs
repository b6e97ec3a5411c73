//! Log time: the hybrid clock that the leader stamps into each entry, and the only time apply sees.
//!
//! No safety rests on it: it ages sessions and dates values. It never goes back, and one wrong
//! clock among three voters cannot move it more than half a second away from the right ones,
//! neither ahead nor behind. If it is ahead already, it waits for them.

use std::fmt;

/// The largest distance of a stamp from the median of the voters' clocks, in milliseconds. A clock
/// that is further from the median than this is reported as wrong.
pub const FROM_MEDIAN_MAX_MS: u64 = 500;

/// Unix milliseconds << 16 | a logical counter, which carries into the milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(pub u64);

impl LogTime {
    /// The first log time of a millisecond; milliseconds beyond 48 bits (the year 10889) saturate.
    #[must_use]
    pub fn from_millis(unix_ms: u64) -> LogTime {
        LogTime(unix_ms.min((1 << 48) - 1) << 16)
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The counter within the millisecond.
    #[must_use]
    pub fn logical(self) -> u16 {
        self.0 as u16
    }

    /// The next log time; the counter carries into the milliseconds.
    #[must_use]
    pub fn next(self) -> LogTime {
        LogTime(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.logical())
    }
}

/// The stamp of the next entry: max(last + 1 logical, own clock held within M ± 500 ms).
///
/// `last` is the stamp of the newest entry of the leader's log, `own_ms` the leader's clock (Unix
/// milliseconds), and `voter_clocks_ms` the clocks of all voters that have reported one, including
/// the leader's own, in any order. M is their [`median`]. Never going back takes precedence over
/// the bound. Without any report only the own clock counts.
#[must_use]
pub fn next_stamp(last: LogTime, own_ms: u64, voter_clocks_ms: &mut [u64]) -> LogTime {
    let now_ms = match median(voter_clocks_ms) {
        Some(median) => own_ms.clamp(
            median.saturating_sub(FROM_MEDIAN_MAX_MS),
            median.saturating_add(FROM_MEDIAN_MAX_MS),
        ),
        None => own_ms,
    };
    last.next().max(LogTime::from_millis(now_ms))
}

/// The median of these clocks, for an even number the smaller of the middle two; `None` if there
/// are none.
#[must_use]
pub fn median<T: Copy + Ord>(clocks: &mut [T]) -> Option<T> {
    let middle = clocks.len().checked_sub(1)? / 2;
    Some(*clocks.select_nth_unstable(middle).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    const NOW_MS: u64 = 1_700_000_000_000;

    fn stamp(last: LogTime, own_ms: u64, voters: &[u64]) -> LogTime {
        next_stamp(last, own_ms, &mut voters.to_vec())
    }

    #[test]
    fn a_sound_cluster_follows_the_leaders_clock() {
        let stamp = stamp(LogTime::default(), NOW_MS, &[NOW_MS, NOW_MS - 90, NOW_MS - 40]);
        assert_eq!((stamp.millis(), stamp.logical()), (NOW_MS, 0));
    }

    #[test]
    fn within_one_millisecond_the_logical_part_counts() {
        let first = stamp(LogTime::default(), NOW_MS, &[NOW_MS]);
        let second = stamp(first, NOW_MS, &[NOW_MS]);
        assert_eq!((second.millis(), second.logical()), (NOW_MS, 1));
    }

    #[test]
    fn the_logical_part_carries_into_the_milliseconds() {
        let full = LogTime(LogTime::from_millis(NOW_MS).0 | 0xffff);
        let next = stamp(full, NOW_MS, &[NOW_MS]);
        assert_eq!((next.millis(), next.logical()), (NOW_MS + 1, 0));
    }

    #[test]
    fn one_leader_a_year_ahead_is_held_near_the_median() {
        let ahead = NOW_MS + YEAR_MS;
        assert_eq!(
            stamp(LogTime::default(), ahead, &[ahead, NOW_MS, NOW_MS - 50]).millis(),
            NOW_MS + 500
        );
        // Among five voters two wrong clocks do not move it either.
        assert_eq!(
            stamp(LogTime::default(), ahead, &[ahead, NOW_MS, ahead, NOW_MS - 50, NOW_MS]).millis(),
            NOW_MS + 500
        );
    }

    #[test]
    fn one_leader_a_year_behind_is_held_near_the_median() {
        let behind = NOW_MS - YEAR_MS;
        assert_eq!(
            stamp(LogTime::default(), behind, &[behind, NOW_MS, NOW_MS + 50]).millis(),
            NOW_MS - 500
        );
        // Among five voters two wrong clocks do not hold it back either.
        assert_eq!(
            stamp(LogTime::default(), behind, &[behind, NOW_MS, behind, NOW_MS + 50, NOW_MS])
                .millis(),
            NOW_MS - 500
        );
    }

    #[test]
    fn never_going_back_takes_precedence_over_the_bound() {
        let behind = NOW_MS - YEAR_MS;
        let last = LogTime::from_millis(NOW_MS + 600_000);
        let next = stamp(last, behind, &[behind, NOW_MS, NOW_MS]);
        assert_eq!(next, last.next());
    }

    #[test]
    fn one_follower_a_year_off_changes_nothing() {
        for wrong in [NOW_MS - YEAR_MS, NOW_MS + YEAR_MS] {
            assert_eq!(
                stamp(LogTime::default(), NOW_MS, &[NOW_MS, NOW_MS, wrong]).millis(),
                NOW_MS
            );
        }
    }

    #[test]
    fn all_a_year_ahead_and_then_right_again() {
        let ahead = NOW_MS + YEAR_MS;
        let mut last = stamp(LogTime::default(), ahead, &[ahead, ahead, ahead]);
        assert_eq!(last.millis(), ahead);
        // The clocks are right again: writes continue, and only the logical part counts.
        for i in 1..=100_000u64 {
            let next = stamp(last, NOW_MS + i, &[NOW_MS + i; 3]);
            assert_eq!(next, last.next());
            last = next;
        }
        assert_eq!(last.millis(), ahead + 1, "100,000 writes add one millisecond");
        // A year later the clocks determine the stamp again.
        assert_eq!(stamp(last, ahead + 5_000, &[ahead + 5_000; 3]).millis(), ahead + 5_000);
    }

    #[test]
    fn two_nodes_left_ten_minutes_apart_follow_the_slower() {
        let (slow, fast) = (NOW_MS, NOW_MS + 600_000);
        assert_eq!(stamp(LogTime::default(), fast, &[fast, slow]).millis(), slow + 500);
        assert_eq!(stamp(LogTime::default(), slow, &[fast, slow]).millis(), slow);
    }

    #[test]
    fn extreme_clocks_do_not_overflow() {
        assert_eq!(stamp(LogTime::default(), u64::MAX, &[u64::MAX; 3]).millis(), (1 << 48) - 1);
        assert_eq!(stamp(LogTime(u64::MAX), 0, &[0]), LogTime(u64::MAX));
        assert_eq!(stamp(LogTime::default(), 0, &[]), LogTime(1));
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_one_wrong_clock_moves_it_half_a_second(
            wrong: u32, jitter in proptest::collection::vec(0u64..200, 50), leader in 0usize..3,
        ) {
            let mut last = LogTime::default();
            for (i, jitter) in jitter.into_iter().enumerate() {
                let true_ms = NOW_MS + i as u64 * 100;
                let mut clocks = [true_ms + jitter, true_ms, u64::from(wrong) * 1_000];
                let own = clocks[leader];
                let next = next_stamp(last, own, &mut clocks);
                prop_assert!(next > last);
                prop_assert!(next.millis() <= true_ms + 200 + 500);
                prop_assert!(next.millis() >= true_ms - 500);
                last = next;
            }
        }

        #[test]
        fn the_median_is_the_lower_middle(
            mut clocks in proptest::collection::vec(any::<u64>(), 1..8),
        ) {
            let found = median(&mut clocks.clone()).unwrap();
            clocks.sort_unstable();
            prop_assert_eq!(found, clocks[(clocks.len() - 1) / 2]);
        }
    }
}
