//! A view as a JSON document: what `FS.REGISTER view JSON` takes, FS.DESCRIBE gives back, and snapshots keep.

use crate::arguments::parse_version;
use crate::definition::{Extra, Feature, FeatureView, MAXLEN_DEFAULT};
use crate::error::{shown, Error, Result};
use crate::feature_type::{FeatureType, TypeWord};
use crate::schema_syntax::set_values;
use crate::time::{format_duration, parse_duration};
use crate::value::{write_field_as_json, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

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

fn hash_word() -> String {
    "hash".to_owned()
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
    #[serde(default, skip_serializing_if = "is_false")]
    ttl_was_removed: bool,
    #[serde(default = "yes")]
    log: bool,
    #[serde(default = "maxlen_default")]
    maxlen: u64,
    #[serde(default = "yes")]
    consumer: bool,
    #[serde(default = "refuse_word")]
    extra: String,
    #[serde(default = "hash_word")]
    storage: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    /// A list of features, or an object of name to the rest.
    schema: Json,
    /// Derived; written for readers, accepted and ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensor: Option<Json>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeatureDocument {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dim: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<Json>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    input: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
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
    definition.ttl_was_removed = document.ttl_was_removed;
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
    if !document.storage.eq_ignore_ascii_case("hash") {
        return Err(Error::syntax(format!(
            "storage '{}' is not available in this version, only hash is",
            shown(document.storage.as_bytes())
        )));
    }
    definition.description = document.description;
    for feature in feature_documents(document.schema)? {
        definition.add_feature(read_feature(&definition.name, feature)?)?;
    }
    definition.check()?;
    Ok(definition)
}

fn feature_documents(schema: Json) -> Result<Vec<FeatureDocument>> {
    let list = match schema {
        Json::Array(list) => list,
        Json::Object(members) => members
            .into_iter()
            .map(|(name, rest)| match rest {
                Json::Object(rest) => {
                    let mut feature = Map::new();
                    feature.insert("name".to_owned(), Json::String(name));
                    feature.extend(rest);
                    Ok(Json::Object(feature))
                }
                // The shortest form: {"age": "INT"}.
                Json::String(ty) => Ok(serde_json::json!({"name": name, "type": ty})),
                other => Err(Error::syntax(format!(
                    "feature '{}' must be an object or a type, got {}",
                    shown(name.as_bytes()),
                    shown(other.to_string().as_bytes())
                ))),
            })
            .collect::<Result<_>>()?,
        other => {
            return Err(Error::syntax(format!(
                "schema must be a list or an object of features, got {}",
                shown(other.to_string().as_bytes())
            )))
        }
    };
    list.into_iter()
        .enumerate()
        .map(|(i, json)| {
            serde_json::from_value(json).map_err(|e| Error::syntax(format!("feature {} of the schema: {e}", i + 1)))
        })
        .collect()
}

/// A duration as a document gives it: `"7d"`, a number of seconds, or null.
fn duration(json: &Json) -> Result<Option<i64>> {
    match json {
        Json::Null => Ok(None),
        Json::String(text) => parse_duration(text.as_bytes()).map(Some),
        other => parse_duration(other.to_string().as_bytes()).map(Some),
    }
}

/// A value as a document gives it, as the text that a command would give.
fn as_text(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::Null => None,
        Json::String(text) => Some(text.clone().into_bytes()),
        Json::Object(members) => {
            let encoded = serde_json::value::to_raw_value(members).ok()?;
            Value::from_json(FeatureType::String, &encoded).ok().map(|v| v.to_field())
        }
        other => Some(other.to_string().into_bytes()),
    }
}

fn read_feature(view: &str, document: FeatureDocument) -> Result<Feature> {
    let ty = match FeatureType::parse(document.ty.as_bytes()) {
        Ok(TypeWord::Whole(ty)) => ty,
        Ok(TypeWord::Vector) => {
            let dimensions = match (document.dim, &document.default) {
                (Some(n), _) => n,
                (None, Some(Json::Array(list))) => list.len() as u64,
                (None, Some(Json::String(text))) => text.split(',').count() as u64,
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
            Some((word, n)) if word.eq_ignore_ascii_case("vector") => FeatureType::vector(n.parse().unwrap_or(0))?,
            _ => return Err(error),
        },
    };
    let mut feature = Feature::new(document.name.as_bytes(), ty)?;
    feature.ttl_ms = document.ttl.as_ref().map(duration).transpose()?.flatten();
    feature.values = document.values;
    feature.input = document.input;
    feature.description = document.description;
    let [default, min, max] = [document.default, document.min, document.max].map(|j| j.as_ref().and_then(as_text));
    set_values(&mut feature, view, default.as_deref(), min.as_deref(), max.as_deref())?;
    Ok(feature)
}

fn json_of(ty: FeatureType, value: &Value<'_>) -> Json {
    let mut text = Vec::new();
    write_field_as_json(ty.into(), &value.to_field(), &mut text);
    // The stored form of every value has a JSON form; null could only stand for a defect here.
    serde_json::from_slice(&text).unwrap_or(Json::Null)
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
            default: f.default.as_ref().map(|v| json_of(f.ty, v)),
            ttl: f.ttl_ms.map(|ms| Json::String(format_duration(ms))),
            min: f.min.as_ref().map(|v| json_of(f.ty, v)),
            max: f.max.as_ref().map(|v| json_of(f.ty, v)),
            values: f.values.clone(),
            input: f.input,
            description: f.description.clone(),
        })
        .collect();
    let document = ViewDocument {
        view: Some(view.name.clone()),
        version: u64::from(view.version),
        entity: view.entity.clone(),
        ttl: view.ttl_ms.map(|ms| Json::String(format_duration(ms))),
        ttl_was_removed: view.ttl_was_removed,
        log: view.log,
        maxlen: view.maxlen,
        consumer: view.consumer,
        extra: match view.extra {
            Extra::Refuse => refuse_word(),
            Extra::Ignore => "ignore".to_owned(),
        },
        storage: hash_word(),
        description: view.description.clone(),
        schema: serde_json::to_value(features).unwrap_or(Json::Null),
        tensor: Some(tensor_of(view)),
    };
    serde_json::to_string(&document).expect("a document of plain values serializes")
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
    use crate::arguments::Arguments;
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
            r#"{"entity":"u","schema":{"a":"INT"},"storage":"packed"}"#,
            r#"{"entity":"u","schema":{"a":{"type":"embedding"}}}"#,
            r#"{"entity":"u","schema":{"a":{"type":"INT","default":"x"}}}"#,
            r#"{"entity":"u","version":0,"schema":{"a":"INT"}}"#,
        ] {
            assert!(parse_document(b"profile", bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_document(b"profile", b"\xff").is_err());
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
            consumer in any::<bool>(), version in 1u32..1000, description in any::<String>(),
        ) {
            let mut view = FeatureView::new(b"v", version, b"e").expect("names");
            (view.ttl_ms, view.log, view.maxlen, view.consumer, view.description) = (ttl, log, maxlen, consumer, description);
            for (i, ((ty, default), ttl_ms, description)) in features.into_iter().enumerate() {
                let mut feature = Feature::new(format!("f{i}").as_bytes(), ty).expect("a name");
                set_values(&mut feature, "v", default.as_deref(), None, None).expect("a default");
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
