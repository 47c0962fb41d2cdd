//! Serving: what a reader is told about a feature of a row.

use crate::definition::{Feature, FeatureView};
use crate::feature_type::FeatureType;
use crate::packed::value_of;
use crate::value::Value;
use crate::windows::state::ReadAt;

/// Why a reader gets what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The row's own value.
    Present,
    /// No value is there; the default is served.
    Default,
    /// No value is there and no default is defined.
    NotFound,
    /// The value is older than its TTL; the default is served, else nothing.
    OutsideMaxAge,
    /// Another writer left something that is not of the type; the default is served, else nothing.
    Invalid,
}

impl Status {
    /// The word as it stands in a reply.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Present => "PRESENT",
            Status::Default => "DEFAULT",
            Status::NotFound => "NOT_FOUND",
            Status::OutsideMaxAge => "OUTSIDE_MAX_AGE",
            Status::Invalid => "INVALID",
        }
    }
}

/// What is served for one feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Served<'a> {
    /// The value, or `None` for nil.
    pub value: Option<Value<'a>>,
    /// Why.
    pub status: Status,
    /// Event time of the stored value, unix milliseconds, where there is one.
    pub event_time_ms: Option<i64>,
}

impl Served<'_> {
    /// Age of the stored value, milliseconds; 0 for one that lies ahead of the clock.
    pub fn age_ms(&self, now_ms: i64) -> Option<i64> {
        self.event_time_ms.map(|t| (now_ms - t).max(0))
    }
}

/// What a row holds of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<'a> {
    /// Nothing.
    Absent,
    /// The field of a hash.
    Field(&'a [u8]),
    /// What stands in a packed row.
    Packed(&'a [u8]),
    /// Something: the row is there, but not packed as the view packs its rows.
    Unreadable,
}

impl<'a> Stored<'a> {
    /// The value. `None`: none is there, or another writer left something that is not of the type.
    pub fn value(self, feature: &'a Feature) -> Option<Value<'a>> {
        match self {
            Stored::Field(field) => Value::from_field(feature.ty, field),
            Stored::Packed(bytes) => value_of(feature, bytes),
            Stored::Absent | Stored::Unreadable => None,
        }
    }
}

/// What is served for a window whose value is `value`. `newest_ms`: event time of the entity's newest event.
pub fn serve_window(
    view: &FeatureView,
    feature: usize,
    value: Option<Value<'static>>,
    newest_ms: Option<i64>,
) -> Served<'static> {
    let (value, status) = match (value, &view.features()[feature].default) {
        (Some(value), _) => (Some(value), Status::Present),
        (None, Some(default)) => (Some(default.clone()), Status::Default),
        (None, None) => (None, Status::NotFound),
    };
    Served { value, status, event_time_ms: newest_ms }
}

/// What is served for a feature of which the row holds `stored`. `event_time_ms`: of that value, where its writer left
/// one.
pub fn serve<'a>(
    view: &'a FeatureView,
    feature: usize,
    stored: Stored<'a>,
    event_time_ms: Option<i64>,
    at: ReadAt,
) -> Served<'a> {
    let definition = &view.features()[feature];
    let now_ms = at.ms();
    let fallback = || definition.default.clone();
    if stored == Stored::Absent {
        let value = fallback();
        let status = if value.is_some() { Status::Default } else { Status::NotFound };
        return Served { value, status, event_time_ms: None };
    }
    if matches!(at, ReadAt::Named(_)) && event_time_ms.is_some_and(|t| t > now_ms) {
        // What was true at that time is not known any more: a default would claim that nothing was.
        return Served { value: None, status: Status::NotFound, event_time_ms: None };
    }
    if is_outside_max_age(view, feature, event_time_ms, now_ms) {
        return Served { value: fallback(), status: Status::OutsideMaxAge, event_time_ms };
    }
    match stored.value(definition) {
        Some(value) => Served { value: Some(value), status: Status::Present, event_time_ms },
        None => Served { value: fallback(), status: Status::Invalid, event_time_ms },
    }
}

/// Is a value of this event time too old to be served? One without a time is not: the key's own expiry rules it.
pub fn is_outside_max_age(view: &FeatureView, feature: usize, event_time_ms: Option<i64>, now_ms: i64) -> bool {
    match (view.age_ms_max(feature), event_time_ms) {
        (Some(max), Some(time)) => now_ms - time > max,
        _ => false,
    }
}

