//! What a definition says of a window: which function of which input, over how long, in which hops.

use crate::arguments::Arguments;
use crate::definition::Feature;
use crate::error::{shown, Error, Result};
use crate::feature_type::FeatureType;
use crate::keys::checked_feature_name;
use crate::time::{format_duration, parse_duration};
use crate::value::Value;
use std::borrow::Cow;
use std::fmt;

/// Most hops in a window.
pub const HOPS_MAX: i64 = 4_096;
/// Shortest window, milliseconds.
const WINDOW_MS_MIN: i64 = 1_000;
/// A window without HOP has at least this many, where its length allows.
const DEFAULT_HOPS_MIN: i64 = 48;
/// Hops to choose from, milliseconds: 1s 5s 10s 30s 1m 5m 10m 30m 1h 3h 6h 12h 1d.
const DEFAULT_HOPS_MS: [i64; 13] = [
    1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000, 10_800_000, 21_600_000, 43_200_000,
    86_400_000,
];
/// A half-life may be this many times shorter than the hop: beyond, one hop would span too many powers of two.
const HALF_LIVES_PER_HOP_MAX: i64 = 64;
/// Most values in a LAST_K.
pub(super) const LAST_K_MAX: u32 = 1_024;
/// Most values in a TOP_K: as many as are counted exactly.
const TOP_K_MAX: u32 = 256;

/// The function of a window's events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// How many events carry the input.
    Count,
    /// Their sum.
    Sum,
    /// Their sum, each weighing half as much for every half-life (milliseconds) that it lies back.
    DecayedSum(i64),
    /// Their mean.
    Mean,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// Variance of the population.
    VarPop,
    /// Variance of a sample: divided by n - 1.
    VarSamp,
    /// Standard deviation of the population.
    StddevPop,
    /// Standard deviation of a sample.
    StddevSamp,
    /// The earliest value by event time; ties: the earlier arrival.
    First,
    /// The latest value by event time; ties: the later arrival.
    Last,
    /// The latest k values, newest first.
    LastK(u32),
    /// About how many distinct values.
    ApproxCountDistinct,
    /// About the value of rank floor(q * (n - 1)), q in (0, 1).
    ApproxPercentile(f64),
    /// The k most frequent values with their counts.
    TopK(u32),
    /// All values with their counts.
    Histogram,
    /// The mean of vectors.
    MeanVector,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Function::Count => "COUNT",
            Function::Sum => "SUM",
            Function::DecayedSum(_) => "DECAYED_SUM",
            Function::Mean | Function::MeanVector => "MEAN",
            Function::Min => "MIN",
            Function::Max => "MAX",
            Function::VarPop => "VAR_POP",
            Function::VarSamp => "VAR_SAMP",
            Function::StddevPop => "STDDEV_POP",
            Function::StddevSamp => "STDDEV_SAMP",
            Function::First => "FIRST",
            Function::Last => "LAST",
            Function::LastK(_) => "LAST_K",
            Function::ApproxCountDistinct => "APPROX_COUNT_DISTINCT",
            Function::ApproxPercentile(_) => "APPROX_PERCENTILE",
            Function::TopK(_) => "TOP_K",
            Function::Histogram => "HISTOGRAM",
        }
    }

    /// The value over no events; `None`: there is none, a default is served where one is defined.
    pub fn over_no_events(self) -> Option<Value<'static>> {
        match self {
            Function::Count | Function::ApproxCountDistinct => Some(Value::Int(0)),
            Function::Sum | Function::DecayedSum(_) => Some(Value::Float(0.0)),
            Function::LastK(_) | Function::TopK(_) | Function::Histogram => Some(Value::List(Cow::Borrowed("[]"))),
            _ => None,
        }
    }
}

/// A window, as a feature defines it.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// The function.
    pub function: Function,
    /// The input's name; `None` counts events that carry any INPUT.
    pub input: Option<String>,
    /// The name of the input that weighs each vector of a mean.
    pub weight: Option<String>,
    /// Its length, milliseconds.
    pub length_ms: i64,
    /// Its hop, milliseconds. Divides the length.
    pub hop_ms: i64,
}

