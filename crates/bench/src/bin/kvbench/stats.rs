//! Medians, quartiles, and ratios of pairs.

use serde::Serialize;

/// A median with its quartiles: half of the rounds lie between these.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// The median.
    pub(super) median: f64,
    /// A quarter lies at or below it.
    pub(super) lower_quartile: f64,
    /// A quarter lies at or above it.
    pub(super) upper_quartile: f64,
}

impl Spread {
    /// The spread of some values; `None` of none. Between two values it is interpolated linearly
    /// (type 7 of Hyndman and Fan, the default of R and NumPy).
    pub(super) fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let place = quantile * (values.len().checked_sub(1)? as f64);
            let (low, high) = (place.floor(), place.ceil());
            let (below, above) = (values.get(low as usize)?, values.get(high as usize)?);
            Some(below + (above - below) * (place - low))
        };
        Some(Spread { median: at(0.5)?, lower_quartile: at(0.25)?, upper_quartile: at(0.75)? })
    }
}

/// The ratios of pairs, each of one round. A pair of which one is missing, or the second is 0, has
/// none.
pub(super) fn ratios(pairs: impl IntoIterator<Item = (Option<f64>, Option<f64>)>) -> Vec<f64> {
    let ratio = |(ours, theirs): (Option<f64>, Option<f64>)| match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs != 0.0 => Some(ours / theirs),
        _ => None,
    };
    pairs.into_iter().filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Option<[f64; 3]> {
        let spread = Spread::of(values.to_vec())?;
        Some([spread.lower_quartile, spread.median, spread.upper_quartile])
    }

    #[test]
    fn quartiles_are_those_of_other_programs() {
        // As `numpy.quantile(values, [0.25, 0.5, 0.75])` gives them.
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[7.0]), Some([7.0, 7.0, 7.0]));
        assert_eq!(spread(&[2.0, 1.0]), Some([1.25, 1.5, 1.75]));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.5, 2.0, 2.5]));
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), Some([1.75, 2.5, 3.25]));
        assert_eq!(spread(&[50.0, 10.0, 20.0, 40.0, 30.0]), Some([20.0, 30.0, 40.0]));
    }

    #[test]
    fn ratios_are_of_pairs_and_not_of_medians() {
        // The machine was half as fast in the second round, for both.
        let pairs = [(Some(10.0), Some(5.0)), (Some(4.0), Some(2.0)), (Some(9.0), Some(3.0))];
        assert_eq!(ratios(pairs), [2.0, 2.0, 3.0]);
        assert_eq!(Spread::of(ratios(pairs)).unwrap().median, 2.0);
        let missing = [(None, Some(1.0)), (Some(1.0), None), (Some(1.0), Some(0.0))];
        assert!(ratios(missing).is_empty());
    }
}
