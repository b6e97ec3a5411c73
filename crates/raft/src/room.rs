//! Room for what is small: of every bound in bytes on the way of a write, large ones leave a
//! quarter to small ones. Where the first to come takes all, a few writes of a MiB leave nothing to
//! thousands of a few bytes.

/// Up to this many bytes a request, an entry or a message is small.
pub const SMALL_BYTES: u64 = 64 << 10;

/// How much of a bound may be filled with something of `bytes` in it: all of it with what is small,
/// three quarters with what is large.
#[must_use]
pub const fn room_for(bytes: u64, bound: u64) -> u64 {
    if bytes <= SMALL_BYTES { bound } else { bound - bound / 4 }
}

/// What is taken of a bound that the last to come may exceed, so that one of any size gets its
/// turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// All bytes.
    pub all: u64,
    /// How many of them are of large ones.
    pub large: u64,
}

impl Taken {
    /// Whether something of `bytes` may come: a large one while less is taken than [`room_for`] it;
    /// a small one while less than the bound is, or while small ones have not had their quarter.
    #[must_use]
    pub const fn has_room(self, bytes: u64, bound: u64) -> bool {
        let has_part = bytes <= SMALL_BYTES && self.all.saturating_sub(self.large) < bound / 4;
        has_part || self.all < room_for(bytes, bound)
    }

    /// With something of `bytes` more.
    #[must_use]
    pub const fn with(self, bytes: u64) -> Self {
        let large = if bytes > SMALL_BYTES { bytes } else { 0 };
        Self { all: self.all + bytes, large: self.large + large }
    }

    /// Without something of `bytes` that was in it.
    #[must_use]
    pub const fn without(self, bytes: u64) -> Self {
        let large = if bytes > SMALL_BYTES { bytes } else { 0 };
        Self { all: self.all - bytes, large: self.large - large }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ones_never_take_the_part_of_small_ones() {
        let (large, bound) = (SMALL_BYTES + 1, 4 * SMALL_BYTES);
        let mut taken = Taken::default();
        while taken.has_room(large, bound) {
            taken = taken.with(large);
        }
        assert_eq!(taken.large, 3 * large);
        taken = taken.with(20 * large);
        let mut small = 0;
        while taken.has_room(1_024, bound) {
            taken = taken.with(1_024);
            small += 1_024;
        }
        assert_eq!(small, bound / 4, "whatever large ones take");
        taken = taken.without(22 * large);
        assert!(taken.has_room(large, bound) && taken.has_room(1, bound));
    }
}
