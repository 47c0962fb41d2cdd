//! Baselines: what training saw, and the words of FS.BASELINE.

use super::categories::{category_id, category_name, CategoryId};
use super::current::{as_number, Current, Observed, ObservedValues};
use super::finding::Told;
use super::sums::{MeanVector, VectorSum};
use crate::arguments::{parse_number, Arguments};
use crate::definition::{Feature, FeatureView};
use crate::error::{shown, Error, Result};
use crate::feature_type::FeatureType;
use crate::value::{finite, Refusal, Value};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What current values are compared with.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Baseline {
    /// Share of absent values, 0 to 1.
    pub missing: f64,
    /// How many arrivals, absent ones included, that share is of; `None`: not known, or only the values.
    pub arrivals: Option<u64>,
    /// The values.
    pub content: Content,
}

/// The values of a baseline.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Content {
    /// None: only the share of absent ones is compared.
    Nothing,
    /// Figures of numbers.
    Stats(Stats),
    /// Numbers, sorted.
    Numbers(Vec<f64>),
    /// How often each value came.
    Counts(Vec<Category<u64>>),
    /// Which share each of the most frequent values had.
    Shares(Vec<Category<f64>>),
    /// The mean of vectors.
    Mean(MeanVector),
}

/// Figures of numbers. Those that are not known are not compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Encode, Decode)]
pub struct Stats {
    /// The mean.
    pub mean: Option<f64>,
    /// The standard deviation of the population, at least 0.
    pub stddev: Option<f64>,
    /// The least value; told, not compared.
    pub min: Option<f64>,
    /// The greatest value; told, not compared.
    pub max: Option<f64>,
}

/// A value, with how often it came.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Category<W: 'static> {
    /// What stands for it.
    pub id: CategoryId,
    /// How it is told.
    pub name: Vec<u8>,
    /// Its count or share, above 0.
    pub weight: W,
}

/// What FS.BASELINE is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum BaselineCommand {
    /// Sets this baseline.
    Set(Baseline),
    /// The current window becomes the baseline.
    Freeze,
    /// Forgets the baseline.
    ClearBaseline,
    /// Forgets the current window.
    ClearCurrent,
}

/// What a definition expects of a feature's values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
    /// The standard deviation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stddev: Option<f64>,
    /// The least value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The greatest value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Shares of the most frequent values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub top_categories: BTreeMap<String, f64>,
    /// Share of absent values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<f64>,
}

/// Can a feature of this type be compared by how often each value comes?
fn has_categories(ty: FeatureType) -> bool {
    matches!(ty, FeatureType::String | FeatureType::Int | FeatureType::Bool)
}

/// Reads what follows the feature in FS.BASELINE. `values_max`: most values that SAMPLES may give.
pub fn parse_baseline(
    view: &FeatureView,
    feature: usize,
    arguments: &mut Arguments<'_>,
    values_max: u64,
) -> Result<BaselineCommand> {
    let given = Given { view: &view.name, feature: &view.features()[feature] };
    let words = ["STATS", "SAMPLES", "CATEGORIES", "FREEZE", "CLEAR"];
    let command = match arguments.one_of("the form of a baseline", &words)? {
        0 => BaselineCommand::Set(given.stats(arguments)?),
        1 => BaselineCommand::Set(given.samples(arguments, values_max)?),
        2 => BaselineCommand::Set(given.categories(arguments)?),
        3 => BaselineCommand::Freeze,
        _ => match arguments.one_of("CLEAR", &["BASELINE", "CURRENT"])? {
            0 => BaselineCommand::ClearBaseline,
            _ => BaselineCommand::ClearCurrent,
        },
    };
    arguments.finish()?;
    Ok(command)
}

/// What a baseline is given for.
struct Given<'a> {
    view: &'a str,
    feature: &'a Feature,
}

