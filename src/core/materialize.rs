//! Materialization: what an update changes in a row.
//!
//! Invariant: **event time wins**, for each feature on its own and for removals. A value never replaces one with a
//! later event time; at equal times the later arrival wins. So any order, repetition or split of a stream of updates
//! ends in one row (but for the order of arrivals at equal times).
//!
//! How a row knows its times: `_updated_at` is the newest event time of all its features. A feature that is there and
//! not named in `_times` has that time; `_times` names the others, and the removed ones. A row whose features were
//! always published together has no `_times` at all.

use crate::definition::FeatureView;
use crate::time::{format_unix_seconds, read_unix_seconds};
use crate::update::Update;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;

/// The time of a value that another writer left without one: older than every event.
pub(crate) const UNKNOWN_TIME_MS: i64 = 0;

/// The event times that a row holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowTimes {
    /// `_updated_at`, unix milliseconds. `None`: no such row, or one whose writer left no readable time.
    pub updated_at_ms: Option<i64>,
    /// `_times` by feature index, rising: features older than `updated_at_ms`, and removed ones.
    exceptions: Vec<(usize, i64)>,
}

impl RowTimes {
    /// Reads the row's fields `_updated_at` and `_times`. What cannot be read counts as not there.
    pub fn read(view: &FeatureView, updated_at: Option<&[u8]>, times: Option<&[u8]>) -> Self {
        let exceptions = times.map_or_else(Vec::new, |text| read_exceptions(view, text));
        RowTimes::new(updated_at.and_then(read_unix_seconds), exceptions)
    }

    /// Times as they were read elsewhere.
    pub(crate) fn new(updated_at_ms: Option<i64>, mut exceptions: Vec<(usize, i64)>) -> Self {
        exceptions.sort_unstable();
        exceptions.dedup_by_key(|(feature, _)| *feature);
        RowTimes { updated_at_ms, exceptions }
    }

    /// Features whose times differ from the row's, and removed ones, rising.
    pub(crate) fn exceptions(&self) -> &[(usize, i64)] {
        &self.exceptions
    }

    fn exception(&self, feature: usize) -> Option<i64> {
        self.exceptions.binary_search_by_key(&feature, |(f, _)| *f).ok().map(|i| self.exceptions[i].1)
    }

    /// The event time of a value that is in the row. `None`: its writer left none.
    pub fn of_present(&self, feature: usize) -> Option<i64> {
        self.exception(feature).or(self.updated_at_ms).filter(|t| *t != UNKNOWN_TIME_MS)
    }

    /// The event time of a removal, for a feature that is not in the row.
    pub fn of_absent(&self, feature: usize) -> Option<i64> {
        self.exception(feature)
    }
}

fn read_exceptions(view: &FeatureView, text: &[u8]) -> Vec<(usize, i64)> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Seconds<'a>(#[serde(borrow)] &'a serde_json::value::RawValue);
    let Ok(times) = serde_json::from_slice::<HashMap<Cow<'_, str>, Seconds<'_>>>(text) else { return Vec::new() };
    times
        .iter()
        .filter_map(|(name, seconds)| {
            let feature = view.position(name.as_bytes(), 0)?;
            Some((feature, read_unix_seconds(seconds.0.get().as_bytes())?))
        })
        .collect()
}

fn write_exceptions(view: &FeatureView, exceptions: &[(usize, i64)]) -> String {
    let mut text = String::from("{");
    for (i, (feature, time_ms)) in exceptions.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        // A feature's name needs no escapes.
        text.push('"');
        text.push_str(&view.features()[*feature].name);
        text.push_str("\":");
        text.push_str(&format_unix_seconds(*time_ms));
    }
    text.push('}');
    text
}

/// Which features a row holds. Asked only where the answer matters, because looking costs.
pub trait RowFields {
    /// Does the row hold this feature?
    fn holds(&mut self, feature: usize) -> bool;
}

/// What becomes of the field `_times`.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
pub enum TimesChange<'a> {
    /// It stays as it is, or absent.
    Keep,
    /// It goes away.
    Remove,
    /// It takes this text.
    Set(Cow<'a, str>),
}

/// What an update changes in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlan {
    /// Which of the update's changes take effect, in their order.
    pub applied: Vec<bool>,
    /// The new `_updated_at`, where it moves.
    pub updated_at_ms: Option<i64>,
    /// What becomes of `_times`.
    pub times: TimesChange<'static>,
}