impl Window {
    /// How many hops the window is long.
    pub fn hops(&self) -> i64 {
        self.length_ms / self.hop_ms
    }

    /// The bounds of the window read at `t_ms`: from, inclusive, and to, exclusive; unix milliseconds.
    pub fn bounds_ms(&self, t_ms: i64) -> (i64, i64) {
        bounds_ms(self.length_ms, self.hop_ms, t_ms)
    }
}

/// The rule: from where to where a window reaches that is read at `t_ms`.
pub(super) fn bounds_ms(length_ms: i64, hop_ms: i64, t_ms: i64) -> (i64, i64) {
    let hop_start_ms = t_ms.div_euclid(hop_ms) * hop_ms;
    (hop_start_ms - length_ms, hop_start_ms + hop_ms)
}

/// As after the word AGG.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.name())?;
        match self.function {
            Function::DecayedSum(half_life_ms) => write!(f, " {}", format_duration(half_life_ms))?,
            Function::LastK(k) | Function::TopK(k) => write!(f, " {k}")?,
            Function::ApproxPercentile(q) => write!(f, " {q}")?,
            _ => {}
        }
        if let Some(input) = &self.input {
            write!(f, " {input}")?;
        }
        if let Some(weight) = &self.weight {
            write!(f, " WEIGHT {weight}")?;
        }
        Ok(())
    }
}

/// The parts of a window, as they come.
#[derive(Debug, Clone, Default)]
pub struct WindowWords {
    aggregation: Option<(Function, Option<String>, Option<String>)>,
    length_ms: Option<i64>,
    hop_ms: Option<i64>,
}

/// Words that follow a feature's type; none of them can be the input of a bare COUNT.
const OPTION_WORDS: [&str; 9] = ["WINDOW", "HOP", "DEFAULT", "TTL", "MIN", "MAX", "VALUES", "INPUT", "DESCRIPTION"];