/// Writes a served feature's tensor columns: its number or numbers, NaN where it has none.
///
/// `out`: four bytes for each column that [`FeatureView::tensor_columns`] says. Answers false when a stored value has
/// no number (a STRING that is none of VALUES), which then counts as absent: the default, or NaN.
pub fn write_columns(view: &FeatureView, feature: usize, value: Option<&Value<'_>>, out: &mut [u8]) -> bool {
    let definition = &view.features()[feature];
    let mut numbers = |value: &Value<'_>| match (definition.ty, value) {
        (FeatureType::Vector(_), Value::Vector(v)) => {
            out.chunks_exact_mut(4).zip(v).for_each(|(out, x)| out.copy_from_slice(&x.to_le_bytes()));
            true
        }
        (FeatureType::String, Value::String(text)) => match definition.values.index_of(text) {
            Some(index) => {
                out.copy_from_slice(&(index as f32).to_le_bytes());
                true
            }
            None => false,
        },
        (_, value) => match value.as_f32() {
            Some(number) => {
                out.copy_from_slice(&number.to_le_bytes());
                true
            }
            None => false,
        },
    };
    if value.is_some_and(&mut numbers) {
        return true;
    }
    if !definition.default.as_ref().is_some_and(&mut numbers) {
        out.chunks_exact_mut(4).for_each(|out| out.copy_from_slice(&f32::NAN.to_le_bytes()));
    }
    value.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Arguments;
    use crate::materialize::RowTimes;
    use crate::schema_syntax::parse_registration;

    fn view() -> FeatureView {
        let words: Vec<&[u8]> =
            "ENTITY u TTL 10s SCHEMA a INT DEFAULT 7 b FLOAT TTL 5s c STRING VALUES 2 x y e VECTOR 2 DEFAULT 1,2"
                .split(' ')
                .map(str::as_bytes)
                .collect();
        parse_registration(b"v", &mut Arguments::new(&words)).expect("a definition")
    }

    #[test]
    fn the_status_says_why_a_default_is_served() {
        let view = view();
        let times = RowTimes::read(&view, Some(b"100"), None);
        let at = |feature, field: Option<&'static str>, now_ms| {
            let stored = field.map_or(Stored::Absent, |field| Stored::Field(field.as_bytes()));
            let served = serve(&view, feature, stored, times.of_present(feature), ReadAt::Clock(now_ms));
            (served.value.map(|v| String::from_utf8(v.to_field()).expect("text")), served.status)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(at(0, Some("5"), 104_000), (some("5"), Status::Present));
        assert_eq!(at(0, None, 104_000), (some("7"), Status::Default));
        assert_eq!(at(0, Some("x"), 104_000), (some("7"), Status::Invalid));
        assert_eq!(at(0, Some("5"), 110_000), (some("5"), Status::Present));
        assert_eq!(at(0, Some("5"), 110_001), (some("7"), Status::OutsideMaxAge));
        assert_eq!(at(1, None, 104_000), (None, Status::NotFound));
        assert_eq!(at(1, Some("1.5"), 105_001), (None, Status::OutsideMaxAge));
        assert_eq!(at(1, Some("1.5"), 99_000), (some("1.5"), Status::Present));
        let named = |ms| serve(&view, 0, Stored::Field(b"5"), times.of_present(0), ReadAt::Named(ms)).status;
        assert_eq!((named(99_999), named(100_000)), (Status::NotFound, Status::Present));
    }

    #[test]
    fn a_tensor_holds_numbers_defaults_or_nan() {
        let view = view();
        let columns = |feature: usize, value: Option<Value<'_>>| {
            let mut out = vec![0; view.tensor_columns(&[feature]).expect("a number")[0] * 4];
            let clean = write_columns(&view, feature, value.as_ref(), &mut out);
            let numbers: Vec<f32> = out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (numbers, clean)
        };
        assert_eq!(columns(0, Some(Value::Int(3))), (vec![3.0], true));
        assert_eq!(columns(0, None), (vec![7.0], true));
        assert_eq!(columns(2, Some(Value::String(b"y"[..].into()))), (vec![1.0], true));
        let (numbers, clean) = columns(2, Some(Value::String(b"zz"[..].into())));
        assert!(numbers[0].is_nan() && !clean);
        assert_eq!(columns(3, None), (vec![1.0, 2.0], true));
        assert_eq!(columns(3, Some(Value::Vector(vec![3.0, 4.0]))).0, vec![3.0, 4.0]);
    }
}