/// Decides what an update at `event_time_ms` changes. `None`: nothing, every change came too late (or is an INPUT).
pub fn plan(
    view: &FeatureView,
    row: &RowTimes,
    fields: &mut impl RowFields,
    update: &Update,
    event_time_ms: i64,
) -> Option<RowPlan> {
    let newest_of_row = row.updated_at_ms;
    let newest = newest_of_row.map_or(event_time_ms, |t| t.max(event_time_ms));
    let advances = newest_of_row != Some(newest);
    let is_late = newest_of_row.is_some_and(|t| event_time_ms < t);

    let mut exceptions = row.exceptions.clone();
    let mut applied = Vec::with_capacity(update.changes().len());
    let mut any = false;
    for change in update.changes() {
        if view.features()[change.feature].input {
            // Inputs feed windows, never the row; they do not count as superseded either.
            applied.push(true);
            continue;
        }
        let known = row.exception(change.feature).or_else(|| {
            // Only an update older than the row can lose against a value that has the row's time.
            (is_late && fields.holds(change.feature)).then_some(newest_of_row).flatten()
        });
        let wins = known.is_none_or(|t| event_time_ms >= t);
        applied.push(wins);
        if !wins {
            continue;
        }
        any = true;
        let is_exception = update.field(change).is_none() || event_time_ms != newest;
        match (exceptions.binary_search_by_key(&change.feature, |(f, _)| *f), is_exception) {
            (Ok(i), true) => exceptions[i].1 = event_time_ms,
            (Ok(i), false) => {
                exceptions.remove(i);
            }
            (Err(i), true) => exceptions.insert(i, (change.feature, event_time_ms)),
            (Err(_), false) => {}
        }
    }
    if !any {
        return None;
    }
    let names_all = update.changes().len() == view.features().len() && applied.iter().all(|a| *a);
    if advances && !names_all {
        // Features that this update does not name keep the time that the row had until now.
        let old = newest_of_row.unwrap_or(UNKNOWN_TIME_MS);
        let mut named = vec![false; view.features().len()];
        update.changes().iter().zip(&applied).for_each(|(c, a)| named[c.feature] |= *a);
        for feature in view.stored().filter(|f| !named[*f]) {
            if row.exception(feature).is_none() && fields.holds(feature) {
                let place = exceptions.partition_point(|(f, _)| *f < feature);
                exceptions.insert(place, (feature, old));
            }
        }
    }
    let times = if exceptions == row.exceptions {
        TimesChange::Keep
    } else if exceptions.is_empty() {
        TimesChange::Remove
    } else {
        TimesChange::Set(Cow::Owned(write_exceptions(view, &exceptions)))
    };
    Some(RowPlan { applied, updated_at_ms: advances.then_some(newest), times })
}

/// The event time of an update that names none: now, or the newest event time of the features it touches if that is
/// later, so that it always takes effect.
pub fn unstamped_time(
    view: &FeatureView,
    row: &RowTimes,
    fields: &mut impl RowFields,
    update: &Update,
    now_ms: i64,
) -> i64 {
    if row.updated_at_ms.is_none_or(|t| t <= now_ms) && row.exceptions.iter().all(|(_, t)| *t <= now_ms) {
        return now_ms;
    }
    update
        .changes()
        .iter()
        .filter(|c| view.features()[c.feature].is_stored())
        .filter_map(|c| {
            row.exception(c.feature).or_else(|| fields.holds(c.feature).then_some(row.updated_at_ms).flatten())
        })
        .fold(now_ms, i64::max)
}

