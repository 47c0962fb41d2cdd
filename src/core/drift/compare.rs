//! Comparing what came with a baseline, method by method.

use super::baseline::{sorted, whole_number, Baseline, Category, Content, Stats};
use super::categories::{category_id, category_name, CategoryId};
use super::chance;
use super::current::{Observed, ObservedValues};
use super::finding::{Finding, Outcome, Seen};
use super::method::{Method, Test};
use super::statistics::{
    bin_counts, chi_squared, cosine_distance, jensen_shannon, kolmogorov_smirnov, mean_and_deviation,
    population_stability, quantile_edges, wasserstein, ChiSquared, MeanAndDeviation, Tested,
};
use super::sums::MeanVector;
use std::collections::BTreeMap;

/// Fewer values than this, on either side, are not compared.
const VALUES_MIN: u64 = 100;
/// PSI and JS cut numbers into so many bins.
const BINS: usize = 10;

/// What a method sees on both sides, and its result where both have something.
type Compared = (Seen, Seen, Option<Outcome>);

/// Compares what was observed with a baseline, by methods that fit it.
pub fn findings(baseline: &Baseline, observed: Observed, tests: &[Test]) -> Vec<Finding> {
    let sides = Sides::of(baseline, observed);
    tests.iter().map(|test| sides.finding(*test)).collect()
}

/// Both sides, sorted or counted once for all methods.
struct Sides<'b> {
    baseline: &'b Baseline,
    present: u64,
    absent: u64,
    current: CurrentSide,
}

enum CurrentSide {
    /// Sorted.
    Numbers(Vec<f64>),
    /// How often each came, and the names that the values tell themselves.
    Counts(BTreeMap<CategoryId, (u64, Option<Vec<u8>>)>),
    Mean(Option<MeanVector>),
}

impl<'b> Sides<'b> {
    fn of(baseline: &'b Baseline, observed: Observed) -> Self {
        let by_category = matches!(baseline.content, Content::Counts(_) | Content::Shares(_));
        let current = match observed.values {
            ObservedValues::Numbers(numbers) if by_category => CurrentSide::Counts(counts_of_numbers(&sorted(numbers))),
            ObservedValues::Numbers(numbers) => CurrentSide::Numbers(sorted(numbers)),
            ObservedValues::Categories(ids) => {
                let mut counts = BTreeMap::new();
                ids.into_iter().for_each(|id| counts.entry(id).or_insert((0, None)).0 += 1);
                CurrentSide::Counts(counts)
            }
            ObservedValues::Mean(mean) => CurrentSide::Mean(mean),
        };
        Sides { baseline, present: observed.present, absent: observed.absent, current }
    }

    fn finding(&self, Test { method, threshold }: Test) -> Finding {
        let (mut baseline_n, mut current_n) = (self.baseline.n(), self.current_n());
        if method == Method::Missing {
            (baseline_n, current_n) = (self.baseline.arrivals.or(baseline_n), self.present + self.absent);
        }
        let is_enough = current_n >= VALUES_MIN && baseline_n.is_none_or(|n| n >= VALUES_MIN);
        let (baseline, current, outcome) = self.compare(method).unwrap_or((Seen::Nothing, Seen::Nothing, None));
        // What a double cannot hold is no result.
        let outcome = outcome.filter(|o| is_enough && !o.statistic.is_nan() && !o.effect.is_nan());
        Finding { method, baseline, current, outcome, threshold, baseline_n, current_n }
    }

    fn current_n(&self) -> u64 {
        match &self.current {
            CurrentSide::Numbers(numbers) => numbers.len() as u64,
            CurrentSide::Counts(counts) => counts.values().map(|(n, _)| n).sum(),
            CurrentSide::Mean(_) => self.present,
        }
    }

