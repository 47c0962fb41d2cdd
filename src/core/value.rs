//! Values: how they come in, how a row's field holds them, how they go out.
//!
//! A field of a row holds INT and TIMESTAMP in decimal, FLOAT as the shortest decimal that reads back the same, BOOL as
//! `1`/`0`, STRING as it is, LIST as JSON, VECTOR as raw little-endian float32. That text is the value's one stored
//! form: the log's JSON, replies and tensors are all made from it.

use crate::feature_type::FeatureType;
use crate::time::looks_like_seconds;
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Integers beyond this are not exact as floats: `9007199254740993.0` would silently become another number for INT.
const EXACT_FLOAT_INT_MAX: f64 = 9_007_199_254_740_991.0;

/// The member of a JSON object that carries a STRING which is no text.
const BASE64_MEMBER: &str = "$base64";

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// INT.
    Int(i64),
    /// FLOAT, finite.
    Float(f64),
    /// BOOL.
    Bool(bool),
    /// STRING.
    String(Cow<'a, [u8]>),
    /// TIMESTAMP, unix milliseconds.
    Timestamp(i64),
    /// VECTOR, all finite.
    Vector(Vec<f32>),
    /// LIST, the text of a JSON array.
    List(Cow<'a, str>),
}

/// Why a value was refused, without the names that only the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is not of the type.
    Type,
    /// It is, but not allowed: a sentence's end such as `looks like seconds`.
    Because(String),
}

type Checked<T> = std::result::Result<T, Refusal>;

/// A finite double.
pub(crate) fn finite(text: &[u8]) -> Option<f64> {
    lexical_core::parse(text).ok().filter(|v: &f64| v.is_finite())
}

fn integer(text: &[u8]) -> Option<i64> {
    lexical_core::parse(text).ok().or_else(|| {
        let v = finite(text)?;
        (v.trunc() == v && v.abs() <= EXACT_FLOAT_INT_MAX).then_some(v as i64)
    })
}

fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        b"1" => Some(true),
        b"0" => Some(false),
        text if text.eq_ignore_ascii_case(b"true") => Some(true),
        text if text.eq_ignore_ascii_case(b"false") => Some(false),
        _ => None,
    }
}

fn timestamp(text: &[u8]) -> Checked<i64> {
    let ms = integer(text).ok_or(Refusal::Type)?;
    if looks_like_seconds(ms) {
        return Err(Refusal::Because("looks like seconds, milliseconds are expected".into()));
    }
    Ok(ms)
}

fn vector_from_text(text: &[u8], dimensions: u32) -> Option<Checked<Vec<f32>>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => text,
    };
    let numbers: Option<Vec<f32>> =
        inner.split(',').map(|part| part.trim().parse().ok().filter(|v: &f32| v.is_finite())).collect();
    let numbers = numbers?;
    Some(if numbers.len() == dimensions as usize {
        Ok(numbers)
    } else {
        Err(Refusal::Because(format!("has {} dimensions", numbers.len())))
    })
}

fn vector_from_bytes(raw: &[u8], dimensions: u32) -> Option<Vec<f32>> {
    if raw.len() != dimensions as usize * 4 {
        return None;
    }
    let numbers: Vec<f32> = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    numbers.iter().all(|v| v.is_finite()).then_some(numbers)
}

fn list(text: &str) -> Option<&str> {
    let text = text.trim();
    (text.starts_with('[') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()).then_some(text)
}

impl<'a> Value<'a> {
    /// Reads a value as a command's argument gives it.
    pub fn from_text(ty: FeatureType, text: &'a [u8]) -> Checked<Self> {
        Ok(match ty {
            FeatureType::Int => Value::Int(integer(text).ok_or(Refusal::Type)?),
            FeatureType::Float => Value::Float(finite(text).ok_or(Refusal::Type)?),
            FeatureType::Bool => Value::Bool(boolean(text).ok_or(Refusal::Type)?),
            FeatureType::String => Value::String(Cow::Borrowed(text)),
            FeatureType::Timestamp => Value::Timestamp(timestamp(text)?),
            // Text comes first: four times the dimension in ASCII digits and commas is no likely float32 blob, while
            // a list of numbers has that length now and then.
            FeatureType::Vector(n) => Value::Vector(match vector_from_text(text, n) {
                Some(Ok(numbers)) => numbers,
                text_refusal => match (vector_from_bytes(text, n), text_refusal) {
                    (Some(numbers), _) => numbers,
                    (None, Some(Err(refusal))) => return Err(refusal),
                    (None, _) => return Err(Refusal::Type),
                },
            }),
            FeatureType::List => {
                Value::List(Cow::Borrowed(std::str::from_utf8(text).ok().and_then(list).ok_or(Refusal::Type)?))
            }
        })
    }