impl WindowWords {
    /// Takes `AGG function ...`, `WINDOW d` or `HOP d`, if one comes next.
    pub fn take(&mut self, arguments: &mut Arguments<'_>) -> Result<bool> {
        if arguments.take_word("AGG") {
            self.aggregation(arguments)?;
        } else if arguments.take_word("WINDOW") {
            self.length(arguments.next("WINDOW")?)?;
        } else if arguments.take_word("HOP") {
            self.hop(arguments.next("HOP")?)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads what follows AGG.
    pub fn aggregation(&mut self, arguments: &mut Arguments<'_>) -> Result<()> {
        let word = arguments.next("the function of AGG")?;
        let function = match word.to_ascii_uppercase().as_slice() {
            b"COUNT" => Function::Count,
            b"SUM" => Function::Sum,
            b"DECAYED_SUM" => Function::DecayedSum(parse_duration(arguments.next("the half-life of DECAYED_SUM")?)?),
            b"MEAN" => Function::Mean,
            b"MIN" => Function::Min,
            b"MAX" => Function::Max,
            b"VAR_POP" => Function::VarPop,
            b"VAR_SAMP" => Function::VarSamp,
            b"STDDEV_POP" => Function::StddevPop,
            b"STDDEV_SAMP" => Function::StddevSamp,
            b"FIRST" => Function::First,
            b"LAST" => Function::Last,
            b"LAST_K" => Function::LastK(k_of(arguments, "LAST_K", LAST_K_MAX)?),
            b"APPROX_COUNT_DISTINCT" => Function::ApproxCountDistinct,
            b"APPROX_PERCENTILE" => Function::ApproxPercentile(quantile(arguments.next("q of APPROX_PERCENTILE")?)?),
            b"TOP_K" => Function::TopK(k_of(arguments, "TOP_K", TOP_K_MAX)?),
            b"HISTOGRAM" => Function::Histogram,
            _ => {
                return Err(Error::syntax(format!(
                    "AGG '{}' is none of COUNT, SUM, DECAYED_SUM, MEAN, MIN, MAX, VAR_POP, VAR_SAMP, STDDEV_POP, \
                     STDDEV_SAMP, FIRST, LAST, LAST_K, APPROX_COUNT_DISTINCT, APPROX_PERCENTILE, TOP_K, HISTOGRAM",
                    shown(word)
                )))
            }
        };
        let is_bare = function == Function::Count && names_no_input(arguments);
        let input = match is_bare {
            true => None,
            false => Some(input_name(arguments, function)?),
        };
        let weight = match function == Function::Mean && arguments.take_word("WEIGHT") {
            true => Some(input_name(arguments, function)?),
            false => None,
        };
        match self.aggregation.replace((function, input, weight)) {
            None => Ok(()),
            Some(_) => Err(Error::syntax("AGG is given twice")),
        }
    }

    /// Reads a WINDOW's length.
    pub fn length(&mut self, text: &[u8]) -> Result<()> {
        self.length_ms = Some(parse_duration(text)?);
        Ok(())
    }

    /// Reads a HOP.
    pub fn hop(&mut self, text: &[u8]) -> Result<()> {
        self.hop_ms = Some(parse_duration(text)?);
        Ok(())
    }

    /// The window that was said; `None`: no word of one.
    pub fn finish(self) -> Result<Option<Window>> {
        let Some((function, input, weight)) = self.aggregation else {
            return match (self.length_ms, self.hop_ms) {
                (None, None) => Ok(None),
                _ => Err(Error::syntax("WINDOW and HOP need AGG")),
            };
        };
        let length_ms = self.length_ms.ok_or_else(|| Error::syntax(format!("AGG {} needs WINDOW", function.name())))?;
        if length_ms < WINDOW_MS_MIN {
            return Err(Error::syntax(format!("WINDOW must be at least 1s, got {}", format_duration(length_ms))));
        }
        let hop_ms = match self.hop_ms {
            Some(hop_ms) => hop_ms,
            None => default_hop_ms(length_ms, function)?,
        };
        let hops = length_ms / hop_ms;
        if hops * hop_ms != length_ms {
            let (window, hop) = (format_duration(length_ms), format_duration(hop_ms));
            return Err(Error::syntax(format!("WINDOW {window} is no multiple of its HOP {hop}")));
        }
        if hops > HOPS_MAX {
            return Err(Error::syntax(format!(
                "WINDOW {} has {hops} hops of {}, allowed are {HOPS_MAX}: give a longer HOP",
                format_duration(length_ms),
                format_duration(hop_ms)
            )));
        }
        if let Function::DecayedSum(half_life_ms) = function {
            if half_life_ms.saturating_mul(HALF_LIVES_PER_HOP_MAX) < hop_ms {
                return Err(Error::syntax(format!(
                    "half-life {} is shorter than 1/{HALF_LIVES_PER_HOP_MAX} of the hop {}: give a shorter HOP",
                    format_duration(half_life_ms),
                    format_duration(hop_ms)
                )));
            }
        }
        Ok(Some(Window { function, input, weight, length_ms, hop_ms }))
    }
}

/// Is what follows COUNT no input: nothing, an option, or the next feature with its type?
fn names_no_input(arguments: &Arguments<'_>) -> bool {
    let is_option = |next: &[u8]| OPTION_WORDS.iter().any(|w| next.eq_ignore_ascii_case(w.as_bytes()));
    arguments.peek().is_none_or(is_option)
        || arguments.peek_second().is_some_and(|second| FeatureType::parse(second).is_ok())
}

fn k_of(arguments: &mut Arguments<'_>, function: &str, max: u32) -> Result<u32> {
    let what = format!("k of {function}");
    let k = arguments.number(&what, 1)?;
    match u32::try_from(k) {
        Ok(k) if k <= max => Ok(k),
        _ => Err(Error::syntax(format!("{what} must be at most {max}, got {k}"))),
    }
}

fn quantile(text: &[u8]) -> Result<f64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .filter(|q: &f64| *q > 0.0 && *q < 1.0)
        .ok_or_else(|| Error::syntax(format!("q of APPROX_PERCENTILE must lie between 0 and 1, got '{}'", shown(text))))
}

fn input_name(arguments: &mut Arguments<'_>, function: Function) -> Result<String> {
    let name = arguments.next(&format!("the input of AGG {}", function.name()))?;
    checked_feature_name(name).map(str::to_owned)
}

fn default_hop_ms(length_ms: i64, function: Function) -> Result<i64> {
    let longest_ms = match function {
        Function::DecayedSum(half_life_ms) => half_life_ms.min(length_ms / DEFAULT_HOPS_MIN),
        _ => length_ms / DEFAULT_HOPS_MIN,
    };
    let fits = |hop: &&i64| length_ms % **hop == 0 && (**hop <= longest_ms || **hop == DEFAULT_HOPS_MS[0]);
    DEFAULT_HOPS_MS.iter().rev().find(fits).copied().ok_or_else(|| {
        Error::syntax(format!("WINDOW {} is no multiple of 1s: give its HOP", format_duration(length_ms)))
    })
}

fn is_number(ty: FeatureType) -> bool {
    matches!(ty, FeatureType::Int | FeatureType::Float | FeatureType::Bool | FeatureType::Timestamp)
}

/// Checks a window feature against its input, and settles which MEAN it is. `input_of` finds a feature by name.
pub fn check_window<'v>(
    view: &str,
    feature: &Feature,
    window: &Window,
    has_inputs: bool,
    input_of: impl Fn(&str) -> Option<&'v Feature>,
) -> Result<Function> {
    let refusal = |why: String| Error::syntax(format!("feature '{}' of view '{view}': {why}", feature.name));
    let refuse = |why: String| Err(refusal(why));
    let find = |name: &str| match input_of(name) {
        None => Err(refusal(format!("the view has no feature '{name}' to aggregate"))),
        Some(input) if input.window.is_some() => {
            Err(refusal(format!("'{name}' is itself an AGG and cannot be aggregated")))
        }
        Some(input) => Ok(input),
    };
    let name = window.function.name();
    let input = window.input.as_deref().map(find).transpose()?;
    if input.is_none() && !has_inputs {
        return refuse("COUNT without an input counts events that carry an INPUT, and the view has none".to_owned());
    }
    let function = match (window.function, input.map(|i| i.ty)) {
        (Function::Mean, Some(FeatureType::Vector(_))) => Function::MeanVector,
        (function, _) => function,
    };
    if let Some(weight) = &window.weight {
        if function != Function::MeanVector {
            return refuse("WEIGHT needs a VECTOR input".to_owned());
        }
        let ty = find(weight)?.ty;
        if !is_number(ty) {
            return refuse(format!("WEIGHT needs a number, '{weight}' is {ty}"));
        }
    }
    let of = |f: fn(FeatureType) -> bool| input.is_none_or(|i| f(i.ty));
    let (fits, wanted) = match function {
        Function::Count
        | Function::First
        | Function::Last
        | Function::LastK(_)
        | Function::ApproxCountDistinct
        | Function::MeanVector => (true, ""),
        Function::TopK(_) | Function::Histogram => {
            (of(|ty| is_number(ty) || ty == FeatureType::String), "INT, FLOAT, BOOL, STRING or TIMESTAMP")
        }
        _ => (of(is_number), "INT, FLOAT, BOOL or TIMESTAMP"),
    };
    if let (false, Some(input)) = (fits, input) {
        return refuse(format!("AGG {name} needs an input of {wanted}, '{}' is {}", input.name, input.ty));
    }
    let gives = match function {
        Function::Count | Function::ApproxCountDistinct => FeatureType::Int,
        Function::LastK(_) | Function::TopK(_) | Function::Histogram => FeatureType::List,
        Function::First | Function::Last | Function::MeanVector => input.map_or(feature.ty, |i| i.ty),
        _ => FeatureType::Float,
    };
    if feature.ty != gives {
        return refuse(format!("AGG {name} gives {gives}, not {}", feature.ty));
    }
    if let (Some(default), Some(own)) = (&feature.default, function.over_no_events()) {
        if *default != own {
            let own = shown(&own.to_field());
            return refuse(format!("AGG {name} over no events is {own}, it takes no other DEFAULT"));
        }
    }
    Ok(function)
}