    /// What the method sees on both sides, and its result. `None`: there is nothing on one side.
    fn compare(&self, method: Method) -> Option<Compared> {
        if method == Method::Missing {
            let arrivals = self.present + self.absent;
            let before = self.baseline.missing;
            let share = (arrivals > 0).then(|| self.absent as f64 / arrivals as f64);
            let outcome = share.map(|share| {
                let m = self.baseline.arrivals.or(self.baseline.n());
                let common = match m {
                    Some(m) => (before * m as f64 + self.absent as f64) / (m + arrivals) as f64,
                    None => before,
                };
                Outcome::of(share - before, chance::of_shares(share - before, common, arrivals, m))
            });
            return Some((Seen::Number(before), share.map_or(Seen::Nothing, Seen::Number), outcome));
        }
        match (&self.baseline.content, &self.current) {
            (Content::Stats(stats), CurrentSide::Numbers(current)) => {
                let known = KnownNumbers::of_stats(stats);
                match method {
                    Method::Mean => compare_means(&known, current),
                    Method::Stddev => compare_deviations(&known, current),
                    _ => None,
                }
            }
            (Content::Numbers(baseline), CurrentSide::Numbers(current)) => compare_numbers(method, baseline, current),
            (Content::Counts(baseline), CurrentSide::Counts(current)) => {
                compare_categories(method, &KnownCategories::of_counts(baseline), current)
            }
            (Content::Shares(baseline), CurrentSide::Counts(current)) => {
                compare_categories(method, &KnownCategories::of_shares(baseline), current)
            }
            (Content::Mean(baseline), CurrentSide::Mean(current)) => {
                Some(compare_directions(baseline, current.as_ref(), self.present))
            }
            _ => None,
        }
    }
}

/// Whole numbers by how often each comes. `numbers`: sorted.
fn counts_of_numbers(numbers: &[f64]) -> BTreeMap<CategoryId, (u64, Option<Vec<u8>>)> {
    let runs = numbers.chunk_by(|a, b| a == b);
    let counts = runs.map(|run| {
        let text = whole_number(run[0]);
        (category_id(text.as_bytes()), (run.len() as u64, Some(category_name(text.as_bytes()))))
    });
    counts.collect()
}

/// A difference as a multiple of what it is measured by. Of nothing, any difference is infinite.
fn relative(difference: f64, scale: f64) -> f64 {
    match difference == 0.0 {
        true => 0.0,
        false => difference.abs() / scale,
    }
}

/// What is known of a baseline's numbers.
struct KnownNumbers<'b> {
    mean: Option<f64>,
    deviation: Option<f64>,
    /// The values behind these figures, where they are there.
    values: &'b [f64],
}

impl<'b> KnownNumbers<'b> {
    fn of_stats(stats: &Stats) -> Self {
        KnownNumbers { mean: stats.mean, deviation: stats.stddev, values: &[] }
    }

    fn of_values(values: &'b [f64]) -> Option<Self> {
        let MeanAndDeviation { mean, deviation } = mean_and_deviation(values)?;
        Some(KnownNumbers { mean: Some(mean), deviation: Some(deviation), values })
    }

    /// How many values; `None`: the figures are taken as exact.
    fn n(&self) -> Option<u64> {
        (!self.values.is_empty()).then_some(self.values.len() as u64)
    }

    /// The larger deviation of both sides.
    fn spread(&self, now: MeanAndDeviation) -> f64 {
        now.deviation.max(self.deviation.unwrap_or(0.0))
    }
}

fn compare_means(known: &KnownNumbers<'_>, current: &[f64]) -> Option<Compared> {
    let before = known.mean?;
    let Some(now) = mean_and_deviation(current) else { return Some((Seen::Number(before), Seen::Nothing, None)) };
    // Beside a large deviation a small mean is no measure: standardized features have one of about 0.
    let scale = before.abs().max(known.deviation.unwrap_or(0.0) / 2.0);
    let difference = now.mean - before;
    let chance = chance::of_means(difference, known.spread(now), current.len() as u64, known.n());
    let outcome = Outcome::of(relative(difference, scale), chance);
    Some((Seen::Number(before), Seen::Number(now.mean), Some(outcome)))
}

fn compare_deviations(known: &KnownNumbers<'_>, current: &[f64]) -> Option<Compared> {
    let before = known.deviation?;
    let Some(now) = mean_and_deviation(current) else { return Some((Seen::Number(before), Seen::Nothing, None)) };
    let difference = now.deviation - before;
    let behind = known.mean.filter(|_| known.n().is_some());
    let behind = behind.map(|mean| (known.values, MeanAndDeviation { mean, deviation: before }));
    let sides: Vec<_> = behind.into_iter().chain([(current, now)]).collect();
    let chance = chance::of_deviations(difference, known.spread(now), &sides, current.len() as u64, known.n());
    let outcome = Outcome::of(relative(difference, before), chance);
    Some((Seen::Number(before), Seen::Number(now.deviation), Some(outcome)))
}

