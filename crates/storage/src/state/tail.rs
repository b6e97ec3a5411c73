//! Reading the end of a range of a tree without reading the whole range.
//!
//! The database's own reverse iterator is not used: to step from one of its nodes to the previous
//! one, it guesses a key just below the node, and panics after a million iterations if a key of the
//! range is between its guess and the node. Keys chosen by users can cause that: with the last node
//! beginning at `02`, it guesses `01 ff ff ff ff`, and `01 ff ff ff ff 31` is a valid key here.
//!
//! So the end is searched from the front: a range that is too long to read is entered in its middle
//! and, if no key follows, before that. Halving byte strings halves the keys between them if these
//! are evenly distributed; otherwise the search falls back to reading page by page.

use crate::database::Tree;
use crate::error::Result;

/// Keys read in one step.
const KEYS: usize = 256;
/// The number of reads without a key after which the search continues from the last known key.
const MISSES: u32 = 16;

/// The last keys of a range, in order.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) keys: Vec<Vec<u8>>,
    /// Whether these are all keys of the range.
    pub(crate) whole: bool,
}

/// The last keys in `[low, high)`; empty only if the range is empty.
pub(crate) fn read(tree: &Tree, low: &[u8], high: &[u8]) -> Result<Tail> {
    // There are too many keys from `below` on, and no keys from `above` on.
    let (mut below, mut above) = (low.to_vec(), high.to_vec());
    let mut from = low.to_vec();
    let mut misses = 0;
    loop {
        if from.as_slice() >= high {
            return Ok(Tail { keys: Vec::new(), whole: true });
        }
        let range = tree.range(&from[..]..high).take(KEYS);
        let mut keys = range.map(|e| Ok(e?.0.to_vec())).collect::<Result<Vec<Vec<u8>>>>()?;
        let whole = from == low;
        match keys.pop() {
            Some(last) if keys.len() + 1 == KEYS => {
                below = last;
                misses = 0;
                // A checkpoint may have written keys where there were none before, ...
                if below >= above {
                    above = high.to_vec();
                }
            }
            Some(last) => {
                keys.push(last);
                return Ok(Tail { keys, whole });
            }
            None if whole => return Ok(Tail { keys, whole }),
            // ... and a cleaning may have removed the very key that was read.
            None if from == below => {
                (below, above) = (low.to_vec(), high.to_vec());
                from.clone_from(&below);
                continue;
            }
            None => {
                above = from;
                misses += 1;
            }
        }
        // With nothing between them, `below` is the last key. After some misses the keys are likely
        // to be close after `below`.
        let middle = if misses % MISSES == MISSES - 1 { None } else { between(&below, &above) };
        from = middle.unwrap_or_else(|| below.clone());
    }
}

/// A byte string strictly between the two: about half way if they differ within the length of
/// `below`, otherwise the next string after it; `None` if that is `above`.
fn between(below: &[u8], above: &[u8]) -> Option<Vec<u8>> {
    debug_assert!(below < above);
    let mut at = below.iter().zip(above).take_while(|(b, a)| b == a).count();
    let next = || [below, &[0]].concat();
    if at == below.len() {
        return Some(next()).filter(|next| next.as_slice() < above);
    }
    let (low, high) = (window(below, at), window(above, at));
    if high - low >= 2 {
        let middle = low + (high - low) / 2;
        return Some([&below[..at], &middle.to_be_bytes()].concat());
    }
    // Every string that begins like `below` up to here is less than `above`.
    loop {
        at += 8;
        if at >= below.len() {
            return Some(next());
        }
        let rest = u64::MAX - window(below, at);
        if rest >= 2 {
            let middle = u64::MAX - rest / 2;
            return Some([&below[..at], &middle.to_be_bytes()].concat());
        }
    }
}

/// Eight bytes from `at` on as a number; missing bytes count as zero.
fn window(bytes: &[u8], at: usize) -> u64 {
    let mut window = [0; 8];
    let rest = bytes.get(at..).unwrap_or_default();
    let length = rest.len().min(8);
    window[..length].copy_from_slice(&rest[..length]);
    u64::from_be_bytes(window)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::database::{Database, DatabaseOptions};

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff)];
        proptest::collection::vec(byte, 0..20)
    }

    proptest! {
        #[test]
        fn what_is_between_is_between(a in bytes(), b in bytes()) {
            prop_assume!(a != b);
            let (below, above) = if a < b { (a, b) } else { (b, a) };
            match between(&below, &above) {
                Some(middle) => prop_assert!(below < middle && middle < above, "{middle:?}"),
                None => prop_assert_eq!([&below[..], &[0]].concat(), above),
            }
        }
    }

    /// All of a range, page by page from its end.
    fn backwards(tree: &Tree, low: &[u8], high: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut high = high.to_vec();
        loop {
            let Tail { keys, whole } = read(tree, low, &high).unwrap();
            all.extend(keys.iter().rev().cloned());
            if whole {
                return all;
            }
            high.clone_from(&keys[0]);
        }
    }

    #[test]
    fn every_key_is_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), DatabaseOptions::default()).unwrap();
        let tree = database.tree(b"tail").unwrap();
        let mut keys: BTreeSet<Vec<u8>> = BTreeSet::new();
        // The case on which the database's own iterator panics, ...
        keys.extend(
            (0..600u16).map(|n| [&[1, 255, 255, 255, 255, 49], &n.to_be_bytes()[..]].concat()),
        );
        keys.extend((0..40).map(|n| vec![2, n]));
        // ... keys that differ only near their ends, and keys that are ever closer to each other.
        keys.extend((0..400u16).map(|n| [&[7; 300], &n.to_be_bytes()[..]].concat()));
        keys.extend((1..400).map(|n| vec![9; n]));
        keys.extend((1..400).map(|n| [&vec![10; n][..], &[11]].concat()));
        keys.iter().for_each(|key| tree.insert(key, b"").unwrap());
        for (low, high) in [
            (vec![], vec![255]),
            (vec![2], vec![2, 20]),
            (vec![], vec![2]),
            (vec![7; 300], vec![7; 301]),
            (vec![9; 5], vec![9; 350]),
            (vec![3], vec![4]),
        ] {
            let expected = keys.range(low.clone()..high.clone()).rev().cloned().collect::<Vec<_>>();
            assert_eq!(backwards(&tree, &low, &high), expected, "{low:?}..{high:?}");
        }
    }
}