impl Given<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::schema(format!("feature '{}' of view '{}': {why}", self.feature.name, self.view))
    }

    fn require(&self, fits: bool, form: &str, types: &str) -> Result<()> {
        match fits {
            true => Ok(()),
            false => Err(self.refuse(format!("a baseline of {form} needs {types}, not {}", self.feature.ty))),
        }
    }

    fn number(&self, what: &str, text: &[u8]) -> Result<f64> {
        finite(text).ok_or_else(|| self.refuse(format!("{what} must be a finite number, got '{}'", shown(text))))
    }

    fn share(&self, what: &str, text: &[u8]) -> Result<f64> {
        let share = self.number(what, text)?;
        match (0.0..=1.0).contains(&share) {
            true => Ok(share),
            false => Err(self.refuse(format!("{what} must be a share from 0 to 1, got '{}'", shown(text)))),
        }
    }

    fn value<'t>(&self, text: &'t [u8]) -> Result<Value<'t>> {
        let (ty, given) = (self.feature.ty, shown(text));
        Value::from_text(ty, text).map_err(|refusal| {
            self.refuse(match refusal {
                Refusal::Type => format!("the baseline's values must be {ty}, got '{given}'"),
                Refusal::Because(why) => format!("the baseline's values must be {ty}, but '{given}' {why}"),
            })
        })
    }

    fn missing(&self, arguments: &mut Arguments<'_>) -> Result<f64> {
        match arguments.take_word("MISSING") {
            true => self.share("MISSING", arguments.next("MISSING")?),
            false => Ok(0.0),
        }
    }

    fn stats(&self, arguments: &mut Arguments<'_>) -> Result<Baseline> {
        self.require(self.feature.ty.is_number(), "STATS", "a number")?;
        let names = ["mean", "stddev", "min", "max", "missing"];
        let mut figures = [None; 5];
        while !arguments.is_empty() {
            let which = arguments.one_of("a figure of STATS", &names)?;
            let text = arguments.next(names[which])?;
            let figure = if which == 4 { self.share("missing", text)? } else { self.number(names[which], text)? };
            if figures[which].replace(figure).is_some() {
                return Err(Error::syntax(format!("STATS names {} twice", names[which])));
            }
        }
        let [mean, stddev, min, max, missing] = figures;
        if let Some((name, _)) = names.iter().zip([mean, stddev]).find(|(_, figure)| figure.is_none()) {
            return Err(Error::syntax(format!("STATS needs {name}")));
        }
        self.checked_stats(Stats { mean, stddev, min, max }, missing)
    }

    fn checked_stats(&self, stats: Stats, missing: Option<f64>) -> Result<Baseline> {
        if let Some(stddev) = stats.stddev.filter(|stddev| *stddev < 0.0) {
            return Err(self.refuse(format!("stddev must not be negative, got '{stddev}'")));
        }
        if let (Some(min), Some(max)) = (stats.min, stats.max) {
            if min > max {
                return Err(self.refuse(format!("min {min} is above max {max}")));
            }
        }
        Ok(Baseline { missing: missing.unwrap_or(0.0), arrivals: None, content: Content::Stats(stats) })
    }

    fn samples(&self, arguments: &mut Arguments<'_>, values_max: u64) -> Result<Baseline> {
        self.require(self.feature.ty != FeatureType::List, "SAMPLES", "a number, a STRING or a VECTOR")?;
        let n = arguments.number("the number of SAMPLES", 1)?;
        if n > values_max {
            return Err(self.refuse(format!(
                "{n} SAMPLES are more than fs.drift-samples ({values_max}): give a random sample of them"
            )));
        }
        let texts = (0..n).map(|_| arguments.next("a value of SAMPLES")).collect::<Result<Vec<_>>>()?;
        let content = match self.feature.ty {
            FeatureType::String => {
                let mut counts: BTreeMap<&[u8], u64> = BTreeMap::new();
                texts.iter().for_each(|text| *counts.entry(text).or_default() += 1);
                Content::Counts(counts.into_iter().map(|(text, n)| category(text, n)).collect())
            }
            FeatureType::Vector(dimensions) => {
                let mut sum = VectorSum::new(dimensions);
                for text in &texts {
                    if let Value::Vector(components) = self.value(text)? {
                        sum.add(components.into_iter());
                    }
                }
                Content::Mean(sum.mean(n))
            }
            _ => {
                let numbers = texts.iter().map(|text| self.value(text).map(|value| as_number(&value)));
                Content::Numbers(sorted(numbers.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()))
            }
        };
        Ok(Baseline { missing: self.missing(arguments)?, arrivals: None, content })
    }

    fn categories(&self, arguments: &mut Arguments<'_>) -> Result<Baseline> {
        self.require(has_categories(self.feature.ty), "CATEGORIES", "STRING, INT or BOOL")?;
        let n = arguments.number("the number of CATEGORIES", 1)?;
        let mut counts = BTreeMap::new();
        let mut all = 0u64;
        for _ in 0..n {
            let text = arguments.next("a value of CATEGORIES")?;
            let value = category_of(&self.value(text)?);
            let given = arguments.next("a count of CATEGORIES")?;
            let count = parse_number(&format!("the count of '{}'", shown(text)), given, 1);
            let count = count.map_err(|error| self.refuse(error.message))?;
            all = all
                .checked_add(count)
                .filter(|all| *all < 1 << 53)
                .ok_or_else(|| self.refuse("the counts of CATEGORIES sum up to more than 2^53"))?;
            if counts.insert(value, count).is_some() {
                return Err(self.refuse(format!("CATEGORIES names '{}' twice", shown(text))));
            }
        }
        let content = Content::Counts(counts.into_iter().map(|(value, n)| category(&value, n)).collect());
        Ok(Baseline { missing: self.missing(arguments)?, arrivals: None, content })
    }

    fn expected(&self, expected: &Expected) -> Result<Baseline> {
        let Expected { mean, stddev, min, max, top_categories, missing } = expected;
        if let Some(missing) = missing.filter(|missing| !(0.0..=1.0).contains(missing)) {
            return Err(self.refuse(format!("expected missing must be a share from 0 to 1, got '{missing}'")));
        }
        let stats = Stats { mean: *mean, stddev: *stddev, min: *min, max: *max };
        if stats != Stats::default() {
            self.require(self.feature.ty.is_number(), "expected figures", "a number")?;
            if !top_categories.is_empty() {
                return Err(self.refuse("expected is either figures or top_categories"));
            }
            return self.checked_stats(stats, *missing);
        }
        let mut baseline = Baseline { missing: missing.unwrap_or(0.0), arrivals: None, content: Content::Nothing };
        if top_categories.is_empty() {
            return match missing {
                Some(_) => Ok(baseline),
                None => Err(self.refuse("expected says nothing")),
            };
        }
        self.require(has_categories(self.feature.ty), "top_categories", "STRING, INT or BOOL")?;
        let mut shares = BTreeMap::new();
        for (text, share) in top_categories {
            if !(*share > 0.0 && *share <= 1.0) {
                return Err(self.refuse(format!(
                    "the share of '{}' must be above 0 and at most 1, got '{share}'",
                    shown(text.as_bytes())
                )));
            }
            if shares.insert(category_of(&self.value(text.as_bytes())?), *share).is_some() {
                return Err(self.refuse(format!("top_categories names '{}' twice", shown(text.as_bytes()))));
            }
        }
        let sum: f64 = shares.values().sum();
        if sum > 1.0 + 1e-9 {
            return Err(self.refuse(format!("the shares of top_categories sum up to {sum}, more than 1")));
        }
        baseline.content = Content::Shares(shares.into_iter().map(|(value, share)| category(&value, share)).collect());
        Ok(baseline)
    }
}

