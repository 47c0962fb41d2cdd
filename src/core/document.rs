//! A view as a JSON document: what `FS.REGISTER view JSON` takes, FS.DESCRIBE gives back, and snapshots keep.

use crate::arguments::{parse_version, Arguments};
use crate::definition::{Extra, Feature, FeatureView, SampleOn, Sampling, Storage, MAXLEN_DEFAULT};
use crate::drift::baseline::Expected;
use crate::error::{shown, Error, Result};
use crate::feature_type::{FeatureType, TypeWord};
use crate::packed::Packing;
use crate::schema_syntax::{of_feature, set_values, vector_length};
use crate::time::{format_duration, parse_duration};
use crate::value::{write_field_as_json, Refusal, Value};
use crate::windows::aggregation::{Window, WindowWords};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::Value as Json;

fn yes() -> bool {
    true
}

fn is_false(b: &bool) -> bool {
    !b
}

fn first_version() -> u64 {
    1
}

fn maxlen_default() -> u64 {
    MAXLEN_DEFAULT
}

fn refuse_word() -> String {
    "refuse".to_owned()
}

/// A member that must be an object: a structure would be read from a list too.
fn object<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned>(
    deserializer: D,
) -> std::result::Result<Option<T>, D::Error> {
    let members = serde_json::Map::deserialize(deserializer)?;
    serde_json::from_value(Json::Object(members)).map(Some).map_err(serde::de::Error::custom)
}

/// Which values are sampled, as a document says it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleDocument {
    rate: f64,
    on: String,
}

fn read_sample(document: &SampleDocument) -> Result<Sampling> {
    let on = SampleOn::ALL.into_iter().find(|on| document.on.eq_ignore_ascii_case(on.name())).ok_or_else(|| {
        Error::syntax(format!("sample is on publish or on serve, got '{}'", shown(document.on.as_bytes())))
    })?;
    Sampling::new(document.rate, on)
}

fn hash_word() -> String {
    Storage::Hash.name().to_owned()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ViewDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<String>,
    #[serde(default = "first_version")]
    version: u64,
    entity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Json>,
    #[serde(default = "yes")]
    log: bool,
    #[serde(default = "maxlen_default")]
    maxlen: u64,
    #[serde(default = "yes")]
    consumer: bool,
    #[serde(default = "refuse_word")]
    extra: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dedup: Option<Json>,
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    sample: Option<SampleDocument>,
    #[serde(default = "hash_word")]
    storage: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    schema: Schema,
    /// Derived; written for readers, accepted and ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensor: Option<Json>,
    /// Likewise: where each feature stands in a packed row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packed: Option<Json>,
}

/// A list of features, or an object of name to the rest.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Schema(Vec<FeatureDocument>);

