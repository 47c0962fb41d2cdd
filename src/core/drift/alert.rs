//! Alerts: when one starts, goes on and ends, and how it is told.

use super::finding::{Finding, Outcome, Told, SIGNIFICANCE};
use super::method::Method;

/// An alert ends at this part of its threshold, or at so many times its significance.
const ENDS_AT_EFFECT: f64 = 0.8;
const ENDS_AT_P: f64 = 4.0;

/// What the tests of one round are held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// For p-values.
    significance: f64,
    /// For what chance alone does to methods without a p-value.
    chance_max: f64,
}

impl Levels {
    /// The significance of one test, shared among all of a round: those with a p-value, and those without one.
    /// Source: Bonferroni.
    pub fn among<'f>(findings: impl Iterator<Item = &'f Finding>) -> Self {
        let (mut with_p, mut without_p) = (0u32, 0u32);
        for outcome in findings.filter_map(|finding| finding.outcome) {
            *(if outcome.p_value.is_some() { &mut with_p } else { &mut without_p }) += 1;
        }
        let share = |tests: u32| SIGNIFICANCE / f64::from(tests.max(1));
        Levels { significance: share(with_p), chance_max: share(without_p) }
    }

    /// Does an alert start? The effect must be more than chance has with so few values.
    fn starts(&self, finding: &Finding) -> bool {
        let is_chance = |o: Outcome| o.chance >= if o.p_value.is_some() { self.significance } else { self.chance_max };
        finding.is_alert(self.significance) && !finding.outcome.is_some_and(is_chance)
    }

    /// Does an alert go on that has started? It does not end at the place where it starts. Too few values change nothing.
    fn keeps(&self, finding: &Finding) -> bool {
        finding.outcome.is_none_or(|Outcome { effect, p_value, .. }| {
            effect > ENDS_AT_EFFECT * finding.threshold && p_value.is_none_or(|p| p < ENDS_AT_P * self.significance)
        })
    }

    /// The alerts of a feature that start (true) or end, of which some are active. A method without a finding is not
    /// tested any more.
    pub fn changes<'f>(
        &self,
        active: ActiveAlerts,
        findings: &'f [Finding],
    ) -> impl Iterator<Item = (Method, bool, Option<&'f Finding>)> + use<'_, 'f> {
        Method::ALL.into_iter().filter_map(move |method| {
            let finding = findings.iter().find(|finding| finding.method == method);
            let is_alert = finding.is_some_and(|finding| match active.has(method) {
                true => self.keeps(finding),
                false => self.starts(finding),
            });
            (is_alert != active.has(method)).then_some((method, is_alert, finding))
        })
    }
}

/// The methods that alert of a feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ActiveAlerts(u16);

impl ActiveAlerts {
    /// Does this method alert?
    pub fn has(self, method: Method) -> bool {
        self.0 & 1 << method as u16 != 0
    }

    /// The methods that alert.
    pub fn methods(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.has(*method))
    }

    /// Notes that an alert has started, or has ended.
    pub fn set(&mut self, method: Method, starts: bool) {
        let bit = 1 << method as u16;
        self.0 = if starts { self.0 | bit } else { self.0 & !bit };
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
                let told = finding.members(self.feature).into_iter();
                members.extend(told.filter(|(name, _)| OF_FINDING.contains(name)));
            }
            None => members.extend(OF_FINDING.map(|name| (name, Told::Nil))),
        }
        members
    }

    /// As a JSON object.
    pub fn to_json(&self) -> String {
        let members = self.members().into_iter().map(|(name, told)| (name.to_owned(), told.to_json()));
        serde_json::Value::Object(members.collect()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::finding::Seen;

    fn at(effect: f64, p_value: Option<f64>, chance: f64) -> Finding {
        Finding {
            method: Method::Ks,
            baseline: Seen::Nothing,
            current: Seen::Nothing,
            outcome: Some(Outcome { statistic: effect, p_value, effect, chance }),
            threshold: 0.1,
            baseline_n: None,
            current_n: 100,
        }
    }

    #[test]
    fn an_alert_does_not_end_where_it_starts() {
        let one_test = |finding: &Finding| Levels::among(std::iter::once(finding));
        for (effect, p_value, chance, starts, stays) in [
            (0.11, Some(0.01), 0.01, true, true),
            (0.11, Some(0.01), 0.06, false, true),
            (0.11, Some(0.06), 0.06, false, true),
            (0.11, Some(0.2), 0.2, false, false),
            (0.11, None, 0.01, true, true),
            (0.11, None, 0.06, false, true),
            (0.1, None, 0.0, false, true),
            (0.09, None, 0.0, false, true),
            (0.08, None, 0.0, false, false),
        ] {
            let finding = at(effect, p_value, chance);
            let levels = one_test(&finding);
            assert_eq!((levels.starts(&finding), levels.keeps(&finding)), (starts, stays), "{finding:?}");
        }
        let too_few = Finding { outcome: None, ..at(0.0, None, 0.0) };
        assert_eq!((one_test(&too_few).starts(&too_few), one_test(&too_few).keeps(&too_few)), (false, true));
    }

    #[test]
    fn the_significance_of_one_test_is_shared_among_those_of_its_kind() {
        let findings = [at(1.0, Some(0.02), 0.02), at(1.0, Some(0.5), 0.5), at(1.0, None, 0.04)];
        let levels = Levels::among(findings.iter());
        assert_eq!(levels, Levels { significance: 0.025, chance_max: 0.05 });
        assert_eq!(findings.each_ref().map(|finding| levels.starts(finding)), [true, false, true]);
    }

    #[test]
    fn what_is_tested_no_more_ends() {
        let levels = Levels { significance: 0.05, chance_max: 0.05 };
        let mut active = ActiveAlerts::default();
        active.set(Method::Mean, true);
        let found = [at(0.2, Some(0.001), 0.001)];
        let changes: Vec<_> = levels.changes(active, &found).map(|(method, starts, _)| (method, starts)).collect();
        assert_eq!(changes, [(Method::Mean, false), (Method::Ks, true)]);
        changes.into_iter().for_each(|(method, starts)| active.set(method, starts));
        assert_eq!(active.methods().collect::<Vec<_>>(), [Method::Ks]);
        assert_eq!(levels.changes(active, &found).count(), 0);
    }

    #[test]
    fn an_alert_tells_the_same_members_with_and_without_a_finding() {
        let finding = at(0.5, Some(0.01), 0.01);
        let alert = |finding| Alert { view: "v", version: 1, feature: "f", starts: true, method: Method::Ks, finding };
        let names = |alert: &Alert<'_>| alert.members().iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(&alert(None)), names(&alert(Some(&finding))));
        let json: serde_json::Value = serde_json::from_str(&alert(Some(&finding)).to_json()).expect("JSON");
        assert_eq!((json["event"].as_str(), json["current_n"].as_u64()), (Some("start"), Some(100)));
    }
}
