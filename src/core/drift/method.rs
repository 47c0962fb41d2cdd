//! The methods of comparison: what each is called, needs, and when it alerts.

use super::baseline::{Baseline, Content};
use bincode::{Decode, Encode};

/// A way to compare what came with a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Method {
    /// The means.
    Mean,
    /// The standard deviations.
    Stddev,
    /// The two-sample Kolmogorov-Smirnov test.
    Ks,
    /// The population stability index.
    Psi,
    /// The Wasserstein-1 distance.
    Wasserstein,
    /// The Jensen-Shannon distance.
    Js,
    /// Pearson's chi-squared test.
    Chi2,
    /// The shares of absent values.
    Missing,
    /// The share of values that the baseline does not have.
    NewCategories,
    /// The directions of the mean vectors.
    Centroid,
}

/// A method, and the effect above which it alerts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// The method.
    pub method: Method,
    /// The threshold of its effect.
    pub threshold: f64,
}

impl From<Method> for Test {
    fn from(method: Method) -> Self {
        Test { method, threshold: method.threshold() }
    }
}

impl Method {
    /// All, in the order in which they are told.
    pub const ALL: [Method; 10] = [
        Method::Mean,
        Method::Stddev,
        Method::Ks,
        Method::Psi,
        Method::Wasserstein,
        Method::Js,
        Method::Chi2,
        Method::Missing,
        Method::NewCategories,
        Method::Centroid,
    ];

    /// Its name in commands and replies.
    pub fn name(self) -> &'static str {
        match self {
            Method::Mean => "MEAN",
            Method::Stddev => "STDDEV",
            Method::Ks => "KS",
            Method::Psi => "PSI",
            Method::Wasserstein => "WASSERSTEIN",
            Method::Js => "JS",
            Method::Chi2 => "CHI2",
            Method::Missing => "MISSING",
            Method::NewCategories => "NEW_CATEGORIES",
            Method::Centroid => "CENTROID",
        }
    }

    /// The method of a name, in any case.
    pub fn of_name(name: &[u8]) -> Option<Method> {
        Method::ALL.into_iter().find(|method| name.eq_ignore_ascii_case(method.name().as_bytes()))
    }

    /// The effect above which it alerts unless told otherwise.
    pub fn threshold(self) -> f64 {
        match self {
            Method::Mean | Method::Psi => 0.2,
            Method::Stddev => 0.3,
            Method::Ks | Method::Wasserstein | Method::Js | Method::Chi2 | Method::Centroid => 0.1,
            Method::Missing | Method::NewCategories => 0.05,
        }
    }

    /// Does it say something about values with this baseline?
    pub fn fits(self, baseline: &Baseline) -> bool {
        match (self, &baseline.content) {
            (Method::Missing, _) => true,
            (Method::Mean, Content::Stats(stats)) => stats.mean.is_some(),
            (Method::Stddev, Content::Stats(stats)) => stats.stddev.is_some(),
            (
                Method::Mean | Method::Stddev | Method::Ks | Method::Psi | Method::Wasserstein | Method::Js,
                Content::Numbers(_),
            ) => true,
            (Method::Psi | Method::Chi2 | Method::NewCategories, Content::Counts(_)) => true,
            (Method::Psi | Method::NewCategories, Content::Shares(_)) => true,
            (Method::Centroid, Content::Mean(_)) => true,
            _ => false,
        }
    }
}

/// Of the tests that are wanted, or of all where none is named, those that fit a baseline.
pub fn fitting(baseline: &Baseline, wanted: &[Test]) -> Vec<Test> {
    let all = Method::ALL.map(Test::from);
    let wanted = if wanted.is_empty() { &all } else { wanted };
    wanted.iter().copied().filter(|test| test.method.fits(baseline)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_found_by_its_name() {
        for method in Method::ALL {
            assert_eq!(Method::of_name(method.name().to_ascii_lowercase().as_bytes()), Some(method));
        }
        assert_eq!(Method::of_name(b"mean "), None);
    }
}