/// Values stay raw JSON text, so that a LIST keeps every digit and space that it was given with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureDocument {
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dim: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    input: bool,
    /// As after the word AGG: `SUM minutes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hop: Option<Json>,
    /// What the values are expected to be like.
    #[serde(default, deserialize_with = "object", skip_serializing_if = "Option::is_none")]
    expected: Option<Expected>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Schema;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list or an object of features")
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> std::result::Result<Schema, S::Error> {
                let mut features = Vec::new();
                while let Some(feature) = list.next_element()? {
                    features.push(feature);
                }
                Ok(Schema(features))
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Schema, M::Error> {
                let mut features = Vec::new();
                while let Some((name, rest)) = map.next_entry::<String, Box<RawValue>>()? {
                    features.push(named_feature(name, &rest).map_err(serde::de::Error::custom)?);
                }
                Ok(Schema(features))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A feature in an object of features: `{"type": "INT", ...}`, or in the shortest form just `"INT"`.
fn named_feature(name: String, rest: &RawValue) -> std::result::Result<FeatureDocument, String> {
    let text = rest.get();
    let mut feature: FeatureDocument = if text.starts_with('"') {
        serde_json::from_str(&format!("{{\"type\":{text}}}"))
    } else {
        serde_json::from_str(text)
    }
    .map_err(|e| format!("feature '{}': {e}", shown(name.as_bytes())))?;
    if !feature.name.is_empty() && feature.name != name {
        return Err(format!("feature '{}' calls itself '{}'", shown(name.as_bytes()), shown(feature.name.as_bytes())));
    }
    feature.name = name;
    Ok(feature)
}

/// Reads a document. `view` is the name that the command gave; the document may repeat it but not contradict.
pub fn parse_document(view: &[u8], text: &[u8]) -> Result<FeatureView> {
    let document: ViewDocument = serde_json::from_slice(text)
        .map_err(|e| Error::syntax(format!("the document of view '{}': {e}", shown(view))))?;
    if document.view.as_ref().is_some_and(|named| named.as_bytes() != view) {
        return Err(Error::syntax(format!(
            "the document is of view '{}', not '{}'",
            shown(document.view.unwrap_or_default().as_bytes()),
            shown(view)
        )));
    }
    let version = parse_version(document.version.to_string().as_bytes())?;
    let mut definition = FeatureView::new(view, version, document.entity.as_bytes())?;
    definition.ttl_ms = document.ttl.as_ref().map(duration).transpose()?.flatten();
    definition.log = document.log;
    definition.maxlen = document.maxlen.max(1);
    if document.maxlen == 0 {
        return Err(Error::syntax("maxlen must be at least 1"));
    }
    definition.consumer = document.consumer;
    definition.extra = match document.extra.to_ascii_lowercase().as_str() {
        "refuse" => Extra::Refuse,
        "ignore" => Extra::Ignore,
        other => {
            return Err(Error::syntax(format!("extra must be refuse or ignore, got '{}'", shown(other.as_bytes()))))
        }
    };
    let storage = Storage::ALL.into_iter().find(|storage| document.storage.eq_ignore_ascii_case(storage.name()));
    definition.storage = storage.ok_or_else(|| {
        Error::syntax(format!("storage must be hash or packed, got '{}'", shown(document.storage.as_bytes())))
    })?;
    definition.dedup_ms = document.dedup.as_ref().map(duration).transpose()?.flatten();
    if let Some(sample) = &document.sample {
        definition.sample = read_sample(sample)?;
    }
    definition.description = document.description;
    for feature in document.schema.0 {
        definition.add_feature(read_feature(&definition.name, feature)?)?;
    }
    definition.check()?;
    Ok(definition)
}

/// A duration as a document gives it: `"7d"`, a number of seconds, or null.
fn duration(json: &Json) -> Result<Option<i64>> {
    match json {
        Json::Null => Ok(None),
        Json::String(text) => parse_duration(text.as_bytes()).map(Some),
        other => parse_duration(other.to_string().as_bytes()).map(Some),
    }
}

fn read_feature(view: &str, document: FeatureDocument) -> Result<Feature> {
    let ty = match FeatureType::parse(document.ty.as_bytes()) {
        Ok(TypeWord::Whole(ty)) if document.dim.is_some() => {
            return Err(Error::syntax(format!(
                "feature '{}' of view '{view}' is {ty}, only a VECTOR has a dim",
                shown(document.name.as_bytes())
            )))
        }
        Ok(TypeWord::Whole(ty)) => ty,
        Ok(TypeWord::Vector) => {
            let dimensions = match (document.dim, &document.default) {
                (Some(n), _) => n,
                (None, Some(default)) => vector_length(default.get().trim_matches('"').as_bytes()),
                _ => {
                    return Err(Error::syntax(format!(
                        "feature '{}' of view '{view}' needs dim, or a default",
                        shown(document.name.as_bytes())
                    )))
                }
            };
            FeatureType::vector(dimensions)?
        }
        // `VECTOR 3`, as FS.DESCRIBE prints a type.
        Err(error) => match document.ty.split_once(' ') {
            Some((word, n)) if word.eq_ignore_ascii_case("vector") => {
                let dimensions = n.parse().unwrap_or(0);
                match document.dim {
                    Some(dim) if dim != dimensions => {
                        return Err(Error::syntax(format!(
                            "feature '{}' of view '{view}' is {}, but its dim is {dim}",
                            shown(document.name.as_bytes()),
                            shown(document.ty.as_bytes())
                        )))
                    }
                    _ => FeatureType::vector(dimensions)?,
                }
            }
            _ => return Err(error),
        },
    };
    let mut feature = Feature::new(document.name.as_bytes(), ty)?;
    feature.ttl_ms = document.ttl.as_ref().map(duration).transpose()?.flatten();
    feature.window = window_of(&document).map_err(|e| of_feature(&feature.name, view.as_bytes(), &e))?;
    for value in document.values {
        feature.allow(value)?;
    }
    feature.input = document.input;
    feature.expected = document.expected;
    feature.description = document.description;
    let raw = |value: &Option<Box<RawValue>>| value.as_ref().map(|v| v.get().to_owned());
    let read = |json: &str| {
        let raw: &RawValue = serde_json::from_str(json).map_err(|_| Refusal::Type)?;
        Value::from_json(ty, raw).map(Value::into_owned)
    };
    let given = [raw(&document.default), raw(&document.min), raw(&document.max)];
    set_values(&mut feature, view, given.each_ref().map(|v| v.as_deref()), read)?;
    Ok(feature)
}

fn window_of(document: &FeatureDocument) -> Result<Option<Window>> {
    let mut words = WindowWords::default();
    if let Some(agg) = &document.agg {
        let items: Vec<&[u8]> = agg.split_ascii_whitespace().map(str::as_bytes).collect();
        let mut arguments = Arguments::new(&items);
        words.aggregation(&mut arguments)?;
        arguments.finish()?;
    }
    let text = |json: &Json| match json {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    document.window.as_ref().map(|w| words.length(text(w).as_bytes())).transpose()?;
    document.hop.as_ref().map(|h| words.hop(text(h).as_bytes())).transpose()?;
    words.finish()
}

fn json_of(ty: FeatureType, value: &Value<'_>) -> Option<Box<RawValue>> {
    let mut text = Vec::new();
    write_field_as_json(ty.into(), &value.to_field(), &mut text);
    // The stored form of every value has a JSON form.
    RawValue::from_string(String::from_utf8(text).ok()?).ok()
}

/// The document that [`parse_document`] takes back unchanged.
pub fn to_document(view: &FeatureView) -> String {
    let features: Vec<FeatureDocument> = view
        .features()
        .iter()
        .map(|f| FeatureDocument {
            name: f.name.clone(),
            ty: f.ty.name().to_owned(),
            dim: match f.ty {
                FeatureType::Vector(n) => Some(u64::from(n)),
                _ => None,
            },
            default: f.default.as_ref().and_then(|v| json_of(f.ty, v)),
            ttl: f.ttl_ms.map(|ms| Json::String(format_duration(ms))),
            min: f.min.as_ref().and_then(|v| json_of(f.ty, v)),
            max: f.max.as_ref().and_then(|v| json_of(f.ty, v)),
            values: f.values.as_slice().to_vec(),
            input: f.input,
            agg: f.window.as_ref().map(Window::to_string),
            window: f.window.as_ref().map(|w| Json::String(format_duration(w.length_ms))),
            hop: f.window.as_ref().map(|w| Json::String(format_duration(w.hop_ms))),
            expected: f.expected.clone(),
            description: f.description.clone(),
        })
        .collect();
    let document = ViewDocument {
        view: Some(view.name.clone()),
        version: u64::from(view.version),
        entity: view.entity.clone(),
        ttl: view.ttl_ms.map(|ms| Json::String(format_duration(ms))),
        log: view.log,
        maxlen: view.maxlen,
        consumer: view.consumer,
        extra: match view.extra {
            Extra::Refuse => refuse_word(),
            Extra::Ignore => "ignore".to_owned(),
        },
        dedup: view.dedup_ms.map(|ms| Json::String(format_duration(ms))),
        sample: Some(SampleDocument { rate: view.sample.rate, on: view.sample.on.name().to_owned() }),
        storage: view.storage.name().to_owned(),
        description: view.description.clone(),
        schema: Schema(features),
        tensor: Some(tensor_of(view)),
        packed: packed_of(view),
    };
    serde_json::to_string(&document).expect("a document of plain values serializes")
}

/// The slots of packed rows. `None`: rows are hashes.
fn packed_of(view: &FeatureView) -> Option<Json> {
    // A definition whose rows cannot be packed was refused.
    let packing = (view.storage == Storage::Packed).then(|| Packing::of(view).ok()).flatten()?;
    let slots = packing.slots(view);
    Some(slots.map(|(name, offset, ty)| serde_json::json!({"feature": name, "offset": offset, "type": ty})).collect())
}

/// The columns that each feature with a number fills in a tensor of all of them, in the schema's order.
fn tensor_of(view: &FeatureView) -> Json {
    let mut offset = 0;
    let columns: Vec<Json> = view
        .served()
        .filter_map(|i| {
            let feature = &view.features()[i];
            let width = feature.columns()?;
            let column = serde_json::json!({"feature": feature.name, "offset": offset, "width": width});
            offset += width;
            Some(column)
        })
        .collect();
    serde_json::json!({"width": offset, "columns": columns})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema_syntax::parse_registration;
    use proptest::prelude::*;

    #[test]
    fn the_two_forms_of_a_definition_agree() {
        let words: Vec<&[u8]> =
            "ENTITY user TTL 7d SCHEMA age INT DEFAULT 0 MIN 0 MAX 150 score numeric emb VECTOR 2 DEFAULT 0.1,0.2 \
             plan STRING VALUES 2 free pro tags LIST DEFAULT [1,2]"
                .split_whitespace()
                .map(str::as_bytes)
                .collect();
        let tokens = parse_registration(b"profile", &mut Arguments::new(&words)).expect("tokens");
        for document in [
            r#"{"entity":"user","ttl":"7d","schema":[{"name":"age","type":"INT","default":0,"min":0,"max":150},
                {"name":"score","type":"numeric"},{"name":"emb","type":"embedding","default":[0.1,0.2]},
                {"name":"plan","type":"categorical","values":["free","pro"]},
                {"name":"tags","type":"list","default":[1,2]}]}"#,
            r#"{"view":"profile","entity":"user","ttl":604800,"schema":{"age":{"type":"INT","default":"0","min":0,
                "max":150},"score":"FLOAT","emb":{"type":"VECTOR","dim":2,"default":"0.1,0.2"},
                "plan":{"type":"STRING","values":["free","pro"]},"tags":{"type":"LIST","default":[1,2]}}}"#,
        ] {
            assert_eq!(parse_document(b"profile", document.as_bytes()).as_ref(), Ok(&tokens));
        }
    }

    #[test]
    fn a_document_that_says_something_else_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"entity":"u","schema":[]}"#,
            r#"{"entity":"u","schema":5}"#,
            r#"{"entity":"u","schema":{"a":5}}"#,
            r#"{"entity":"u","schema":{"a":"INT"},"view":"other"}"#,
            r#"{"entity":"u","schema":{"a":"INT"},"nonsense":1}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","nonsense":1}}}"#,
            r#"{"entity":"u","schema":{"a":"INT"},"ttl":-5}"#,
            r#"{"entity":"u","schema":{"a":"INT"},"maxlen":0}"#,
            r#"{"entity":"u","schema":{"a":"INT"},"storage":"disk"}"#,
            r#"{"entity":"u","schema":{"a":{"type":"embedding"}}}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","default":"x"}}}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","default":{"x":1}}}}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","min":[1]}}}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","name":"b"}}}"#,
            r#"{"entity":"u","schema":[{"type":"INT"}]}"#,
            r#"{"entity":"u","version":0,"schema":{"a":"INT"}}"#,
        ] {
            assert!(parse_document(b"profile", bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_document(b"profile", b"\xff").is_err());
    }

    #[test]
    fn a_list_keeps_every_character_of_its_default() {
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        for list in ["[1, 2]", "[1e400]", "[123456789012345678901234567890]", "[ ]", r#"["\ud800"]"#, &deep] {
            let words: Vec<&[u8]> = vec![b"ENTITY", b"u", b"SCHEMA", b"l", b"LIST", b"DEFAULT", list.as_bytes()];
            let view = parse_registration(b"v", &mut Arguments::new(&words)).expect("a definition");
            assert_eq!(parse_document(b"v", to_document(&view).as_bytes()), Ok(view), "{list}");
        }
    }

    fn any_feature() -> impl Strategy<Value = (FeatureType, Option<Vec<u8>>)> {
        prop_oneof![
            any::<Option<i64>>().prop_map(|v| (FeatureType::Int, v.map(|v| v.to_string().into_bytes()))),
            any::<Option<f64>>().prop_map(|v| {
                (FeatureType::Float, v.filter(|v| v.is_finite()).map(|v| v.to_string().into_bytes()))
            }),
            any::<Option<bool>>().prop_map(|v| (FeatureType::Bool, v.map(|v| v.to_string().into_bytes()))),
            any::<Option<Vec<u8>>>().prop_map(|v| (FeatureType::String, v)),
            proptest::collection::vec(-1e9f32..1e9, 1..5).prop_map(|v| {
                let raw = v.iter().flat_map(|x| x.to_le_bytes()).collect();
                (FeatureType::Vector(v.len() as u32), Some(raw))
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_definition_survives_its_document(
            features in proptest::collection::vec((any_feature(), proptest::option::of(1i64..1_000_000), any::<String>()), 1..8),
            ttl in proptest::option::of(1_000_000i64..1_000_000_000), log in any::<bool>(), maxlen in 1u64..u64::MAX,
            consumer in any::<bool>(), version in 1u32..1000, description in any::<String>(), packed in any::<bool>(),
        ) {
            let mut view = FeatureView::new(b"v", version, b"e").expect("names");
            (view.ttl_ms, view.log, view.maxlen, view.consumer, view.description) = (ttl, log, maxlen, consumer, description);
            view.storage = Storage::ALL[usize::from(packed)];
            for (i, ((ty, default), ttl_ms, description)) in features.into_iter().enumerate() {
                let mut feature = Feature::new(format!("f{i}").as_bytes(), ty).expect("a name");
                let read = |text: &[u8]| Value::from_text(ty, text).map(Value::into_owned);
                set_values(&mut feature, "v", [default.as_deref(), None, None], read).expect("a default");
                (feature.ttl_ms, feature.description) = (ttl_ms, description);
                view.add_feature(feature).expect("a feature");
            }
            prop_assert_eq!(parse_document(b"v", to_document(&view).as_bytes()), Ok(view));
        }

        #[test]
        fn no_document_makes_the_reader_panic(text in any::<Vec<u8>>()) {
            let _ = parse_document(b"v", &text);
        }
    }
}
