//! Findings: what a method says of a feature, and whether that is an alert.

use super::baseline::{sorted, whole_number, Baseline, Category, Content, Stats};
use super::categories::{category_id, category_name, CategoryId};
use super::current::{Observed, ObservedValues};
use super::method::{Method, Test};
use super::statistics::{
    bin_counts, chi_squared, cosine_distance, jensen_shannon, kolmogorov_smirnov, mean_and_deviation,
    population_stability, quantile_edges, wasserstein,
};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Below this p-value a test calls two samples different.
pub const SIGNIFICANCE: f64 = 0.05;
/// Fewer values than this, on either side, are not compared.
const VALUES_MIN: u64 = 100;
/// PSI and JS cut numbers into so many bins.
const BINS: usize = 10;
/// An alert ends at this part of its threshold, or at so many times its significance.
const ENDS_AT_EFFECT: f64 = 0.8;
const ENDS_AT_P: f64 = 4.0;

/// What a method looked at on one side.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// Nothing that could be told.
    Nothing,
    /// A figure.
    Number(f64),
    /// A value and its share. The name is missing where only the window knows it.
    Category(CategoryId, Option<Vec<u8>>, f64),
}

/// What a method says of a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The method.
    pub method: Method,
    /// What it looked at in the baseline.
    pub baseline: Seen,
    /// What it looked at in the current window.
    pub current: Seen,
    /// Its result; `None`: there are too few values.
    pub outcome: Option<Outcome>,
    /// The effect above which it alerts.
    pub threshold: f64,
    /// How many values the baseline has, where it says so.
    pub baseline_n: Option<u64>,
    /// How many values the current window has.
    pub current_n: u64,
}

/// A method's result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The statistic.
    pub statistic: f64,
    /// Of a test: how often two samples of one distribution lie that far apart.
    pub p_value: Option<f64>,
    /// What is compared with the threshold.
    pub effect: f64,
}

impl Outcome {
    fn of(statistic: f64) -> Self {
        Outcome { statistic, p_value: None, effect: statistic }
    }
}

/// A member of a finding as it is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Nothing.
    Nil,
    /// Text; of categories it may be any bytes.
    Text(Vec<u8>),
    /// A figure, which may be infinite.
    Number(f64),
    /// A count.
    Count(u64),
    /// Yes or no.
    Flag(bool),
}

impl From<&str> for Told {
    fn from(text: &str) -> Self {
        Told::Text(text.as_bytes().to_vec())
    }
}

impl From<Option<f64>> for Told {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Told::Nil, Told::Number)
    }
}

impl Told {
    /// As a field of a stream's entry; nil is empty.
    pub fn to_field(&self) -> Vec<u8> {
        match self {
            Told::Nil => Vec::new(),
            Told::Text(text) => text.clone(),
            Told::Number(number) => format_number(*number).into_bytes(),
            Told::Count(n) => n.to_string().into_bytes(),
            Told::Flag(flag) => u8::from(*flag).to_string().into_bytes(),
        }
    }

    /// As JSON. What is infinite becomes text.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Told::Nil => serde_json::Value::Null,
            Told::Text(text) => String::from_utf8_lossy(text).into(),
            Told::Number(number) if number.is_finite() => (*number).into(),
            Told::Number(number) => format_number(*number).into(),
            Told::Count(n) => (*n).into(),
            Told::Flag(flag) => (*flag).into(),
        }
    }
}

/// The shortest decimal that reads back the same; `inf`, `-inf`.
pub fn format_number(number: f64) -> String {
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format(number);
    text.strip_suffix(".0").unwrap_or(text).to_owned()
}

impl Seen {
    fn told(&self) -> Told {
        match self {
            Seen::Nothing => Told::Nil,
            Seen::Number(number) => Told::Number(*number),
            Seen::Category(id, name, share) => {
                let mut text = name.clone().unwrap_or_else(|| format!("({id:016x})").into_bytes());
                text.extend_from_slice(format!(" {share:.3}").as_bytes());
                Told::Text(text)
            }
        }
    }

    /// Looks up the name of a category that the baseline does not have.
    pub fn find_name<'n>(&mut self, name_of: impl Fn(CategoryId) -> Option<&'n [u8]>) {
        if let Seen::Category(id, name @ None, _) = self {
            *name = name_of(*id).map(<[u8]>::to_vec);
        }
    }
}

impl Finding {
    /// Does it alert, when p-values are held against this level?
    pub fn is_alert(&self, significance: f64) -> bool {
        self.outcome
            .is_some_and(|outcome| outcome.effect > self.threshold && outcome.p_value.is_none_or(|p| p < significance))
    }

