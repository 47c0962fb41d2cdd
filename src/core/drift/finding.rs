//! Findings: what a method says of a feature, and whether that is an alert.

use super::categories::CategoryId;
use super::method::Method;
use crate::value::format_f64;

/// Below this p-value a test calls two samples different.
pub const SIGNIFICANCE: f64 = 0.05;

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
    /// About how often chance alone has as much effect. Of a test its p-value, or a more careful one.
    pub chance: f64,
}

impl Outcome {
    pub(super) fn tested(statistic: f64, p_value: f64, effect: f64, chance: f64) -> Self {
        Outcome { statistic, p_value: Some(p_value), effect, chance }
    }

    pub(super) fn of(statistic: f64, chance: f64) -> Self {
        Outcome { statistic, p_value: None, effect: statistic, chance }
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
            Told::Number(number) => format_f64(*number).into_bytes(),
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
            Told::Number(number) => format_f64(*number).into(),
            Told::Count(n) => (*n).into(),
            Told::Flag(flag) => (*flag).into(),
        }
    }
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

    /// All that it says, in the order in which it is told.
    pub fn members(&self, feature: &str) -> [(&'static str, Told); 12] {
        let is_alert = self.is_alert(SIGNIFICANCE);
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