    /// Reads a value as a member of a JSON object gives it. JSON null is not a value: the caller sees it first.
    pub fn from_json(ty: FeatureType, raw: &'a RawValue) -> Checked<Self> {
        let text = raw.get();
        match (text.as_bytes().first(), ty) {
            (Some(b'"'), ty) => {
                let mut deserializer = serde_json::Deserializer::from_str(text);
                let inner = text_of(&mut deserializer).ok_or(Refusal::Type)?;
                match inner {
                    Cow::Borrowed(inner) => Value::from_text(ty, inner.as_bytes()),
                    Cow::Owned(inner) => Value::from_text(ty, inner.as_bytes()).map(Value::into_owned),
                }
            }
            (Some(b'['), FeatureType::Vector(_) | FeatureType::List) => Value::from_text(ty, text.as_bytes()),
            (Some(b'{'), FeatureType::String) => {
                let object: std::collections::BTreeMap<Cow<'_, str>, Cow<'_, str>> =
                    serde_json::from_str(text).map_err(|_| Refusal::Type)?;
                match (object.len(), object.get(BASE64_MEMBER)) {
                    (1, Some(encoded)) => {
                        let bytes = BASE64.decode(encoded.as_bytes()).map_err(|_| Refusal::Type)?;
                        Ok(Value::String(Cow::Owned(bytes)))
                    }
                    _ => Err(Refusal::Type),
                }
            }
            (Some(b't' | b'f'), FeatureType::Bool) => Value::from_text(ty, text.as_bytes()),
            (
                Some(b'-' | b'0'..=b'9'),
                FeatureType::Int | FeatureType::Float | FeatureType::Bool | FeatureType::Timestamp,
            ) => Value::from_text(ty, text.as_bytes()),
            _ => Err(Refusal::Type),
        }
    }

    /// Reads a row's field. `None`: another writer left something that is not of the type.
    ///
    /// Kinder than the stored form, because a row may have been written by hand: `25.0`, `True`, `0.1,0.2` are read.
    pub fn from_field(ty: FeatureType, field: &'a [u8]) -> Option<Self> {
        match ty {
            // Four bytes of ASCII digits may well be one float32; eight and more are text that somebody wrote by hand.
            FeatureType::Vector(1) => {
                vector_from_bytes(field, 1).or_else(|| vector_from_text(field, 1)?.ok()).map(Value::Vector)
            }
            FeatureType::Vector(n) => vector_from_text(field, n)
                .and_then(|numbers| numbers.ok())
                .or_else(|| vector_from_bytes(field, n))
                .map(Value::Vector),
            ty => Value::from_text(ty, field).ok(),
        }
    }

    /// Gives the stored form to `out`, in one piece or, for a VECTOR, a component at a time.
    pub fn write_field(&self, mut out: impl FnMut(&[u8])) {
        match self {
            Value::Int(v) | Value::Timestamp(v) => out(itoa::Buffer::new().format(*v).as_bytes()),
            Value::Float(v) => write_float(*v, out),
            Value::Bool(v) => out(if *v { b"1" } else { b"0" }),
            Value::String(v) => out(v),
            Value::Vector(v) => v.iter().for_each(|x| out(&x.to_le_bytes())),
            Value::List(v) => out(v.as_bytes()),
        }
    }

    /// The stored form.
    pub fn to_field(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_field(|part| out.extend_from_slice(part));
        out
    }

    /// The value as one number, where it has one that does not depend on the feature's definition.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::Int(v) | Value::Timestamp(v) => Some(*v as f32),
            Value::Float(v) => Some(*v as f32),
            Value::Bool(v) => Some(f32::from(u8::from(*v))),
            Value::String(_) | Value::Vector(_) | Value::List(_) => None,
        }
    }

    /// The same value, free of what it was read from.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Value::Int(v) => Value::Int(v),
            Value::Float(v) => Value::Float(v),
            Value::Bool(v) => Value::Bool(v),
            Value::String(v) => Value::String(Cow::Owned(v.into_owned())),
            Value::Timestamp(v) => Value::Timestamp(v),
            Value::Vector(v) => Value::Vector(v),
            Value::List(v) => Value::List(Cow::Owned(v.into_owned())),
        }
    }
}