/// What a value is counted as. Of numbers, what is left of them in the current window.
fn category_of(value: &Value<'_>) -> Vec<u8> {
    match as_number(value) {
        Some(number) => whole_number(number).into_bytes(),
        None => value.to_field(),
    }
}

/// A whole number, as a category.
pub(crate) fn whole_number(number: f64) -> String {
    (number as i64).to_string()
}

fn category<W>(value: &[u8], weight: W) -> Category<W> {
    Category { id: category_id(value), name: category_name(value), weight }
}

/// Numbers in order, without a negative zero.
pub(crate) fn sorted(mut numbers: Vec<f64>) -> Vec<f64> {
    numbers.iter_mut().for_each(|x| *x += 0.0);
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.shrink_to_fit();
    numbers
}

impl Baseline {
    /// What a definition expects. `view` is for the error.
    pub fn of_expected(view: &str, feature: &Feature, expected: &Expected) -> Result<Self> {
        Given { view, feature }.expected(expected)
    }

    /// A window as it is now. An error if nothing came.
    pub fn frozen(view: &str, feature: &Feature, current: &Current, observed: Observed) -> Result<Self> {
        let arrivals = observed.present + observed.absent;
        let content = match observed.values {
            _ if arrivals == 0 => {
                let given = Given { view, feature };
                return Err(given.refuse("the current window is empty, there is nothing to FREEZE"));
            }
            ObservedValues::Numbers(numbers) if !numbers.is_empty() => Content::Numbers(sorted(numbers)),
            ObservedValues::Categories(ids) if !ids.is_empty() => {
                let mut counts: BTreeMap<CategoryId, u64> = BTreeMap::new();
                ids.iter().for_each(|id| *counts.entry(*id).or_default() += 1);
                let name = |id| current.category_name(id).unwrap_or_default().to_vec();
                Content::Counts(
                    counts.into_iter().map(|(id, weight)| Category { id, name: name(id), weight }).collect(),
                )
            }
            ObservedValues::Mean(Some(mean)) => Content::Mean(mean),
            _ => Content::Nothing,
        };
        Ok(Baseline { missing: observed.absent as f64 / arrivals as f64, arrivals: Some(arrivals), content })
    }