    /// Is there an alert now, if there was one before? One that has started does not end at the same place.
    pub fn keeps_alert(&self, was_alert: bool, significance: f64) -> bool {
        match self.outcome {
            None => was_alert,
            Some(_) if !was_alert => self.is_alert(significance),
            Some(Outcome { effect, p_value, .. }) => {
                effect > ENDS_AT_EFFECT * self.threshold && p_value.is_none_or(|p| p < ENDS_AT_P * significance)
            }
        }
    }

    /// All that it says, in the order in which it is told.
    pub fn members(&self, feature: &str, is_alert: bool) -> [(&'static str, Told); 12] {
        let status = match self.outcome {
            None => "INSUFFICIENT",
            Some(_) if is_alert => "ALERT",
            Some(_) => "OK",
        };
        [
            ("feature", feature.into()),
            ("method", self.method.name().into()),
            ("baseline", self.baseline.told()),
            ("current", self.current.told()),
            ("statistic", self.outcome.map(|o| o.statistic).into()),
            ("p_value", self.outcome.and_then(|o| o.p_value).into()),
            ("effect", self.outcome.map(|o| o.effect).into()),
            ("threshold", Told::Number(self.threshold)),
            ("alert", Told::Flag(is_alert)),
            ("baseline_n", self.baseline_n.map_or(Told::Nil, Told::Count)),
            ("current_n", Told::Count(self.current_n)),
            ("status", status.into()),
        ]
    }
}

/// Compares what was observed with a baseline, by methods that fit it.
pub fn findings(baseline: &Baseline, observed: Observed, tests: &[Test]) -> Vec<Finding> {
    let sides = Sides::of(baseline, observed);
    tests.iter().map(|test| sides.finding(*test)).collect()
}

/// Both sides, made ready for all methods.
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
    Mean(Option<Vec<f64>>),
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
    fn compare(&self, method: Method) -> Option<(Seen, Seen, Option<Outcome>)> {
        if method == Method::Missing {
            let arrivals = self.present + self.absent;
            let before = self.baseline.missing;
            let share = (arrivals > 0).then(|| self.absent as f64 / arrivals as f64);
            let outcome = share.map(|share| Outcome::of(share - before));
            return Some((Seen::Number(before), share.map_or(Seen::Nothing, Seen::Number), outcome));
        }
        match (&self.baseline.content, &self.current) {
            (Content::Stats(stats), CurrentSide::Numbers(current)) => compare_figures(method, *stats, current),
            (Content::Numbers(baseline), CurrentSide::Numbers(current)) => compare_numbers(method, baseline, current),
            (Content::Counts(baseline), CurrentSide::Counts(current)) => {
                let weights =
                    baseline.iter().map(|c| Category { id: c.id, name: c.name.clone(), weight: c.weight as f64 });
                Some(compare_categories(method, &weights.collect::<Vec<_>>(), None, current))
            }
            (Content::Shares(baseline), CurrentSide::Counts(current)) => {
                let open = (1.0 - baseline.iter().map(|c| c.weight).sum::<f64>()).max(0.0);
                Some(compare_categories(method, baseline, Some(open), current))
            }
            (Content::Mean(baseline, _), CurrentSide::Mean(current)) => {
                Some(compare_directions(baseline, current.as_deref()))
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

fn compare_figures(method: Method, stats: Stats, current: &[f64]) -> Option<(Seen, Seen, Option<Outcome>)> {
    let now = mean_and_deviation(current);
    let (before, now, scale) = match method {
        // Beside a large deviation a small mean is no measure: standardized features have one of about 0.
        Method::Mean => {
            let mean = stats.mean?;
            (mean, now.map(|now| now.mean), mean.abs().max(stats.stddev.unwrap_or(0.0) / 2.0))
        }
        _ => (stats.stddev?, now.map(|now| now.deviation), stats.stddev?),
    };
    let outcome = now.map(|now| Outcome::of(relative(now - before, scale)));
    Some((Seen::Number(before), now.map_or(Seen::Nothing, Seen::Number), outcome))
}

fn compare_numbers(method: Method, baseline: &[f64], current: &[f64]) -> Option<(Seen, Seen, Option<Outcome>)> {
    let before = mean_and_deviation(baseline)?;
    if matches!(method, Method::Mean | Method::Stddev) {
        let stats = Stats { mean: Some(before.mean), stddev: Some(before.deviation), min: None, max: None };
        return compare_figures(method, stats, current);
    }
    let Some(now) = mean_and_deviation(current) else {
        return Some((Seen::Number(before.mean), Seen::Nothing, None));
    };
    let bins = || {
        let edges = quantile_edges(baseline, BINS);
        [baseline, current]
            .map(|side| bin_counts(side.iter().copied(), &edges).into_iter().map(|n| n as f64).collect::<Vec<_>>())
    };
    let outcome = match method {
        Method::Ks => {
            let test = kolmogorov_smirnov(baseline, current);
            Outcome { statistic: test.statistic, p_value: Some(test.p_value), effect: test.statistic }
        }
        Method::Wasserstein => Outcome::of(relative(wasserstein(baseline, current), before.deviation)),
        Method::Psi => {
            let [expected, actual] = bins();
            Outcome::of(population_stability(&expected, &actual))
        }
        _ => {
            let [expected, actual] = bins();
            Outcome::of(jensen_shannon(&expected, &actual))
        }
    };
    Some((Seen::Number(before.mean), Seen::Number(now.mean), Some(outcome)))
}

/// `open`: the share that the baseline leaves to values that it does not name; `None`: it names all that it has.
fn compare_categories(
    method: Method,
    baseline: &[Category<f64>],
    open: Option<f64>,
    current: &BTreeMap<CategoryId, (u64, Option<Vec<u8>>)>,
) -> (Seen, Seen, Option<Outcome>) {
    let before: f64 = if open.is_some() { 1.0 } else { baseline.iter().map(|c| c.weight).sum() };
    let now = current.values().map(|(n, _)| *n).sum::<u64>() as f64;
    let count = |id: CategoryId| current.get(&id).map_or(0, |(n, _)| *n);
    let known: BTreeMap<CategoryId, &Category<f64>> = baseline.iter().map(|c| (c.id, c)).collect();
    let unseen = || current.iter().filter(|(id, _)| !known.contains_key(id));
    let unseen_n: u64 = unseen().map(|(_, (n, _))| *n).sum();
    let share_of_unseen = if now > 0.0 { unseen_n as f64 / now } else { 0.0 };
    if method == Method::NewCategories {
        let most = unseen().max_by_key(|(id, (n, _))| (*n, std::cmp::Reverse(**id)));
        let most = most.map(|(id, (n, name))| Seen::Category(*id, name.clone(), *n as f64 / now));
        let outcome = Outcome::of(share_of_unseen - open.unwrap_or(0.0));
        return (Seen::Nothing, most.unwrap_or(Seen::Nothing), Some(outcome));
    }
    let outcome = match method {
        Method::Chi2 => {
            let union =
                baseline.iter().map(|c| (c.weight as u64, count(c.id))).chain(unseen().map(|(_, (n, _))| (0, *n)));
            let (expected, actual): (Vec<u64>, Vec<u64>) = union.unzip();
            (now > 0.0).then(|| {
                let tested = chi_squared(&expected, &actual);
                let (statistic, p_value) = (tested.test.statistic, Some(tested.test.p_value));
                Outcome { statistic, p_value, effect: tested.cramers_v }
            })
        }
        _ => {
            let mut expected: Vec<f64> = baseline.iter().map(|c| c.weight).collect();
            expected.push(open.unwrap_or(0.0));
            let mut actual: Vec<f64> = baseline.iter().map(|c| count(c.id) as f64).collect();
            actual.push(unseen_n as f64);
            (now > 0.0).then(|| Outcome::of(population_stability(&expected, &actual)))
        }
    };
    if now == 0.0 {
        return (Seen::Nothing, Seen::Nothing, None);
    }
    // Which value moved most is what a reader asks next.
    let share = |n: f64, all: f64| if all > 0.0 { n / all } else { 0.0 };
    let of_known = baseline.iter().map(|c| (c.id, share(c.weight, before), share(count(c.id) as f64, now)));
    let of_unseen = unseen().map(|(id, (n, _))| (*id, 0.0, share(*n as f64, now)));
    let mut most: Option<(CategoryId, f64, f64)> = None;
    for moved in of_known.chain(of_unseen) {
        if most.is_none_or(|(_, before, now)| (moved.1 - moved.2).abs() > (before - now).abs()) {
            most = Some(moved);
        }
    }
    let Some((id, before, now)) = most else { return (Seen::Nothing, Seen::Nothing, outcome) };
    let name = known.get(&id).map(|c| c.name.clone()).or_else(|| current.get(&id).and_then(|(_, name)| name.clone()));
    (Seen::Category(id, name.clone(), before), Seen::Category(id, name, now), outcome)
}

fn compare_directions(baseline: &[f64], current: Option<&[f64]>) -> (Seen, Seen, Option<Outcome>) {
    let length = |v: &[f64]| libm::sqrt(v.iter().map(|x| x * x).sum());
    let before = length(baseline);
    let Some(current) = current else { return (Seen::Number(before), Seen::Nothing, None) };
    let now = length(current);
    let distance = cosine_distance(baseline, current).unwrap_or(if before == now { 0.0 } else { 1.0 });
    (Seen::Number(before), Seen::Number(now), Some(Outcome::of(distance)))
}

/// An alert as a stream's entry and a message tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert<'a> {
    /// The view.
    pub view: &'a str,
    /// Its version.
    pub version: u32,
    /// The feature.
    pub feature: &'a str,
    /// It starts, or it ends.
    pub starts: bool,
    /// The method.
    pub method: Method,
    /// What the method says; `None`: there is nothing left to test.
    pub finding: Option<&'a Finding>,
}

/// The members of a finding that an alert does not repeat: it is one.
const NOT_OF_AN_ALERT: [&str; 4] = ["feature", "method", "alert", "status"];
/// What an alert tells of its finding.
const OF_FINDING: [&str; 8] =
    ["baseline", "current", "statistic", "p_value", "effect", "threshold", "baseline_n", "current_n"];

impl Alert<'_> {
    /// All that it says, in the order in which it is told.
    pub fn members(&self) -> Vec<(&'static str, Told)> {
        let mut members = vec![
            ("event", if self.starts { "start" } else { "end" }.into()),
            ("view", self.view.into()),
            ("version", Told::Count(u64::from(self.version))),
            ("feature", self.feature.into()),
            ("method", self.method.name().into()),
        ];
        match self.finding {
            Some(finding) => {
                let told = finding.members(self.feature, self.starts).into_iter();
                members.extend(told.filter(|(name, _)| !NOT_OF_AN_ALERT.contains(name)));
            }
            None => members.extend(OF_FINDING.map(|name| (name, Told::Nil))),
        }
        members
    }

    /// As a JSON object.
    pub fn to_json(&self) -> String {
        let mut json = String::from("{");
        for (i, (name, told)) in self.members().iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            // Writing to a String cannot fail.
            let _ = write!(json, "{comma}\"{name}\":{}", told.to_json());
        }
        json.push('}');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let still = baseline(Content::Mean(vec![0.0, 0.0], 100));
        let mean = |v: [f64; 2]| ObservedValues::Mean(Some(v.to_vec()));
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
        assert_eq!((finding.outcome, finding.is_alert(1.0), finding.keeps_alert(true, 0.05)), (None, false, true));
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
        assert_eq!(finding.current.told(), Told::from("c 0.750"));
        let unseen = find(&base, ids(&[("a", 150), ("c", 50)]), Method::NewCategories);
        assert_eq!((effect(&unseen), unseen.baseline.told()), (0.25, Told::Nil));
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

    #[test]
    fn an_alert_does_not_end_where_it_starts() {
        let at = |effect: f64, p_value: Option<f64>| Finding {
            method: Method::Ks,
            baseline: Seen::Nothing,
            current: Seen::Nothing,
            outcome: Some(Outcome { statistic: effect, p_value, effect }),
            threshold: 0.1,
            baseline_n: None,
            current_n: 100,
        };
        for (effect, p_value, starts, stays) in [
            (0.11, Some(0.01), true, true),
            (0.11, Some(0.06), false, true),
            (0.11, Some(0.2), false, false),
            (0.1, None, false, true),
            (0.09, None, false, true),
            (0.08, None, false, false),
        ] {
            let finding = at(effect, p_value);
            let got = (finding.keeps_alert(false, 0.05), finding.keeps_alert(true, 0.05));
            assert_eq!(got, (starts, stays), "{effect} {p_value:?}");
        }
    }

    #[test]
    fn an_alert_tells_the_same_members_with_and_without_a_finding() {
        let base = baseline(counts(&[("a", 50), ("b", 50)]));
        let finding = find(&base, ObservedValues::Categories(vec![1; 200]), Method::Chi2);
        let alert =
            |finding| Alert { view: "v", version: 1, feature: "f", starts: true, method: Method::Chi2, finding };
        let names = |alert: &Alert<'_>| alert.members().iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&alert(None)), names(&alert(Some(&finding))));
        let json: serde_json::Value = serde_json::from_str(&alert(Some(&finding)).to_json()).expect("JSON");
        assert_eq!((json["event"].as_str(), json["current_n"].as_u64()), (Some("start"), Some(200)));
    }
}