fn text_of<'de>(deserializer: &mut serde_json::Deserializer<serde_json::de::StrRead<'de>>) -> Option<Cow<'de, str>> {
    struct Text;
    impl<'de> serde::de::Visitor<'de> for Text {
        type Value = Cow<'de, str>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }
        fn visit_borrowed_str<E>(self, v: &'de str) -> std::result::Result<Self::Value, E> {
            Ok(Cow::Borrowed(v))
        }
        fn visit_str<E>(self, v: &str) -> std::result::Result<Self::Value, E> {
            Ok(Cow::Owned(v.to_owned()))
        }
    }
    serde::Deserializer::deserialize_str(deserializer, Text).ok()
}

/// The shortest decimal that reads back the same; whole numbers without `.0`, which the server stores smaller.
fn write_float(v: f64, mut out: impl FnMut(&[u8])) {
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(v);
    out(text.strip_suffix(".0").unwrap_or(text).as_bytes());
}

/// A float32 as the shortest decimal that reads back the same float32.
pub fn format_f32(v: f32) -> String {
    shortest(v)
}

/// A double as the shortest decimal that reads back the same; `inf`, `-inf`.
pub fn format_f64(v: f64) -> String {
    shortest(v)
}

fn shortest(v: impl ryu::Float) -> String {
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format(v);
    text.strip_suffix(".0").unwrap_or(text).to_owned()
}

/// Appends the JSON of a stored field, for the log. The field must be in the stored form of its type.
pub fn write_field_as_json(kind: JsonKind, field: &[u8], out: &mut Vec<u8>) {
    match kind {
        JsonKind::Verbatim => out.extend_from_slice(field),
        JsonKind::Bool => out.extend_from_slice(if field == b"1" { b"true" } else { b"false" }),
        JsonKind::Text => write_string_as_json(field, out),
        JsonKind::Vector => {
            out.push(b'[');
            let mut buffer = ryu::Buffer::new();
            for (i, b) in field.chunks_exact(4).enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                let text = buffer.format_finite(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                out.extend_from_slice(text.as_bytes());
            }
            out.push(b']');
        }
    }
}

fn write_string_as_json(field: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(field) {
        // Writing to a Vec cannot fail, and a str always has a JSON form.
        Ok(text) => serde_json::to_writer(&mut *out, text).expect("a str serializes into memory"),
        Err(_) => {
            out.extend_from_slice(b"{\"$base64\":\"");
            out.extend_from_slice(BASE64.encode(field).as_bytes());
            out.extend_from_slice(b"\"}");
        }
    }
}

/// How a stored field becomes JSON. Travels inside replicated effects, so that a replica needs no schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum JsonKind {
    /// The field is JSON already: INT, FLOAT, TIMESTAMP, LIST.
    Verbatim,
    /// BOOL: `1` is true.
    Bool,
    /// STRING: quoted, or base64 where it is no text.
    Text,
    /// VECTOR: an array of numbers.
    Vector,
}

