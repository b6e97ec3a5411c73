//! Randomness for election timeouts, from a seed.

use std::hash::{Hash, Hasher};

use crate::types::Ticks;

/// A splitmix64 sequence. It is not part of a replica's state: two replicas that differ in nothing
/// else are equal and have the same hash, so that a model checker visits each state once.
#[derive(Clone, Debug)]
pub(crate) struct Entropy {
    state: u64,
    boot: u64,
}

impl Entropy {
    pub(crate) fn new(seed: u64) -> Self {
        let mut entropy = Self { state: seed, boot: 0 };
        entropy.boot = entropy.next();
        entropy
    }

    /// A number that differs from start to start, as the seed does.
    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// A time span in `[min, max)`.
    pub(crate) fn between(&mut self, min: Ticks, max: Ticks) -> Ticks {
        Ticks(min.0 + self.next() % (max.0 - min.0))
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl PartialEq for Entropy {
    fn eq(&self, _: &Entropy) -> bool {
        true
    }
}

impl Eq for Entropy {}

impl Hash for Entropy {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_cover_the_whole_range_and_nothing_else() {
        let mut entropy = Entropy::new(1);
        let drawn: std::collections::BTreeSet<_> =
            (0..2_000).map(|_| entropy.between(Ticks(60), Ticks(120)).0).collect();
        assert_eq!(drawn, (60..120).collect());
    }

    #[test]
    fn the_seed_decides_and_does_not_count_as_state() {
        let (mut one, mut same, other) = (Entropy::new(5), Entropy::new(5), Entropy::new(6));
        assert_eq!(one.next(), same.next());
        assert_ne!(one.boot(), other.boot());
        assert_eq!(one, other);
    }
}