fn compare_numbers(method: Method, baseline: &[f64], current: &[f64]) -> Option<Compared> {
    let known = KnownNumbers::of_values(baseline)?;
    match method {
        Method::Mean => return compare_means(&known, current),
        Method::Stddev => return compare_deviations(&known, current),
        _ => {}
    }
    let before = known.mean.map_or(Seen::Nothing, Seen::Number);
    let Some(now) = mean_and_deviation(current) else { return Some((before, Seen::Nothing, None)) };
    let bins = || {
        let edges = quantile_edges(baseline, BINS);
        let [expected, actual] = [baseline, current].map(|side| bin_counts(side.iter().copied(), &edges));
        let chance = chance::of_bins(&expected, &actual);
        (as_weights(expected), as_weights(actual), chance)
    };
    let outcome = match method {
        Method::Ks => {
            let Tested { statistic, p_value } = kolmogorov_smirnov(baseline, current);
            Outcome::tested(statistic, p_value, statistic, p_value)
        }
        Method::Wasserstein => {
            let distance = wasserstein(baseline, current);
            let chance = chance::of_wasserstein(distance, [baseline, current]);
            Outcome::of(relative(distance, known.deviation.unwrap_or(0.0)), chance)
        }
        Method::Psi => {
            let (expected, actual, chance) = bins();
            Outcome::of(population_stability(&expected, &actual), chance)
        }
        Method::Js => {
            let (expected, actual, chance) = bins();
            Outcome::of(jensen_shannon(&expected, &actual), chance)
        }
        _ => return None,
    };
    Some((before, Seen::Number(now.mean), Some(outcome)))
}

fn as_weights(counts: Vec<u64>) -> Vec<f64> {
    counts.into_iter().map(|n| n as f64).collect()
}

/// The categories of a baseline.
struct KnownCategories<'b> {
    /// Each with its name and its count, or its share of so many that it is as good as exact.
    known: BTreeMap<CategoryId, (&'b [u8], u64)>,
    /// Count or share of values that it does not name.
    open: u64,
    /// How many values it has, where it says so.
    n: Option<u64>,
    /// The share of values that it can be expected not to have met.
    unmet: f64,
}

/// A share is a count of so many.
const SHARES_OF: f64 = (1u64 << 50) as f64;

impl<'b> KnownCategories<'b> {
    fn of_counts(counts: &'b [Category<u64>]) -> Self {
        let n: u64 = counts.iter().map(|c| c.weight).sum();
        let met_once = counts.iter().filter(|c| c.weight == 1).count();
        KnownCategories {
            known: counts.iter().map(|c| (c.id, (c.name.as_slice(), c.weight))).collect(),
            open: 0,
            n: Some(n),
            // Good and Turing's estimate.
            unmet: met_once as f64 / n as f64,
        }
    }

    fn of_shares(shares: &'b [Category<f64>]) -> Self {
        let unmet = (1.0 - shares.iter().map(|c| c.weight).sum::<f64>()).max(0.0);
        let count = |share: f64| (share * SHARES_OF) as u64;
        KnownCategories {
            known: shares.iter().map(|c| (c.id, (c.name.as_slice(), count(c.weight)))).collect(),
            open: count(unmet),
            n: None,
            unmet,
        }
    }
}