impl From<FeatureType> for JsonKind {
    fn from(ty: FeatureType) -> Self {
        match ty {
            FeatureType::Int | FeatureType::Float | FeatureType::Timestamp | FeatureType::List => JsonKind::Verbatim,
            FeatureType::Bool => JsonKind::Bool,
            FeatureType::String => JsonKind::Text,
            FeatureType::Vector(_) => JsonKind::Vector,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(ty: FeatureType, input: &[u8]) -> Option<Vec<u8>> {
        Value::from_text(ty, input).ok().map(|v| v.to_field())
    }

    fn json(ty: FeatureType, input: &str) -> Option<Vec<u8>> {
        let raw: &RawValue = serde_json::from_str(input).expect("JSON");
        Value::from_json(ty, raw).ok().map(|v| v.to_field())
    }

    #[test]
    fn arguments_are_read_by_type_and_stored_in_one_form() {
        use FeatureType::*;
        let cases: &[(FeatureType, &str, Option<&str>)] = &[
            (Int, "42", Some("42")),
            (Int, "-0", Some("0")),
            (Int, "5.0", Some("5")),
            (Int, "1e3", Some("1000")),
            (Int, "9223372036854775807", Some("9223372036854775807")),
            (Int, "9223372036854775808", None),
            (Int, "9007199254740993.0", None),
            (Int, "9007199254740991.0", Some("9007199254740991")),
            (Int, "5.5", None),
            (Int, "abc", None),
            (Int, "", None),
            (Int, " 5", None),
            (Float, "5.0", Some("5")),
            (Float, "0.1", Some("0.1")),
            (Float, "1e300", Some("1e300")),
            (Float, "1e999", None),
            (Float, "nan", None),
            (Float, "-inf", None),
            (Float, "-0.0", Some("-0")),
            (Bool, "true", Some("1")),
            (Bool, "True", Some("1")),
            (Bool, "0", Some("0")),
            (Bool, "yes", None),
            (String, "", Some("")),
            (Timestamp, "1700000000000", Some("1700000000000")),
            (Timestamp, "1700000000", None),
            (Timestamp, "-86400000", Some("-86400000")),
            (List, "[1, \"a\"]", Some("[1, \"a\"]")),
            (List, "{}", None),
            (List, "[1", None),
        ];
        for (ty, input, expected) in cases {
            assert_eq!(text(*ty, input.as_bytes()).as_deref(), expected.map(str::as_bytes), "{ty} {input}");
        }
    }

    #[test]
    fn json_members_must_be_of_a_fitting_json_type() {
        use FeatureType::*;
        let cases: &[(FeatureType, &str, Option<&str>)] = &[
            (Int, "42", Some("42")),
            (Int, "42.0", Some("42")),
            (Int, "\"42\"", Some("42")),
            (Int, "true", None),
            (Int, "[]", None),
            (Float, "1", Some("1")),
            (Bool, "true", Some("1")),
            (Bool, "1", Some("1")),
            (Bool, "\"True\"", Some("1")),
            (Bool, "2", None),
            (String, "\"a\\nb\"", Some("a\nb")),
            (String, "5", None),
            (String, "{\"$base64\": \"/w==\"}", None),
            (String, "{\"a\": 1}", None),
            (List, "[1,[2]]", Some("[1,[2]]")),
            (List, "\"[1]\"", Some("[1]")),
        ];
        for (ty, input, expected) in cases {
            if input.contains("$base64") {
                assert_eq!(json(*ty, input), Some(vec![0xff]));
            } else {
                assert_eq!(json(*ty, input).as_deref(), expected.map(str::as_bytes), "{ty} {input}");
            }
        }
    }

    #[test]
    fn a_vector_comes_as_bytes_list_or_json() {
        let ty = FeatureType::Vector(2);
        let raw: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for input in [&raw[..], b"0.5,-2", b"[0.5, -2.0]", b" 0.5 , -2 ", b"0.50,-2."] {
            assert_eq!(text(ty, input).as_ref(), Some(&raw), "{input:?}");
        }
        assert_eq!(Value::from_text(ty, b"1,2,3"), Err(Refusal::Because("has 3 dimensions".into())));
        // Text as long as the bytes would be.
        assert_eq!(Value::from_field(ty, b"1.5,2.25"), Some(Value::Vector(vec![1.5, 2.25])));
        assert_eq!(Value::from_field(ty, &raw), Some(Value::Vector(vec![0.5, -2.0])));
        let nan: Vec<u8> = [f32::NAN, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        for bad in [&nan[..], b"", b"a,b", b"1e39,1", b"[1,2"] {
            assert!(Value::from_text(ty, bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_stored_form_reads_back(i in any::<i64>(), f in any::<f64>(), s in any::<Vec<u8>>(), b in any::<bool>(),
                                        v in proptest::collection::vec(-1e30f32..1e30, 1..20)) {
            let mut cases = vec![
                (FeatureType::Int, Value::Int(i)),
                (FeatureType::Bool, Value::Bool(b)),
                (FeatureType::String, Value::String(s.into())),
                (FeatureType::Vector(v.len() as u32), Value::Vector(v)),
            ];
            if f.is_finite() {
                cases.push((FeatureType::Float, Value::Float(f)));
            }
            for (ty, value) in cases {
                let field = value.to_field();
                prop_assert_eq!(Value::from_field(ty, &field), Some(value.clone()));
                let mut json = Vec::new();
                write_field_as_json(ty.into(), &field, &mut json);
                let raw: &RawValue = serde_json::from_slice(&json).expect("the log's JSON parses");
                prop_assert_eq!(Value::from_json(ty, raw), Ok(value));
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in any::<Vec<u8>>(), n in 1u32..5) {
            for ty in [FeatureType::Int, FeatureType::Float, FeatureType::Bool, FeatureType::String,
                       FeatureType::Timestamp, FeatureType::Vector(n), FeatureType::List] {
                let _ = Value::from_text(ty, &bytes);
                let _ = Value::from_field(ty, &bytes);
            }
        }
    }
}
