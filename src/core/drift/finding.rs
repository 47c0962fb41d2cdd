//! Findings: what a method says of a feature, and whether that is an alert.

use super::categories::CategoryId;
use super::method::Method;
use std::fmt::Write;

/// Below this p-value a test calls two samples different.
pub const SIGNIFICANCE: f64 = 0.05;
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

    /// Does an alert start? The effect must be more than chance has with so few values.
    ///
    /// `significance`: the level for p-values, `chance_max`: that for methods without one.
    pub fn starts_alert(&self, significance: f64, chance_max: f64) -> bool {
        let is_chance = |o: Outcome| o.chance >= if o.p_value.is_some() { significance } else { chance_max };
        self.is_alert(significance) && !self.outcome.is_some_and(is_chance)
    }

    /// Does an alert go on that has started? It does not end at the place where it starts.
    pub fn keeps_alert(&self, significance: f64) -> bool {
        match self.outcome {
            None => true,
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

    fn at(effect: f64, p_value: Option<f64>) -> Finding {
        Finding {
            method: Method::Ks,
            baseline: Seen::Nothing,
            current: Seen::Nothing,
            outcome: Some(Outcome { statistic: effect, p_value, effect, chance: p_value.unwrap_or(0.0) }),
            threshold: 0.1,
            baseline_n: None,
            current_n: 100,
        }
    }

    #[test]
    fn an_alert_does_not_end_where_it_starts() {
        for (effect, p_value, starts, stays) in [
            (0.11, Some(0.01), true, true),
            (0.11, Some(0.06), false, true),
            (0.11, Some(0.2), false, false),
            (0.1, None, false, true),
            (0.09, None, false, true),
            (0.08, None, false, false),
        ] {
            let finding = at(effect, p_value);
            let got = (finding.starts_alert(0.05, 0.05), finding.keeps_alert(0.05));
            assert_eq!(got, (starts, stays), "{effect} {p_value:?}");
        }
    }

    #[test]
    fn an_alert_tells_the_same_members_with_and_without_a_finding() {
        let finding = Finding { current_n: 200, ..at(0.5, Some(0.01)) };
        let alert =
            |finding| Alert { view: "v", version: 1, feature: "f", starts: true, method: Method::Chi2, finding };
        let names = |alert: &Alert<'_>| alert.members().iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&alert(None)), names(&alert(Some(&finding))));
        let json: serde_json::Value = serde_json::from_str(&alert(Some(&finding)).to_json()).expect("JSON");
        assert_eq!((json["event"].as_str(), json["current_n"].as_u64()), (Some("start"), Some(200)));
    }
}