fn compare_categories(
    method: Method,
    baseline: &KnownCategories<'_>,
    current: &BTreeMap<CategoryId, (u64, Option<Vec<u8>>)>,
) -> Option<Compared> {
    let now: u64 = current.values().map(|(n, _)| *n).sum();
    if now == 0 {
        return None;
    }
    let before = baseline.open + baseline.known.values().map(|(_, n)| *n).sum::<u64>();
    let share = |n: u64, all: u64| n as f64 / all as f64;
    let count = |id: CategoryId| current.get(&id).map_or(0, |(n, _)| *n);
    let unseen = || current.iter().filter(|(id, _)| !baseline.known.contains_key(id));
    let unseen_n: u64 = unseen().map(|(_, (n, _))| *n).sum();
    if method == Method::NewCategories {
        let most = unseen().max_by_key(|(id, (n, _))| (*n, std::cmp::Reverse(**id)));
        let most = most.map(|(id, (n, name))| Seen::Category(*id, name.clone(), share(*n, now)));
        let more = share(unseen_n, now) - baseline.unmet;
        // One that met nothing once may still have missed what comes as rarely as that.
        let unmet = baseline.unmet.max(baseline.n.map_or(0.0, |n| 1.0 / n as f64));
        let outcome = Outcome::of(more, chance::of_shares(more, unmet, now, baseline.n));
        return Some((Seen::Nothing, most.unwrap_or(Seen::Nothing), Some(outcome)));
    }
    let known = || baseline.known.iter().map(|(id, (_, n))| (*n, count(*id)));
    let one_by_one = || -> (Vec<u64>, Vec<u64>) { known().chain(unseen().map(|(_, (n, _))| (0, *n))).unzip() };
    let with_rest = || -> (Vec<u64>, Vec<u64>) { known().chain([(baseline.open, unseen_n)]).unzip() };
    // Values that a baseline of counts has not met are rare ones, like those that it met once: each stands for itself.
    let (expected, actual) = if baseline.n.is_some() { one_by_one() } else { with_rest() };
    let chance = chance::of_bins(&expected, &actual);
    let outcome = match method {
        Method::Chi2 => {
            let ChiSquared { test, cramers_v } = chi_squared(&expected, &actual);
            Outcome::tested(test.statistic, test.p_value, cramers_v, chance)
        }
        Method::Psi => {
            let (expected, actual) = with_rest();
            Outcome::of(population_stability(&as_weights(expected), &as_weights(actual)), chance)
        }
        _ => return None,
    };
    // Which value moved most is what a reader asks next.
    let of_known = baseline.known.iter().map(|(id, (_, n))| (*id, share(*n, before), share(count(*id), now)));
    let of_unseen = unseen().map(|(id, (n, _))| (*id, 0.0, share(*n, now)));
    let moved = |(_, before, now): &(CategoryId, f64, f64)| (before - now).abs();
    let first_of_equals = |a: (CategoryId, f64, f64), b| if moved(&b) > moved(&a) { b } else { a };
    let Some((id, before, now)) = of_known.chain(of_unseen).reduce(first_of_equals) else {
        return Some((Seen::Nothing, Seen::Nothing, Some(outcome)));
    };
    let of_baseline = baseline.known.get(&id).map(|(name, _)| name.to_vec());
    let name = of_baseline.or_else(|| current.get(&id).and_then(|(_, name)| name.clone()));
    Some((Seen::Category(id, name.clone(), before), Seen::Category(id, name, now), Some(outcome)))
}

fn length_of(components: impl Iterator<Item = f64>) -> f64 {
    libm::sqrt(components.map(|x| x * x).sum())
}