    /// What it says of itself, but for its values.
    pub fn members(&self) -> Vec<(&'static str, Told)> {
        let form = match &self.content {
            Content::Nothing => "MISSING",
            Content::Stats(_) => "STATS",
            Content::Numbers(_) | Content::Mean(_) => "SAMPLES",
            Content::Counts(_) => "CATEGORIES",
            Content::Shares(_) => "TOP_CATEGORIES",
        };
        let mut members = vec![
            ("form", form.into()),
            ("n", self.n().map_or(Told::Nil, Told::Count)),
            ("missing", Told::Number(self.missing)),
        ];
        if let Content::Stats(Stats { mean, stddev, min, max }) = self.content {
            members.extend([
                ("mean", mean.into()),
                ("stddev", stddev.into()),
                ("min", min.into()),
                ("max", max.into()),
            ]);
        }
        members
    }

    /// How many values it has, where it says so.
    pub fn n(&self) -> Option<u64> {
        match &self.content {
            Content::Nothing | Content::Stats(_) | Content::Shares(_) => None,
            Content::Numbers(numbers) => Some(numbers.len() as u64),
            Content::Counts(counts) => Some(counts.iter().map(|c| c.weight).sum()),
            Content::Mean(mean) => Some(mean.n),
        }
    }

    /// Does it fit a feature of this type, and is it in order? What was read from a file may not be.
    pub fn is_sound(&self, ty: FeatureType) -> bool {
        let is_weight = |weight: f64| weight > 0.0 && weight < 9.1e15;
        let fits = match &self.content {
            Content::Nothing => true,
            Content::Stats(stats) => {
                let figures = [stats.mean, stats.stddev, stats.min, stats.max];
                ty.is_number() && figures.iter().flatten().all(|x| x.is_finite())
            }
            Content::Numbers(numbers) => {
                let in_order = numbers.iter().zip(numbers.iter().skip(1)).all(|(a, b)| a <= b);
                ty.is_number() && in_order && !numbers.is_empty() && numbers.iter().all(|x| x.is_finite())
            }
            Content::Counts(counts) => {
                let sum = counts.iter().map(|c| c.weight as f64).sum::<f64>();
                has_categories(ty) && !counts.is_empty() && counts.iter().all(|c| c.weight > 0) && is_weight(sum)
            }
            Content::Shares(shares) => {
                has_categories(ty) && !shares.is_empty() && shares.iter().all(|c| is_weight(c.weight))
            }
            Content::Mean(MeanVector { mean, spread, n }) => {
                let is_finite = spread.is_finite() && mean.iter().all(|x| x.is_finite());
                *n > 0 && is_finite && ty == FeatureType::Vector(mean.len() as u32)
            }
        };
        fits && (0.0..=1.0).contains(&self.missing)
    }

    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        match &self.content {
            Content::Nothing | Content::Stats(_) => 0,
            Content::Numbers(numbers) | Content::Mean(MeanVector { mean: numbers, .. }) => {
                numbers.capacity() * size_of::<f64>()
            }
            Content::Counts(counts) => counts.iter().map(|c| size_of_val(c) + c.name.capacity()).sum(),
            Content::Shares(shares) => shares.iter().map(|c| size_of_val(c) + c.name.capacity()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::schema_syntax::parse_registration;

    fn view() -> FeatureView {
        let words = "ENTITY u SCHEMA f FLOAT i INT b BOOL s STRING v VECTOR 2 l LIST";
        let items: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        parse_registration(b"v", &mut Arguments::new(&items)).expect("a definition")
    }

    fn parse(feature: &str, words: &str) -> Result<BaselineCommand> {
        let view = view();
        let items: Vec<&[u8]> = words.split(' ').filter(|w| !w.is_empty()).map(str::as_bytes).collect();
        let feature = view.position(feature.as_bytes(), 0).expect("a feature");
        parse_baseline(&view, feature, &mut Arguments::new(&items), 5)
    }

    fn content(feature: &str, words: &str) -> Content {
        match parse(feature, words) {
            Ok(BaselineCommand::Set(baseline)) => {
                let view = view();
                let ty = view.features()[view.position(feature.as_bytes(), 0).expect("a feature")].ty;
                assert!(baseline.is_sound(ty), "{words}");
                baseline.content
            }
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn each_form_is_read_as_its_feature_is_compared() {
        assert_eq!(content("f", "SAMPLES 3 2.5 -0 1e2"), Content::Numbers(vec![0.0, 2.5, 100.0]));
        assert_eq!(content("b", "SAMPLES 2 true 0"), Content::Numbers(vec![0.0, 1.0]));
        assert_eq!(
            content("v", "SAMPLES 2 1,2 [3,6]"),
            Content::Mean(MeanVector { mean: vec![2.0, 4.0], spread: 5.0, n: 2 })
        );
        let counts = Content::Counts(vec![category(b"1", 7), category(b"2", 5)]);
        assert_eq!(content("i", "CATEGORIES 2 2.0 5 1 7"), counts);
        let counts = Content::Counts(vec![category(b"x", 2), category(b"y", 1)]);
        assert_eq!(content("s", "SAMPLES 3 x y x"), counts);
        let stats = Stats { mean: Some(1.0), stddev: Some(0.0), min: Some(-1.0), max: None };
        assert_eq!(content("f", "STATS stddev 0 MEAN 1 min -1 missing 0.5"), Content::Stats(stats));
        assert_eq!(parse("l", "FREEZE"), Ok(BaselineCommand::Freeze));
        assert_eq!(parse("l", "CLEAR CURRENT"), Ok(BaselineCommand::ClearCurrent));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (feature, words, code) in [
            ("f", "", Code::Err),
            ("f", "WORD", Code::Err),
            ("f", "STATS", Code::Err),
            ("f", "STATS mean 1", Code::Err),
            ("f", "STATS mean 1 stddev 1 mean 2", Code::Err),
            ("f", "STATS mean nan stddev 1", Code::Schema),
            ("f", "STATS mean 1 stddev -1", Code::Schema),
            ("f", "STATS mean 1 stddev 1 min 2 max 1", Code::Schema),
            ("f", "STATS mean 1 stddev 1 missing 2", Code::Schema),
            ("s", "STATS mean 1 stddev 1", Code::Schema),
            ("f", "SAMPLES 0", Code::Err),
            ("f", "SAMPLES 2 1", Code::Err),
            ("f", "SAMPLES 1 1 2", Code::Err),
            ("f", "SAMPLES 2 1 inf", Code::Schema),
            ("f", "SAMPLES 6 1 2 3 4 5 6", Code::Schema),
            ("v", "SAMPLES 1 1,2,3", Code::Schema),
            ("l", "SAMPLES 1 []", Code::Schema),
            ("f", "CATEGORIES 1 1 1", Code::Schema),
            ("s", "CATEGORIES 1 x 0", Code::Schema),
            ("s", "CATEGORIES 2 x 1 x 2", Code::Schema),
            ("s", "CATEGORIES 1 x 1 MISSING", Code::Err),
            ("i", "CATEGORIES 1 x 1", Code::Schema),
            ("s", "CATEGORIES 2 x 9007199254740991 y 2", Code::Schema),
            ("f", "CLEAR", Code::Err),
            ("f", "FREEZE NOW", Code::Err),
        ] {
            let error = parse(feature, words).expect_err(words);
            assert_eq!(error.code, code, "{words}: {error}");
        }
    }
}