/// True for an update that is older than the view's TTL already.
pub fn is_expired_on_arrival(view: &FeatureView, event_time_ms: i64, now_ms: i64) -> bool {
    view.ttl_ms.is_some_and(|ttl| event_time_ms.saturating_add(ttl) <= now_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::schema_syntax::parse_registration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A row in memory, written as the server writes it.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Row {
        fields: BTreeMap<usize, String>,
        updated_at: Option<String>,
        times: Option<String>,
    }

    impl RowFields for &BTreeMap<usize, String> {
        fn holds(&mut self, feature: usize) -> bool {
            self.contains_key(&feature)
        }
    }

    impl Row {
        fn times(&self, view: &FeatureView) -> RowTimes {
            RowTimes::read(
                view,
                self.updated_at.as_deref().map(str::as_bytes),
                self.times.as_deref().map(str::as_bytes),
            )
        }

        fn apply(&mut self, view: &FeatureView, json: &str, time_ms: i64) {
            let update = Update::from_json(view, json.as_bytes()).expect("an update");
            let Some(plan) = plan(view, &self.times(view), &mut &self.fields, &update, time_ms) else { return };
            for (change, applied) in update.changes().iter().zip(&plan.applied) {
                match (applied, update.field(change)) {
                    (false, _) => {}
                    (true, None) => drop(self.fields.remove(&change.feature)),
                    (true, Some(field)) => {
                        self.fields.insert(change.feature, String::from_utf8_lossy(field).into_owned());
                    }
                }
            }
            if let Some(t) = plan.updated_at_ms {
                self.updated_at = Some(format_unix_seconds(t));
            }
            match plan.times {
                TimesChange::Keep => {}
                TimesChange::Remove => self.times = None,
                TimesChange::Set(text) => self.times = Some(text.into_owned()),
            }
        }
    }

    fn view() -> FeatureView {
        let words: Vec<&[u8]> = "ENTITY u SCHEMA a INT b INT c INT d INT".split(' ').map(str::as_bytes).collect();
        parse_registration(b"v", &mut Arguments::new(&words)).expect("a definition")
    }

    /// Feeds `t=<seconds> <json>` lines in order; expects `a=1 b=2 | updated_at | times`.
    fn check(updates: &str, expected: &str) {
        let view = view();
        let mut row = Row::default();
        for line in updates.split(';') {
            let (time, json) = line.trim().trim_start_matches("t=").split_once(' ').expect("t=.. json");
            row.apply(&view, json, time.parse::<i64>().expect("seconds") * 1_000);
        }
        let names = ["a", "b", "c", "d"];
        let fields: Vec<String> = row.fields.iter().map(|(f, v)| format!("{}={v}", names[*f])).collect();
        let shown = format!(
            "{} | {} | {}",
            fields.join(" "),
            row.updated_at.as_deref().unwrap_or("-"),
            row.times.as_deref().unwrap_or("-")
        );
        assert_eq!(shown, expected, "{updates}");
    }

    #[test]
    fn event_time_wins_per_feature() {
        check(r#"t=1 {"a":1,"b":1}; t=2 {"a":2,"b":2}"#, "a=2 b=2 | 2 | -");
        check(r#"t=2 {"a":2,"b":2}; t=1 {"a":1,"b":1}"#, "a=2 b=2 | 2 | -");
        check(r#"t=2 {"a":2}; t=2 {"a":3}"#, "a=3 | 2 | -");
        check(r#"t=1 {"a":1,"b":1}; t=2 {"a":2}"#, r#"a=2 b=1 | 2 | {"b":1}"#);
        check(r#"t=2 {"a":2}; t=1 {"a":1,"b":1}"#, r#"a=2 b=1 | 2 | {"b":1}"#);
        check(r#"t=1 {"a":1,"b":1}; t=2 {"a":2}; t=3 {"a":3,"b":3}"#, "a=3 b=3 | 3 | -");
        check(r#"t=1 {"b":1}; t=3 {"a":3}; t=2 {"b":2}"#, r#"a=3 b=2 | 3 | {"b":2}"#);
        check(r#"t=1 {"b":1}; t=3 {"a":3}; t=3 {"b":3}"#, "a=3 b=3 | 3 | -");
    }

    #[test]
    fn a_removal_has_its_event_time_too() {
        check(r#"t=2 {"a":null}; t=1 {"a":1}"#, r#" | 2 | {"a":2}"#);
        check(r#"t=1 {"a":1}; t=2 {"a":null}"#, r#" | 2 | {"a":2}"#);
        check(r#"t=2 {"a":2}; t=1 {"a":null}"#, "a=2 | 2 | -");
        check(r#"t=2 {"a":null}; t=3 {"a":3}"#, "a=3 | 3 | -");
        check(r#"t=1 {"a":1,"b":1}; t=2 {"a":null,"b":2}; t=3 {"b":3}"#, r#"b=3 | 3 | {"a":2}"#);
    }

    #[test]
    fn a_row_written_by_hand_without_times_loses_to_every_event() {
        let view = view();
        let mut row = Row { fields: BTreeMap::from([(0, "1".into()), (1, "1".into())]), ..Row::default() };
        row.apply(&view, r#"{"a":2}"#, 5_000);
        assert_eq!(row.times.as_deref(), Some(r#"{"b":0}"#));
        assert_eq!(row.times(&view).of_present(1), None);
        row.apply(&view, r#"{"b":2}"#, 1_000);
        assert_eq!(row.fields[&1], "2");
    }

    #[test]
    fn an_unstamped_update_always_takes_effect() {
        let view = view();
        let mut row = Row::default();
        row.apply(&view, r#"{"a":1}"#, 9_000);
        let update = Update::from_json(&view, br#"{"a":2}"#).expect("an update");
        assert_eq!(unstamped_time(&view, &row.times(&view), &mut &row.fields, &update, 5_000), 9_000);
        let other = Update::from_json(&view, br#"{"b":2}"#).expect("an update");
        assert_eq!(unstamped_time(&view, &row.times(&view), &mut &row.fields, &other, 5_000), 5_000);
        assert_eq!(unstamped_time(&view, &row.times(&view), &mut &row.fields, &update, 9_500), 9_500);
    }

    #[test]
    fn unreadable_times_count_as_absent() {
        let view = view();
        for (updated_at, times) in [("x", "{"), ("", "[]"), ("nan", r#"{"zz":1}"#), ("1e99", r#"{"a":"x"}"#)] {
            let read = RowTimes::read(&view, Some(updated_at.as_bytes()), Some(times.as_bytes()));
            assert_eq!(read, RowTimes::default(), "{updated_at} {times}");
        }
    }

    fn json_of(update: &BTreeMap<usize, Option<u8>>) -> String {
        let members: Vec<String> = update
            .iter()
            .map(|(f, v)| format!("\"{}\":{}", ["a", "b", "c", "d"][*f], v.map_or("null".into(), |v| v.to_string())))
            .collect();
        format!("{{{}}}", members.join(","))
    }

    proptest! {
        /// The heart of the product: any permutation, duplication or split of a stream ends in one row.
        #[test]
        fn any_order_repetition_and_split_end_in_one_row(
            updates in proptest::collection::vec(
                proptest::collection::btree_map(0usize..4, proptest::option::of(any::<u8>()), 1..4), 1..12),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..30),
            split in any::<u64>(),
        ) {
            let view = view();
            // Distinct event times: at equal times the order of arrival decides, and that is what is shuffled here.
            let stamped: Vec<_> = updates.iter().enumerate().map(|(i, u)| (u, (i as i64 + 1) * 1_000)).collect();
            let mut in_order = Row::default();
            for (update, time) in &stamped {
                in_order.apply(&view, &json_of(update), *time);
            }
            let mut shuffled = Row::default();
            let mut left: Vec<_> = order.iter().map(|i| i.index(stamped.len())).collect();
            left.extend((0..stamped.len()).rev());
            for (step, i) in left.into_iter().enumerate() {
                let (update, time) = stamped[i];
                if split >> (step % 64) & 1 == 1 {
                    for (feature, value) in update {
                        shuffled.apply(&view, &json_of(&BTreeMap::from([(*feature, *value)])), time);
                    }
                } else {
                    shuffled.apply(&view, &json_of(update), time);
                }
            }
            prop_assert_eq!(&in_order, &shuffled);
            // And both are what a simple reading of the rule says.
            for feature in 0..4usize {
                let last = stamped.iter().rev().find_map(|(u, _)| u.get(&feature));
                let expected = last.copied().flatten().map(|v| v.to_string());
                prop_assert_eq!(in_order.fields.get(&feature), expected.as_ref());
            }
        }

        #[test]
        fn features_published_together_pay_for_no_times(times in proptest::collection::vec(1i64..100, 1..20)) {
            let view = view();
            let mut row = Row::default();
            for (i, time) in times.iter().enumerate() {
                row.apply(&view, &format!("{{\"a\":{i},\"c\":{i}}}"), time * 1_000);
                prop_assert_eq!(&row.times, &None);
            }
        }
    }
}