fn compare_directions(baseline: &MeanVector, current: Option<&MeanVector>, n: u64) -> Compared {
    let before = length_of(baseline.mean.iter().copied());
    let Some(current) = current else { return (Seen::Number(before), Seen::Nothing, None) };
    let now = length_of(current.mean.iter().copied());
    let distance = cosine_distance(&baseline.mean, &current.mean).unwrap_or(if before == now { 0.0 } else { 1.0 });
    let apart = length_of(baseline.mean.iter().zip(&current.mean).map(|(a, b)| a - b));
    let chance = chance::of_mean_vectors(apart, [baseline.spread, current.spread], n, baseline.n);
    (Seen::Number(before), Seen::Number(now), Some(Outcome::of(distance, chance)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::alert::{ActiveAlerts, Levels};
    use crate::drift::finding::Told;

    fn baseline(content: Content) -> Baseline {
        Baseline { missing: 0.1, arrivals: None, content }
    }

    fn counts(list: &[(&str, u64)]) -> Content {
        let category = |(name, weight): &(&str, u64)| Category {
            id: category_id(name.as_bytes()),
            name: name.as_bytes().to_vec(),
            weight: *weight,
        };
        Content::Counts(list.iter().map(category).collect())
    }

    fn find(baseline: &Baseline, values: ObservedValues, method: Method) -> Finding {
        let present = match &values {
            ObservedValues::Numbers(numbers) => numbers.len(),
            ObservedValues::Categories(ids) => ids.len(),
            ObservedValues::Mean(_) => 200,
        };
        let observed = Observed { values, present: present as u64, absent: 50 };
        assert!(method.fits(baseline), "{method:?}");
        findings(baseline, observed, &[method.into()]).remove(0)
    }

    fn effect(finding: &Finding) -> f64 {
        finding.outcome.expect("an outcome").effect
    }

    #[test]
    fn where_the_textbook_has_no_answer_there_is_a_defined_one() {
        let numbers = |x: f64| ObservedValues::Numbers(vec![x; 100]);
        let stats = |mean, stddev| {
            baseline(Content::Stats(Stats { mean: Some(mean), stddev: Some(stddev), min: None, max: None }))
        };
        let constant = baseline(Content::Numbers(vec![5.0; 100]));
        for (base, now, method, expected) in [
            (&stats(0.0, 0.0), 0.0, Method::Mean, 0.0),
            (&stats(0.0, 0.0), 1.0, Method::Mean, f64::INFINITY),
            (&stats(0.0, 10.0), 1.0, Method::Mean, 0.2),
            (&stats(10.0, 10.0), 11.0, Method::Mean, 0.1),
            (&stats(10.0, 0.0), 11.0, Method::Stddev, 0.0),
            (&constant, 5.0, Method::Wasserstein, 0.0),
            (&constant, 6.0, Method::Wasserstein, f64::INFINITY),
            (&constant, 5.0, Method::Psi, 0.0),
            (&constant, 6.0, Method::Ks, 1.0),
        ] {
            assert_eq!(effect(&find(base, numbers(now), method)), expected, "{method:?} {base:?} {now}");
        }
        let still = baseline(Content::Mean(MeanVector { mean: vec![0.0, 0.0], spread: 0.0, n: 100 }));
        let mean = |v: [f64; 2]| ObservedValues::Mean(Some(MeanVector { mean: v.to_vec(), spread: 0.0, n: 200 }));
        assert_eq!(effect(&find(&still, mean([0.0, 0.0]), Method::Centroid)), 0.0);
        assert_eq!(effect(&find(&still, mean([0.0, 1.0]), Method::Centroid)), 1.0);
    }

    #[test]
    fn too_few_values_on_either_side_are_insufficient() {
        let few = ObservedValues::Numbers(vec![1.0; 99]);
        let known = baseline(Content::Numbers(vec![1.0; 100]));
        assert_eq!(find(&known, few.clone(), Method::Ks).outcome, None);
        assert!(find(&known, few, Method::Missing).outcome.is_some());
        let short = baseline(Content::Numbers(vec![1.0; 99]));
        let finding = find(&short, ObservedValues::Numbers(vec![2.0; 100]), Method::Ks);
        assert_eq!((finding.outcome, finding.is_alert(1.0)), (None, false));
        assert_eq!(find(&known, ObservedValues::Numbers(Vec::new()), Method::Psi).outcome, None);
    }

    #[test]
    fn categories_tell_which_value_moved_most() {
        let ids = |list: &[(&str, usize)]| {
            ObservedValues::Categories(
                list.iter().flat_map(|(name, n)| vec![category_id(name.as_bytes()); *n]).collect(),
            )
        };
        let base = baseline(counts(&[("a", 50), ("b", 50)]));
        let mut finding = find(&base, ids(&[("a", 50), ("c", 150)]), Method::Chi2);
        assert!(finding.is_alert(0.05));
        finding.current.find_name(|_| Some(b"c"));
        assert_eq!(finding.members("f")[3].1, Told::from("c 0.750"));
        let unseen = find(&base, ids(&[("a", 150), ("c", 50)]), Method::NewCategories);
        assert_eq!((effect(&unseen), unseen.baseline.clone()), (0.25, Seen::Nothing));
        let shares = match counts(&[("a", 1)]) {
            Content::Counts(list) => {
                Content::Shares(list.into_iter().map(|c| Category { weight: 0.6, id: c.id, name: c.name }).collect())
            }
            other => other,
        };
        let unseen = find(&baseline(shares.clone()), ids(&[("a", 60), ("z", 40)]), Method::NewCategories);
        assert!(effect(&unseen).abs() < 1e-12);
        assert!(effect(&find(&baseline(shares), ids(&[("a", 60), ("z", 40)]), Method::Psi)).abs() < 1e-12);
        let whole = baseline(counts(&[("1", 50), ("0", 50)]));
        let flags = ObservedValues::Numbers([vec![1.0; 100], vec![0.0; 100]].concat());
        assert_eq!(effect(&find(&whole, flags, Method::Chi2)), 0.0);
    }

    /// Would it start an alert among fifty tests?
    fn starts(finding: &Finding) -> bool {
        let levels = Levels::among(std::iter::repeat_n(finding, 50));
        let started = levels.changes(ActiveAlerts::default(), std::slice::from_ref(finding)).count();
        started > 0
    }

    /// Uniform numbers in (0, 1), the same in each run.
    fn uniform(seed: u64) -> impl FnMut() -> f64 {
        let mut drawn = 0u64;
        move || {
            drawn += 1;
            (xxhash_rust::xxh3::xxh3_64_with_seed(&drawn.to_le_bytes(), seed) >> 11) as f64 / (1u64 << 53) as f64
                + 1e-17
        }
    }

    #[test]
    fn many_rare_values_are_no_drift() {
        // As many values as ranks, each as likely as one over its rank.
        let mut draw = uniform(5);
        let mut sample = |n: usize| {
            let ranks = (0..n).map(|_| libm::exp(draw() * libm::log(1_000.0)) as u64).map(|rank| rank.to_string());
            ranks.collect::<Vec<_>>()
        };
        let (mut alerts, mut literal) = (0, 0);
        for _ in 0..100 {
            let mut known: BTreeMap<String, u64> = BTreeMap::new();
            sample(2_000).into_iter().for_each(|rank| *known.entry(rank).or_default() += 1);
            let known: Vec<(&str, u64)> = known.iter().map(|(rank, n)| (rank.as_str(), *n)).collect();
            let base = baseline(counts(&known));
            let now: Vec<_> = sample(600).iter().map(|rank| category_id(rank.as_bytes())).collect();
            for method in [Method::Psi, Method::NewCategories] {
                let finding = find(&base, ObservedValues::Categories(now.clone()), method);
                alerts += usize::from(starts(&finding));
                literal += usize::from(finding.is_alert(0.05));
            }
        }
        assert!(alerts <= 2 && literal >= 50, "{alerts} {literal}");
    }

    #[test]
    fn chance_alone_hardly_ever_alerts_and_a_shift_does() {
        let normal = |u: f64, v: f64| libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v);
        type Shape = (&'static str, fn(f64) -> f64);
        let shapes: [Shape; 3] =
            [("normal", |x| 10.0 + 3.0 * x), ("standardized", |x| x), ("lognormal", |x| libm::exp(1.0 + x))];
        let methods = [Method::Mean, Method::Stddev, Method::Psi, Method::Wasserstein, Method::Js];
        for (shape, of) in shapes {
            for (n, m) in [(100, 1_000), (300, 300)] {
                let mut draw = uniform(n as u64);
                let mut sample = |n: usize| (0..n).map(|_| of(normal(draw(), draw()))).collect::<Vec<_>>();
                let (mut alerts, mut effects) = ([0; 5], [0; 5]);
                for _ in 0..100 {
                    let base = baseline(Content::Numbers(sorted(sample(m))));
                    let now = sample(n);
                    for (i, method) in methods.into_iter().enumerate() {
                        let finding = find(&base, ObservedValues::Numbers(now.clone()), method);
                        alerts[i] += usize::from(starts(&finding));
                        effects[i] += usize::from(effect(&finding) > finding.threshold);
                        // A heavy tail makes deviations jump by as much.
                        if shape != "lognormal" || method != Method::Stddev {
                            let shifted = now.iter().map(|x| 3.0 * x + 20.0).collect();
                            let finding = find(&base, ObservedValues::Numbers(shifted), method);
                            assert!(starts(&finding), "{method:?} {shape}");
                        }
                    }
                }
                assert!(alerts.iter().all(|alerts| *alerts <= 2), "{shape} {n} {m}: {alerts:?}");
                // Without the rule a test that cannot fail.
                assert!(effects.iter().any(|effects| *effects > 20), "{shape} {n} {m}: {effects:?}");
            }
        }
    }
}
