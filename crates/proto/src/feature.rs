//! Features beyond the first version, which a request may require of the node that carries it out.

use crate::v1::Feature;

/// The features of this version; none so far.
pub const FEATURES: [Feature; 0] = [];

impl Feature {
    /// The name for people: `ttl` of FEATURE_TTL.
    #[must_use]
    pub fn name(self) -> String {
        let name = self.as_str_name();
        name.strip_prefix("FEATURE_").unwrap_or(name).to_lowercase()
    }

    /// The first of the required features that this version lacks: its number, and its name where
    /// this version knows one.
    #[must_use]
    pub fn first_lacking(required: &[u32]) -> Option<(u32, Option<Feature>)> {
        let lacks = |number: &&u32| !FEATURES.iter().any(|known| *known as u32 == **number);
        let number = *required.iter().find(lacks)?;
        let known = i32::try_from(number).ok().and_then(|number| Feature::try_from(number).ok());
        Some((number, known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_this_version_lacks_is_found_whether_it_has_a_name_or_not() {
        assert_eq!(Feature::first_lacking(&[]), None);
        assert_eq!(Feature::first_lacking(&[1]), Some((1, Some(Feature::Ttl))));
        assert_eq!(Feature::first_lacking(&[4_000_000_000]), Some((4_000_000_000, None)));
        assert_eq!(Feature::first_lacking(&[0]), Some((0, Some(Feature::Unspecified))));
        for feature in FEATURES {
            assert_eq!(Feature::first_lacking(&[feature as u32]), None);
        }
        assert_eq!(Feature::Transaction.name(), "transaction");
    }
}
