//! Which key an operation takes, and what it writes.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// How often each key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All keys equally.
    Uniform,
    /// Rank r about 1/r^0.99 as often as the first: few keys often, most seldom.
    Zipf,
}

/// The exponent that YCSB made customary.
const ZIPF_EXPONENT: f64 = 0.99;

/// Chooses keys; the same seed chooses the same ones.
#[derive(Clone, Debug)]
pub struct KeyChooser {
    random: StdRng,
    keys: u64,
    zipf: Option<Zipf>,
}

impl KeyChooser {
    /// A chooser of numbers below `keys`, which must be at least 1.
    pub fn new(distribution: Distribution, keys: u64, seed: u64) -> Self {
        assert!(keys >= 1, "no keys to choose from");
        let zipf = match distribution {
            Distribution::Uniform => None,
            Distribution::Zipf => Some(Zipf::new(keys)),
        };
        KeyChooser { random: StdRng::seed_from_u64(seed), keys, zipf }
    }

    /// The number of the next key.
    pub fn next_key(&mut self) -> u64 {
        match &self.zipf {
            None => self.random.random_range(0..self.keys),
            Some(zipf) => zipf.rank(self.random.random::<f64>()),
        }
    }

    /// Whether the next operation is one of `percent` in a hundred.
    pub fn one_of(&mut self, percent: u8) -> bool {
        self.random.random_range(0..100) < percent
    }
}

/// Zipf-distributed ranks by inversion, after Gray and others, "Quickly generating billion-record
/// synthetic databases" (SIGMOD 1994), §3.2.
#[derive(Clone, Debug)]
struct Zipf {
    keys: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(keys: u64) -> Self {
        let n = keys as f64;
        let zeta = harmonic(keys);
        let zeta_two = harmonic(2.min(keys));
        let eta = (1.0 - (2.0 / n).powf(1.0 - ZIPF_EXPONENT)) / (1.0 - zeta_two / zeta);
        Zipf { keys, alpha: 1.0 / (1.0 - ZIPF_EXPONENT), zeta, eta }
    }

    /// The rank, from 0, at `uniform` in 0..1.
    fn rank(&self, uniform: f64) -> u64 {
        let place = uniform * self.zeta;
        if place < 1.0 || self.keys == 1 {
            return 0;
        }
        if place < 1.0 + 0.5f64.powf(ZIPF_EXPONENT) || self.keys == 2 {
            return 1;
        }
        let spread = (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        ((self.keys as f64 * spread) as u64).min(self.keys - 1)
    }
}

/// The sum of 1/i^0.99 for i in 1..=n: exact for the first ten thousand, then by the integral
/// (Euler and Maclaurin), whose error is far below what a benchmark could show.
fn harmonic(n: u64) -> f64 {
    const EXACT: u64 = 10_000;
    let exact = n.min(EXACT);
    let mut sum: f64 = (1..=exact).map(|i| (i as f64).powf(-ZIPF_EXPONENT)).sum();
    if n > EXACT {
        let (low, high) = (EXACT as f64, n as f64);
        let power = 1.0 - ZIPF_EXPONENT;
        sum += (high.powf(power) - low.powf(power)) / power;
        sum += (high.powf(-ZIPF_EXPONENT) - low.powf(-ZIPF_EXPONENT)) / 2.0;
    }
    sum
}

/// Makes values, no two of them equal: a store may skip the write of a value that is there already,
/// and a benchmark that repeats its values would measure nothing.
#[derive(Debug)]
pub struct ValueMaker {
    /// Run (8 bytes), client (4), then what fills up the value.
    template: Vec<u8>,
    written: u32,
}

/// The least size of a value: run, client and number must fit.
pub const VALUE_SIZE_MIN: usize = 16;

impl ValueMaker {
    /// Values of `size` bytes for one client of one run.
    pub fn new(run: u64, client: u32, size: usize) -> Self {
        assert!(size >= VALUE_SIZE_MIN, "values of {size} bytes cannot all differ");
        let mut template = vec![0; size];
        // Random, so that compression anywhere on the way cannot flatter the result.
        StdRng::seed_from_u64(run ^ u64::from(client)).fill_bytes(&mut template);
        template[..8].copy_from_slice(&run.to_be_bytes());
        template[8..12].copy_from_slice(&client.to_be_bytes());
        ValueMaker { template, written: 0 }
    }

    /// The next value.
    pub fn next_value(&mut self) -> Vec<u8> {
        self.written = self.written.wrapping_add(1);
        self.template[12..16].copy_from_slice(&self.written.to_be_bytes());
        self.template.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn uniform_takes_every_key() {
        let mut chooser = KeyChooser::new(Distribution::Uniform, 10, 1);
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            counts[chooser.next_key() as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_takes_few_keys_often() {
        let (keys, draws) = (1_000u64, 100_000u32);
        let mut chooser = KeyChooser::new(Distribution::Zipf, keys, 1);
        let mut counts = vec![0u32; keys as usize];
        for _ in 0..draws {
            counts[chooser.next_key() as usize] += 1;
        }
        // The first two ranks are exact in the method: 1/zeta and 0.5^0.99/zeta.
        let first = f64::from(draws) / harmonic(keys);
        assert!((f64::from(counts[0]) / first - 1.0).abs() < 0.05, "{} {first}", counts[0]);
        let second = first * 0.5f64.powf(0.99);
        assert!((f64::from(counts[1]) / second - 1.0).abs() < 0.05, "{} {second}", counts[1]);
        let half: u32 = counts[..keys as usize / 2].iter().sum();
        assert!(half > draws * 8 / 10, "{half}");
        assert!(counts[500..].iter().sum::<u32>() > 0, "no key of the second half was taken");
    }

    #[test]
    fn zipf_holds_at_its_edges() {
        for keys in [1, 2, 3, 10_000, 10_001, 100_000_000] {
            let zipf = Zipf::new(keys);
            for uniform in [0.0, 0.5, 0.999_999_999_999] {
                assert!(zipf.rank(uniform) < keys, "{keys} {uniform}");
            }
        }
        let by_hand: f64 = (1..=20_000).map(|i| f64::from(i).powf(-0.99)).sum();
        assert!((harmonic(20_000) / by_hand - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let draw = |seed| {
            let mut chooser = KeyChooser::new(Distribution::Zipf, 100, seed);
            (0..50).map(|_| chooser.next_key()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn no_two_values_are_equal() {
        let mut seen = BTreeSet::new();
        for run in [1, 2] {
            for client in [0, 1] {
                let mut maker = ValueMaker::new(run, client, VALUE_SIZE_MIN);
                for _ in 0..1_000 {
                    let value = maker.next_value();
                    assert_eq!(value.len(), VALUE_SIZE_MIN);
                    assert!(seen.insert(value));
                }
            }
        }
    }
}
